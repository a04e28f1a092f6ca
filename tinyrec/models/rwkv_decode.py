"""RWKV-4 for one token, in plain array code: the RNN of figure 3, and the fast way to generate.

The formulas of rwkv.py with T = 1 and no time axis: each array is (B, ...), one row per sequence. Nothing is recorded,
and what depends on the weights alone is worked out once. It is a second text of the same model for a measured reason:
at batch 1 a token costs calls, not arithmetic, and this makes fewer and cheaper ones (benchmarks/cases/rwkv.py): of two
matrices `x.dot(w)` is x @ w, in less time.
tests/models/test_every_model.py holds it to RWKV.step; WKV itself is `step` of recurrences/wkv.py.
"""

from __future__ import annotations

from typing import Any

from ..backend import errstate, get_xp
from ..nn import standardized, without_tape
from ..recurrences.wkv import single_gauge, step
from .rwkv import RWKV, Block, ChannelMixing, LayerState, TimeMixing


class Decoder:
    """`step` of an RWKV, faster. What is precomputed from the parameters is of the moment."""

    def __init__(self, model: RWKV):
        plain = without_tape(model)
        # LN0 sees only the embedding: it is applied to all rows at once.
        self.embedding = plain.embedding if plain.ln0 is None else plain.ln0(plain.embedding)  # (V, C)
        self.ln_out, self.head = _Norm(plain.ln_out), plain.head.w
        self.layers = [_Layer(block) for block in plain.blocks]

    def step(self, tokens: Any, state: tuple[LayerState, ...]) -> tuple[Any, tuple[LayerState, ...]]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state; the old stays valid."""
        x, states = self.embedding[tokens], []  # (B, C)
        with errstate(over="ignore"):  # e^-r far below zero; 1 / (1 + inf) = 0 is right
            for layer, old in zip(self.layers, state, strict=True):
                x, new = layer.step(x, old)
                states.append(new)
        return self.ln_out(x).dot(self.head), tuple(states)


class _Norm:
    """LayerNorm; its vectors are rows (1, C), as x is: NumPy takes half of the time."""

    def __init__(self, norm: Any):
        self.gain, self.bias, self.eps = norm.gain[None], norm.bias[None], norm.eps
        self.mean = get_xp(norm.gain).full(len(norm.gain), 1.0 / len(norm.gain), norm.gain.dtype)

    def __call__(self, x: Any) -> Any:
        """x (B, C) -> (B, C)."""
        y = standardized(x, self.mean, self.eps)
        y *= self.gain
        y += self.bias
        return y


class _Layer:
    """A Block for one token."""

    def __init__(self, block: Block):
        self.norm1, self.norm2 = _Norm(block.ln1), _Norm(block.ln2)
        self.pre_ffn = None if block.pre_ffn is None else _ChannelMixing(block.pre_ffn)
        self.time_mixing = None if block.time_mixing is None else _TimeMixing(block.time_mixing)
        self.channel_mixing = _ChannelMixing(block.channel_mixing)

    def step(self, x: Any, state: LayerState) -> tuple[Any, LayerState]:
        """x (B, C) -> x (B, C) and the new state."""
        y, (last_y, last_z, p, q, o) = self.norm1(x), state
        if self.time_mixing is not None:
            mixed, p, q, o = self.time_mixing.step(y, last_y, p, q, o)
            x = x + mixed
        elif self.pre_ffn is not None:
            x = x + self.pre_ffn.step(y, last_y)
        z = self.norm2(x)
        return x + self.channel_mixing.step(z, last_z), LayerState(y, z, p, q, o)


class _TimeMixing:
    """TimeMixing for one token: key, value and -receptance are one batched product."""

    def __init__(self, mixing: TimeMixing):
        m: Any = mixing
        xp = self.xp = get_xp(m.mix_k)
        self.mix = xp.stack([m.mix_k, m.mix_v, m.mix_r])[:, None]  # (3, 1, C)
        self.matrices = xp.stack([m.key.w, m.value.w, -m.receptance.w])  # (3, C, C)
        self.lam, self.time_first, self.out = -xp.exp(m.time_decay)[None], m.time_first[None], m.output.w  # rows
        self.ratio = single_gauge(self.lam, self.time_first)

    def step(self, y: Any, last: Any, p: Any, q: Any, o: Any) -> tuple[Any, Any, Any, Any]:
        """y, last, p, q, o (B, C) -> (B, C) and the new p, q, o."""
        k, v, minus_r = ((y - last) * self.mix + last) @ self.matrices  # (B, C) each
        mean, p, q, o = step(k, v, self.lam, self.time_first, self.ratio, p, q, o)
        mean /= _one_plus_exp(self.xp, minus_r)
        return mean.dot(self.out), p, q, o


class _ChannelMixing:
    """ChannelMixing for one token."""

    def __init__(self, mixing: ChannelMixing):
        m: Any = mixing
        self.xp = get_xp(m.mix_k)
        self.mix = self.xp.stack([m.mix_k, m.mix_r])[:, None]  # (2, 1, C)
        self.key, self.minus_receptance, self.value = m.key.w, -m.receptance.w, m.value.w

    def step(self, y: Any, last: Any) -> Any:
        """y, last (B, C) -> (B, C)."""
        y_k, y_r = (y - last) * self.mix + last
        k = y_k.dot(self.key)
        self.xp.maximum(k, 0.0, out=k)
        k *= k
        kv = k.dot(self.value)
        kv /= _one_plus_exp(self.xp, y_r.dot(self.minus_receptance))
        return kv


def _one_plus_exp(xp: Any, x: Any) -> Any:
    """1 + e^x, in place of x: sigmoid(r) y is y / (1 + e^-r)."""
    xp.exp(x, out=x)
    x += 1.0
    return x
