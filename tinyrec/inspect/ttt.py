"""Watching the inner models of a TTT layer learn while they read.

    inner_losses   the inner loss of each token at three weights: the first, before its mini-batch's step, after it
    weight_path    the way of the weights from mini-batch to mini-batch
    eta            the rates: what the gradient of token j counts for when token i is read

All of them run the model as it is on tokens (B, T), a mini-batch of K at a time, without recording anything, and note
what the inner models of one layer are given. Layers count from 0, like the blocks in the names of the parameters.
N = T // K mini-batches are looked at; tokens that begin another one are left out. H heads have an inner model each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import to_cpu
from ..models.ttt import TTT
from ..models.ttt_layer import Inner
from ..nn import without_tape
from ..recurrences import ttt_linear, ttt_mlp
from ..recurrences.inner_loop import matrix

TINY = 1e-30  # instead of a variance of 0 in a denominator


class Reading(NamedTuple):
    """What the inner models of a layer are given, on the model's device.

    k, v: for each mini-batch (B, K, H, d); lam: for each (B, K, H). tau (K,). See models/ttt_layer.py.
    weights: before each mini-batch, and after the last: N + 1 tuples, (w, b) or (w1, b1, w2, b2), each (B, H, ...).
    """

    inner: Inner
    k: list
    v: list
    lam: list
    tau: Any
    weights: list[tuple]


def watch(model: TTT, tokens: Any, layer: int) -> Reading:
    """Read tokens (B, T) mini-batch by mini-batch, and write down what goes on in one layer."""
    if not isinstance(model, TTT):
        raise TypeError(f"only TTT models have inner models, got a {type(model).__name__}")
    size, layers = model.config.mini_batch, model.config.n_layers
    if not 0 <= layer < layers:
        raise ValueError(f"layer must be 0 to {layers - 1}, got {layer}")
    if tokens.ndim != 2 or tokens.shape[1] < size:
        raise ValueError(f"expected tokens (B, T) with T of at least a mini-batch, {size}, got {tokens.shape}")
    plain = without_tape(model)
    mixer, state = plain.blocks[layer].mixer, plain.initial_state(len(tokens))
    mixer.inner = watched = _Watched(mixer.inner)  # in `plain` only: the model has its own
    weights = [state.layers[layer].weights]
    for start in range(0, tokens.shape[1] - size + 1, size):
        _, state = plain.prefill(tokens[:, start : start + size], state)
        weights.append(state.layers[layer].weights)
    _, k, v, lam, (tau, *_), *_ = zip(*watched.given, strict=True)
    return Reading(watched.inner, list(k), list(v), list(lam), tau, weights)


class _Watched:
    """An Inner that keeps what it is given: q, k, v, lam, tau, weights, sums, at."""

    def __init__(self, inner: Inner):
        self.inner = inner
        self.given: list[tuple] = []

    def __call__(self, *given: Any) -> tuple:
        self.given.append(given)
        return self.inner(*given)


# --- losses -----------------------------------------------------------------------------------------------------------


class InnerLosses(NamedTuple):
    """|f(k) - v|^2 / 2 over d, so the mean over the features of a head, for each token: (B, H, N, K) each.

    at_first: with the weights before the sequence, W_0. before, after: the step of the token's own mini-batch.
    """

    at_first: np.ndarray
    before: np.ndarray
    after: np.ndarray


def inner_losses(model: TTT, tokens: Any, layer: int = 0) -> InnerLosses:
    """The paper's l(W_0; x_t), l(W_{t-1}; x_t) and l(W_t; x_t), where all tokens of a mini-batch take one step.

    .mean((0, 1, 3)) of each is its course over the mini-batches.
    """
    read = watch(model, tokens, layer)
    first, *_ = weights = read.weights
    return InnerLosses(*(_losses(read, those) for those in ([first] * len(read.k), weights[:-1], weights[1:])))


def _losses(read: Reading, weights: Sequence[tuple]) -> np.ndarray:
    """(B, H, N, K), with one of `weights` for each mini-batch."""
    f = (ttt_linear if read.inner.kind == "linear" else ttt_mlp).f
    found = []
    for k, v, arrays in zip(read.k, read.v, weights, strict=True):
        rows = [w.reshape(matrix(w.shape)) for w in arrays]
        off = f(k.swapaxes(1, 2), (read.inner.gain, read.inner.bias), *rows) - v.swapaxes(1, 2)  # (B, H, K, d)
        found.append(to_cpu(0.5 * (off * off).mean(-1)))
    return np.stack(found, axis=2)


# --- weights ----------------------------------------------------------------------------------------------------------


class WeightPath(NamedTuple):
    """The weights W_n of each head after n = 0 .. N mini-batches, all arrays of an inner model in one row of P numbers.

    weights (B, H, N + 1, P). distance (B, H, N + 1): |W_n - W_0|. step (B, H, N): |W_{n+1} - W_n|.
    coordinates (B, H, N + 1, 2): W_n - W_0 along the two directions in which the W_n of a head, of all sequences, vary
    most. explained (H, 2): their shares of the variance.
    """

    weights: np.ndarray
    distance: np.ndarray
    step: np.ndarray
    coordinates: np.ndarray
    explained: np.ndarray


def weight_path(model: TTT, tokens: Any, layer: int = 0) -> WeightPath:
    """Follow the weights. They are all kept, B H (N + 1) P numbers: look at a few sequences at a time."""
    found = watch(model, tokens, layer).weights
    rows = [np.concatenate([to_cpu(w).reshape(*w.shape[:2], -1) for w in arrays], axis=-1) for arrays in found]
    weights = np.stack(rows, axis=2)
    moved = weights.astype(np.float64) - weights[:, :, :1]
    by_head = moved.swapaxes(0, 1).reshape(moved.shape[1], -1, moved.shape[3])  # (H, B (N + 1), P)
    _, size, axes = np.linalg.svd(by_head - by_head.mean(1, keepdims=True), full_matrices=False)
    shares = size[:, :2] ** 2 / ((size**2).sum(1, keepdims=True) + TINY)
    length = np.linalg.norm
    return WeightPath(
        weights, length(moved, axis=-1), length(np.diff(moved, axis=2), axis=-1),
        moved @ axes[:, :2].swapaxes(1, 2), shares,
    )  # fmt: skip


# --- rates ------------------------------------------------------------------------------------------------------------


def eta(model: TTT, tokens: Any, layer: int = 0) -> np.ndarray:
    """(B, H, N, K, K): eta_ij = tau_i lam_j, and 0 where j > i, a gradient that token i has not seen yet.

    The last row is the step that the weights take to the next mini-batch.
    """
    read = watch(model, tokens, layer)
    lam = np.stack([to_cpu(x).swapaxes(1, 2) for x in read.lam], axis=2)  # (B, H, N, K)
    return np.tril(to_cpu(read.tau)[:, None] * lam[..., None, :])
