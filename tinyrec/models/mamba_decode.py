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
from .mamba import LayerState, Mamba


class Decoder:
    """`step` of a Mamba, faster. What is precomputed from the parameters is of the moment."""

    def __init__(self, model: Mamba):
        plain: Any = without_tape(model)
        xp, self.embedding, self.eps = get_xp(plain.embedding), plain.embedding, plain.final_norm.eps
        self.head = plain.final_norm.gain[:, None] * self.embedding.T  # (M, V)
        self.layers = [_Layer(xp, block) for block in plain.blocks]

    def step(self, tokens: Any, state: tuple[LayerState, ...]) -> tuple[Any, tuple[LayerState, ...]]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state; the old stays valid."""
        xp, layers = get_xp(tokens), []
        x = self.embedding[tokens]  # (B, M)
        with errstate(over="ignore"):  # e^-x far below zero; 1 / (1 + inf) = 0 is right
            for layer, old in zip(self.layers, state, strict=True):
                mixed, new = layer.step(xp, x, old)
                x = x + mixed
                layers.append(new)
        return over_rms(x, self.eps).dot(self.head), tuple(layers)


class _Layer:
    """Norm and Mixer for one token. The two products of x are one, with the norm's gain in the matrix.

    States lie in memory as (B, N, D): a number beside N of them, as in (B, D, N), is what NumPy is slow at. What is
    handed on is a view of the other shape.
    """

    def __init__(self, xp: Any, block: Any):
        m, self.eps = block.mixer, block.norm.eps
        self.mixer, (self.rank, self.states, _) = m, m.sizes
        self.both = block.norm.gain[:, None] * xp.concatenate([m.in_proj.w, m.gate_proj.w], axis=1)  # (M, 2 D)
        self.a = xp.ascontiguousarray(-xp.exp(m.a_log).T)  # (N, D)

    def step(self, xp: Any, x: Any, state: LayerState) -> tuple[Any, LayerState]:
        """x (B, M) -> what is added to it (B, M), and the new state."""
        m, r, n = self.mixer, self.rank, self.states
        vz = over_rms(x, self.eps).dot(self.both)
        d = vz.shape[1] // 2
        window = xp.concatenate([state.conv, vz[:, None, :d]], axis=1)  # (B, K, D), oldest first
        u = _silu(xp, (window * m.conv_w).sum(axis=1) + m.conv_b[None])
        p = u.dot(m.x_proj.w)  # (B, R + 2 N)
        dt = xp.logaddexp(p[:, :r].dot(m.dt_proj.w) + m.dt_proj.b[None], 0.0)  # softplus, (B, D)
        h = dt[:, None] * self.a
        xp.exp(h, out=h)  # (1), (B, N, D)
        h *= state.h.swapaxes(1, 2)
        h += p[:, r : r + n, None] * (dt * u)[:, None]  # (2) (3)
        out = (p[:, None, r + n :] @ h)[:, 0] + m.d[None] * u  # (4), (B, D)
        return (out * _silu(xp, vz[:, d:])).dot(m.out_proj.w), LayerState(window[:, 1:], h.swapaxes(1, 2))


def _silu(xp: Any, x: Any) -> Any:
    y = xp.exp(-x)
    y += 1.0
    return x / y
