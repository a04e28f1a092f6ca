"""Mamba for one token, in plain array code: the model seen as an RNN, and the fast way to generate.

The formulas of mamba.py with T = 1 and no time axis: each array is (B, ...), one row per sequence. Nothing is recorded,
and what depends on the weights alone is worked out once. It is a second text of the same model for a measured reason:
at batch 1 a token costs calls, not arithmetic, and this makes fewer (benchmarks/cases/mamba.py).
tests/models/test_every_model.py holds it to Mamba.step. Equation numbers are those of
docs/recurrences/selective_scan.md.
"""

from __future__ import annotations

from typing import Any

from ..backend import errstate, get_xp
from ..nn import over_rms, without_tape
from ..ops import softplus
from .mamba import LayerState, Mamba


class Decoder:
    """`step` of a Mamba, faster. Parameters are shared with the model; what is precomputed is of the moment."""

    def __init__(self, model: Mamba):
        self.plain = without_tape(model)
        xp = get_xp(self.plain.embedding)
        self.head = xp.ascontiguousarray(self.plain.embedding.T)  # (M, V)
        self.mixers = [_Mixer(xp, block.mixer) for block in self.plain.blocks]

    def step(self, tokens: Any, state: tuple[LayerState, ...]) -> tuple[Any, tuple[LayerState, ...]]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state; the old stays valid."""
        xp, layers = get_xp(tokens), []
        x = self.plain.embedding[tokens]  # (B, M)
        with errstate(over="ignore"):  # e^-x far below zero; 1 / (1 + inf) = 0 is right
            for block, mixer, layer in zip(self.plain.blocks, self.mixers, state, strict=True):
                mixed, layer = mixer.step(xp, _rmsnorm(x, block.norm), layer)
                x = x + mixed
                layers.append(layer)
        return _rmsnorm(x, self.plain.final_norm).dot(self.head), tuple(layers)


class _Mixer:
    """Mixer for one token: the two products of x are one."""

    def __init__(self, xp: Any, mixer: Any):
        self.mixer, (r, n, _) = mixer, mixer.sizes
        self.both = xp.concatenate([mixer.in_proj.w, mixer.gate_proj.w], axis=1)  # (M, 2 D)
        self.rank, self.states, self.a = r, n, -xp.exp(mixer.a_log)

    def step(self, xp: Any, y: Any, state: LayerState) -> tuple[Any, LayerState]:
        """y (B, M) -> (B, M) and the new state."""
        m, r, n = self.mixer, self.rank, self.states
        v, z = xp.split(y.dot(self.both), 2, axis=1)  # (B, D) each
        window = xp.concatenate([state.conv, v[:, None]], axis=1)  # (B, K, D), oldest first
        u = _silu(xp, (window * m.conv_w).sum(axis=1) + m.conv_b[None])
        p = u.dot(m.x_proj.w)  # (B, R + 2 N)
        dt = softplus(p[:, :r].dot(m.dt_proj.w) + m.dt_proj.b[None])[..., None]  # (B, D, 1)
        h = xp.exp(dt * self.a)  # (1), (B, D, N)
        h *= state.h
        h += (dt * u[..., None]) * p[:, None, r : r + n]  # (2) (3)
        out = (h @ p[:, r + n :, None])[..., 0] + m.d[None] * u  # (4), (B, D)
        return (out * _silu(xp, z)).dot(m.out_proj.w), LayerState(window[:, 1:], h)


def _rmsnorm(x: Any, norm: Any) -> Any:
    return over_rms(x, norm.eps) * norm.gain[None]  # a row, as x is


def _silu(xp: Any, x: Any) -> Any:
    y = xp.exp(-x)
    y += 1.0
    return x / y
