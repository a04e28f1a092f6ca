"""RWKV-4 for one token, in plain array code: the RNN of figure 3, and the fast way to generate.

The formulas of rwkv.py with T = 1 and no time axis: each array is (B, ...), one row per sequence. Nothing is recorded,
and what depends on the weights alone is worked out once. It is a second text of the same model for a measured reason:
at batch 1 a token costs calls, not arithmetic, and this makes fewer (benchmarks/cases/rwkv.py).
tests/models/test_every_model.py holds it to RWKV.step.
"""

from __future__ import annotations

from typing import Any

from ..backend import errstate, get_xp
from ..nn import without_tape
from ..recurrences.wkv import step as wkv_step
from .rwkv import RWKV, LayerState


class Decoder:
    """`step` of an RWKV, faster. Parameters are shared with the model; what is precomputed is of the moment."""

    def __init__(self, model: RWKV):
        self.plain = without_tape(model)
        mixings = [block.time_mixing for block in self.plain.blocks]
        self.time_mixings = [mixing and _TimeMixing(get_xp(self.plain.embedding), mixing) for mixing in mixings]

    def step(self, tokens: Any, state: tuple[LayerState, ...]) -> tuple[Any, tuple[LayerState, ...]]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state; the old stays valid."""
        xp, plain, layers = get_xp(tokens), self.plain, []
        x = plain.embedding[tokens]  # (B, C)
        if plain.ln0 is not None:
            x = _layernorm(xp, x, plain.ln0)
        with errstate(over="ignore"):  # e^-x far below zero; 1 / (1 + inf) = 0 is right
            for block, time_mixing, layer in zip(plain.blocks, self.time_mixings, state, strict=True):
                y1 = _layernorm(xp, x, block.ln1)
                if time_mixing is not None:
                    mixed, *sums = time_mixing.step(xp, y1, layer)
                else:
                    mixed, sums = _channel_mixing(xp, block.pre_ffn, y1, layer.x_time), layer[2:]
                x = x + mixed
                y2 = _layernorm(xp, x, block.ln2)
                x = x + _channel_mixing(xp, block.channel_mixing, y2, layer.x_channel)
                layers.append(LayerState(y1, y2, *sums))
        return _layernorm(xp, x, plain.ln_out) @ plain.head.w, tuple(layers)


class _TimeMixing:
    """TimeMixing for one token: key, value and receptance are one batched product."""

    def __init__(self, xp: Any, mixing: Any):
        self.mix = xp.stack([mixing.mix_k, mixing.mix_v, mixing.mix_r])[:, None]  # (3, 1, C)
        self.matrices = xp.stack([mixing.key.w, mixing.value.w, mixing.receptance.w])  # (3, C, C)
        self.out, self.bonus, self.lam = mixing.output.w, mixing.time_first, -xp.exp(mixing.time_decay)

    def step(self, xp: Any, x: Any, state: LayerState) -> tuple[Any, Any, Any, Any]:
        """x (B, C) -> (B, C) and the new p, q, o."""
        k, v, r = ((x - state.x_time) * self.mix + state.x_time) @ self.matrices  # (B, C) each
        y, *sums = wkv_step(k, v, self.lam, self.bonus, state.p, state.q, state.o)
        y *= _sigmoid(xp, r)
        return y @ self.out, *sums


def _channel_mixing(xp: Any, mixing: Any, y: Any, last: Any) -> Any:
    """ChannelMixing for one token: y, last (B, C) -> (B, C)."""
    difference = y - last
    k = xp.maximum((difference * mixing.mix_k + last) @ mixing.key.w, 0.0)
    k *= k
    return _sigmoid(xp, (difference * mixing.mix_r + last) @ mixing.receptance.w) * (k @ mixing.value.w)


def _layernorm(xp: Any, x: Any, norm: Any) -> Any:
    scale = 1.0 / x.shape[1]
    centred = x - x.sum(axis=1, keepdims=True) * scale
    centred /= xp.sqrt(xp.vecdot(centred, centred)[:, None] * scale + norm.eps)
    centred *= norm.gain
    centred += norm.bias
    return centred


def _sigmoid(xp: Any, x: Any) -> Any:
    y = xp.exp(-x)
    y += 1.0
    return xp.reciprocal(y, out=y)
