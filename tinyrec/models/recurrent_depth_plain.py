"""The recurrent-depth transformer for few tokens at a time, in plain array code: the fast way to generate.

The same parts as recurrent_depth.py, so an Unrolling runs either. It is a second text of the same model for a measured
reason: at batch 1 a token costs calls, not arithmetic, and it makes several hundred (benchmarks/cases/
recurrent_depth.py). tests/models/test_every_model.py holds it to RecurrentDepth.step. What a block saves:

    q, k, v are one product      x / rms(x) times W_qkv = g_1 [W_q / sqrt(K)  W_k  W_v]: the gain g_1 of the norm, and
                                 the scale of the scores, stand in the matrix
    gate and up are one product  W_gate_up = g_3 [W_gate / 2  W_up], as silu(2 a) = a + a tanh(a)
    q and k turn together        adjacent pairs are complex numbers, times e^{i angle}, made once for all blocks
    the norm of a single row     has one dot product and a Python number where arrays would take four calls
    the sum of the softmax       is a product with ones

Sizes: B sequences, T tokens of each, N = B T rows, n tokens seen; h d_model, m d_mlp, H heads, K head width.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..backend import get_xp
from ..nn import KVCache, extended, over_rms, without_tape
from ..ops import attention, embedding, rope_tables
from .recurrent_depth import RecurrentDepth
from .recurrent_depth_blocks import SandwichBlock

FEW = 16  # tokens; the scores of more are not held all at once


class Places(NamedTuple):
    """What attention must know of the places of the T new tokens among all n: in place of cosines and sines."""

    turn: Any  # (1, T, 2, H, K / 2) complex: e^{i angle}, for q and for k
    ones: Any  # (n,)
    mask: Any  # (T, T): -inf where a token would see a later one; None for a single token


class PlainRecurrentDepth(RecurrentDepth):
    """The model without a tape, faster. What is precomputed from its parameters is of the moment."""

    embedding: Any  # arrays and parts of this file, where the model has Tensors and layers
    norm: Any
    prelude: Any
    core: Any
    coda: Any

    def __init__(self, model: RecurrentDepth):
        plain = without_tape(model)
        self.config, self.embedding, self.norm = plain.config, plain.embedding, _Norm(plain.norm)
        self.adapter_s, self.adapter_e = plain.adapter_s, plain.adapter_e
        self.prelude, self.core, self.coda = (
            [_Sandwich(block) if type(block) is SandwichBlock else _PreNorm(block) for block in blocks]
            for blocks in (plain.prelude, plain.core, plain.coda)
        )

    def rotation(self, position: int, time: int) -> Places:
        xp, dtype, config = get_xp(self.embedding), self.embedding.dtype, self.config
        places = xp.arange(position, position + time)[:, None, None]
        cos, sin = rope_tables(places, config.head_width, config.rope_base, dtype)  # (T, 1, 1, K / 2)
        turn = xp.empty((1, time, 2, config.n_heads, config.head_width // 2), f"complex{16 * dtype.itemsize}")
        turn.real, turn.imag = cos, sin
        mask = None if time == 1 else xp.triu(xp.full((time, time), -math.inf, dtype), 1)
        return Places(turn, xp.ones(position + time, dtype), mask)

    def embed(self, tokens: Any, rotation: Places, caches: Any) -> tuple[Any, tuple]:
        return _run(self.prelude, embedding(self.embedding, tokens) * self.config.gamma, rotation, caches)

    def inject(self, e: Any) -> Any:
        return e if self.adapter_e is None else e @ self.adapter_e

    def iterate(self, s: Any, injected: Any, rotation: Places, caches: Any) -> tuple[Any, tuple]:
        x = s if self.adapter_s is None else s @ self.adapter_s
        return _run(self.core, x + injected, rotation, caches)

    def finish(self, z: Any, rotation: Places, caches: Any) -> tuple[Any, tuple]:
        y, caches = _run(self.coda, z, rotation, caches)
        return self.norm(y), caches

    def head(self, y: Any) -> Any:
        return y @ self.embedding.T


def _run(blocks: list, x: Any, places: Places, caches: Any) -> tuple[Any, tuple]:
    """x (B, T, h) through the blocks, which see rows (N, h), and their caches."""
    rows, after = x.reshape(-1, x.shape[2]), []
    for block, cache in zip(blocks, caches or [None] * len(blocks), strict=True):
        rows, cache = block(rows, places, cache)
        after.append(cache)
    return rows.reshape(x.shape), tuple(after)


class _Sandwich:
    """SandwichBlock. Its norms 1 and 3 are part of what follows them."""

    def __init__(self, block: Any):
        self.attention, self.norm_2 = _Attention(block.norm_1, block.attention), _Norm(block.norm_2)
        self.mlp, self.norm_4 = _MLP(block.norm_3, block.mlp), _Norm(block.norm_4)

    def __call__(self, x: Any, places: Places, cache: KVCache | None) -> tuple[Any, KVCache | None]:
        mixed, cache = self.attention(x, places, cache)
        mixed += x
        x = self.norm_2(mixed)
        y = self.mlp(x)
        y += x
        return self.norm_4(y), cache


class _PreNorm:
    """PreNormBlock. Its norms are part of what follows them."""

    def __init__(self, block: Any):
        self.attention, self.mlp = _Attention(block.norm_1, block.attention), _MLP(block.norm_2, block.mlp)

    def __call__(self, x: Any, places: Places, cache: KVCache | None) -> tuple[Any, KVCache | None]:
        mixed, cache = self.attention(x, places, cache)
        mixed += x
        y = self.mlp(mixed)
        y += mixed
        return y, cache


class _Attention:
    """A norm and Attention."""

    def __init__(self, norm: Any, layer: Any):
        q, k, v = layer.q, layer.k, layer.v
        xp = self.xp = get_xp(q.w)
        self.heads, self.width, self.eps, self.out = layer.heads, len(q.w) // layer.heads, norm.eps, layer.out.w
        scale = self.width**-0.5
        self.qkv = _after(norm, xp.concatenate([q.w * scale, k.w, v.w], axis=1))  # (h, 3 h)
        self.bias = None if q.b is None else xp.concatenate([q.b * scale, k.b, k.b * 0.0])[None]  # (1, 3 h)

    def __call__(self, x: Any, places: Places, cache: KVCache | None) -> tuple[Any, KVCache | None]:
        """x (N, h) -> (N, h) and the cache with these tokens."""
        xp, T = self.xp, places.turn.shape[1]
        qkv = over_rms(x, self.eps).dot(self.qkv)
        if self.bias is not None:
            qkv += self.bias
        qkv = qkv.reshape(-1, T, 3, self.heads, self.width)
        pairs = qkv[:, :, :2].view(places.turn.dtype)  # of q and k, (B, T, 2, H, K / 2)
        pairs *= places.turn
        q = qkv[:, :, 0]
        k, v, cache = extended(qkv[:, :, 1], qkv[:, :, 2], cache)  # (B, n, H, K)
        if T > FEW:
            mixed = attention(q * self.width**0.5, k, v)
        else:
            scores = q.transpose(0, 2, 1, 3) @ k.transpose(0, 2, 3, 1)  # (B, H, T, n)
            if T > 1:
                scores[..., -T:] += places.mask
            scores -= scores.max(axis=3, keepdims=True)
            weights = xp.exp(scores, out=scores)
            mixed = weights @ v.transpose(0, 2, 1, 3)
            mixed /= weights.dot(places.ones)[..., None]
            mixed = mixed.transpose(0, 2, 1, 3)  # (B, T, H, K)
        return mixed.reshape(x.shape).dot(self.out), cache


class _MLP:
    """A norm and MLP."""

    def __init__(self, norm: Any, layer: Any):
        self.xp = get_xp(layer.up.w)
        gate_up = self.xp.concatenate([layer.gate.w * 0.5, layer.up.w], axis=1)
        self.gate_up, self.down, self.eps = _after(norm, gate_up), layer.down.w, norm.eps  # (h, 2 m), (m, h)

    def __call__(self, x: Any) -> Any:
        """(N, h) -> (N, h)."""
        gate_up, m = over_rms(x, self.eps).dot(self.gate_up), len(self.down)
        half, up = gate_up[:, :m], gate_up[:, m:]
        y = self.xp.tanh(half)
        y *= half
        y += half
        y *= up
        return y.dot(self.down)


class _Norm:
    """RMSNorm."""

    def __init__(self, norm: Any):
        self.gain, self.eps = None if norm.gain is None else norm.gain[None], norm.eps  # (1, h): a row, as x is

    def __call__(self, x: Any) -> Any:
        """(..., h) -> (..., h)."""
        y = over_rms(x, self.eps)
        if self.gain is not None:
            y *= self.gain
        return y


def _after(norm: Any, w: Any) -> Any:
    """The matrix w (h, ...) for what a norm returns, made one for x / rms(x)."""
    return w if norm.gain is None else norm.gain[:, None] * w
