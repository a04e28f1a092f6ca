"""Griffin for one token, in plain array code: the models seen as RNNs, and the fast way to generate.

The formulas of griffin.py with T = 1 and no time axis: each array is (B, ...), one row per sequence. Nothing is
recorded, and what depends on the weights alone is worked out once. It is a second text of the same model for a measured
reason: at batch 1 a token costs calls, not arithmetic, and this makes fewer (benchmarks/cases/decode.py).
tests/models/test_griffin_decode.py holds it to Griffin.step. Equation numbers are those of docs/recurrences/rglru.md.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

from ..backend import errstate, fill_where, get_xp, on_gpu
from ..nn import over_rms, without_tape
from ..ops.activation import GELU_CUBIC, GELU_SLOPE, softplus
from ..ops.rope import cos_and_sin, rope_frequencies
from ..recurrences.rglru import C
from .griffin import Attention, Griffin, GriffinState, RecurrentMixer, RecurrentState, bfloat16


class Places(NamedTuple):
    """Where the tokens of all sequences stand in their documents: position (B,), its least and its largest number.

    A GPU is not asked for the two, for it would have to be waited for: there they are 0 and the largest there is.
    """

    position: Any
    least: int
    most: int


class Decoder:
    """`step` of a Griffin, faster. Parameters are shared with the model; what is precomputed is of the moment."""

    def __init__(self, model: Griffin):
        plain = without_tape(model)
        self.config, self.embedding = plain.config, plain.embedding
        xp, self.frequency = get_xp(plain.embedding), None
        if self.config.kinds.count("recurrent") < self.config.n_layers:
            self.frequency = rope_frequencies(xp, self.config.rotated, self.config.rope_base)
        self.scale = bfloat16(self.config.d_model**0.5) if self.config.embed_scale else 1.0
        self.head = xp.ascontiguousarray(self.embedding.T)  # (D, V)
        self.final_gain, self.eps = _gain(plain.final_norm), plain.final_norm.eps
        self.blocks = [
            (
                _gain(block.mixer_norm),
                _mixer(block.mixer, self.config),
                _gain(block.mlp_norm),
                block.mlp,
            )
            for block in plain.blocks
        ]

    def step(self, tokens: Any, state: GriffinState) -> tuple[Any, GriffinState]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state; the old stays valid."""
        xp, config, position, layers = get_xp(tokens), self.config, state.position, []
        rotation = (None, None)
        if self.frequency is not None:
            rotation = cos_and_sin(position, self.frequency, self.embedding.dtype)  # (B, R / 2)
        ends = (0, sys.maxsize) if on_gpu(position) else (int(position.min()), int(position.max()))
        places = Places(position, *ends)
        x = self.embedding[tokens] * self.scale  # (B, D)
        with errstate(over="ignore"):  # e^-x far below zero; 1 / (1 + inf) = 0 is right
            for (mixer_gain, mixer, mlp_gain, mlp), layer in zip(self.blocks, state.layers, strict=True):
                mixed, layer = mixer.step(over_rms(x, self.eps) * mixer_gain, places, rotation, layer)
                layers.append(layer)
                x = x + mixed
                y = over_rms(x, self.eps) * mlp_gain
                x = x + _linear(_gelu(xp, _linear(y, mlp.gate)) * _linear(y, mlp.up), mlp.down)
        logits = (over_rms(x, self.eps) * self.final_gain).dot(self.head)
        if config.logit_cap:
            logits = config.logit_cap * xp.tanh(logits * (1.0 / config.logit_cap))
        return logits, GriffinState(position + 1, tuple(layers))


def _mixer(mixer: Any, config: Any) -> Any:
    return _Recurrent(mixer, config) if type(mixer) is RecurrentMixer else _Attention(mixer)


class _Recurrent:
    """RecurrentMixer for one token."""

    def __init__(self, mixer: RecurrentMixer, config: Any):
        self.mixer, self.reset = mixer, config.reset
        self.slope = (softplus(mixer.lam) * -C)[None]  # (1, E)

    def step(self, y: Any, places: Places, _: Any, state: RecurrentState) -> tuple[Any, RecurrentState]:
        """y (B, D) -> (B, D) and the new state."""
        xp, m, position, taps = get_xp(y), self.mixer, places.position, len(self.mixer.conv_w)
        window = xp.concatenate([state.conv, _linear(y, m.branch)[:, None]], axis=1)  # (B, W, E), oldest first
        seen = window
        if places.least < taps - 1:  # the document is younger than the window
            seen = window * (position[:, None] >= xp.arange(taps - 1, -1, -1))[..., None]
        u = (seen * m.conv_w).sum(axis=1) + m.conv_b[None]  # (B, E)
        r = _sigmoid(xp, _block_linear(u, m.w_a, m.b_a))  # (2)
        i = _sigmoid(xp, _block_linear(u, m.w_x, m.b_x))
        log_a = r * self.slope  # (3)
        a, th = xp.exp(log_a), xp.tanh(-log_a)  # (4)
        root = xp.sqrt(th / (0.5 * th + 0.5))  # (5)
        if self.reset and places.least == 0:  # (6)
            fill_where(a, position == 0, 0.0)
            fill_where(root, position == 0, 1.0)
        h = a * state.h + root * i * u  # (7)
        return _linear(_gelu(xp, _linear(y, m.gate)) * h, m.out), RecurrentState(h, window[:, 1:])


class _Attention:
    """Attention for one token: q, k and v are one product, and q and k turn together."""

    def __init__(self, mixer: Attention):
        m: Any = mixer
        self.mixer, self.qkv = m, get_xp(m.q.w).concatenate([m.q.w, m.k.w, m.v.w], axis=1)  # (D, D + 2 K)

    def step(self, y: Any, places: Places, rotation: tuple, state: Any) -> tuple[Any, Any]:
        """y (B, D) -> (B, D) and the cache with this token's key and value."""
        xp, m, (batch, d) = get_xp(y), self.mixer, y.shape
        qkv = y.dot(self.qkv).reshape(batch, m.heads + 2, d // m.heads)  # k and v are like one more head each
        turned = _rope(xp, qkv[:, :-1], *rotation)
        q, k = turned[:, :-1], turned[:, -1:]  # (B, H, K), (B, 1, K)
        cache = state.append(k[:, None], qkv[:, None, -1:])
        held = cache.keys.shape[1]
        window = held if m.window is None else m.window
        n = min(held, window + 1, places.most + 1)  # what the oldest sequence sees
        keys, values = cache.keys[:, -n:, 0], cache.values[:, -n:, 0]  # (B, n, K)
        scores = (q * (d // m.heads) ** -0.5) @ keys.swapaxes(1, 2)  # (B, H, n)
        if places.least + 1 < n:  # sequences of different age
            reach = xp.minimum(places.position, window)
            scores = xp.where((xp.arange(n - 1, -1, -1) <= reach[:, None])[:, None], scores, -math.inf)
        scores -= scores.max(axis=2, keepdims=True)
        weights = xp.exp(scores, out=scores)
        out = values.swapaxes(1, 2) @ weights.swapaxes(1, 2)  # (B, K, H): faster than weights @ values
        out = out.swapaxes(1, 2) / weights.sum(axis=2, keepdims=True)  # (B, H, K)
        return _linear(out.reshape(batch, d), m.out), cache


def _gain(norm: Any) -> Any:
    """A row (1, D), as x is: NumPy takes half of the time."""
    return (norm.gain + 1.0)[None]


def _linear(x: Any, layer: Any) -> Any:
    y = x.dot(layer.w)
    if layer.b is not None:
        y += layer.b[None]
    return y


def _block_linear(u: Any, w: Any, b: Any) -> Any:
    """(1): u (B, E), w (N, k, k), b (E,)."""
    blocks = u.reshape(len(u), len(w), 1, -1) @ w  # (B, N, 1, k)
    return blocks.reshape(u.shape) + b[None]


def _sigmoid(xp: Any, x: Any) -> Any:
    y = xp.exp(-x)
    y += 1.0
    return xp.reciprocal(y, out=y)


def _gelu(xp: Any, x: Any) -> Any:
    y = x * x  # becomes 1 + e^-2u, see ops/activation.py
    y *= -GELU_SLOPE * GELU_CUBIC
    y -= GELU_SLOPE
    y *= x
    xp.exp(y, out=y)
    y += 1.0
    return x / y


def _rope(xp: Any, x: Any, cos: Any, sin: Any) -> Any:
    """x (B, H, K) with its first R features turned in pairs (j, j + R / 2); cos, sin (B, R / 2)."""
    half = cos.shape[1]
    c, s, first, second = cos[:, None], sin[:, None], x[..., :half], x[..., half : 2 * half]
    return xp.concatenate([first * c - second * s, second * c + first * s, x[..., 2 * half :]], axis=-1)
