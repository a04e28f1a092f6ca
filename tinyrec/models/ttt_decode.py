"""TTT for one token, in plain array code: the model seen as an RNN, and the fast way to generate.

The formulas of ttt.py and ttt_layer.py with T = 1 and no time axis: each array is (B, ...), one row per sequence.
Nothing is recorded, and what depends on the weights alone is worked out once. It is a second text of the same model for
a measured reason: at batch 1 a token costs calls, not arithmetic, and this makes fewer and cheaper ones
(benchmarks/cases/ttt.py). tests/models/test_every_model.py holds it to TTT.step. What a block saves:

    all products of u are one     and so are gate and up of the SwiGLU, and the two convolutions of q and k; the gain of
                                  the norm before them is in the matrix
    k and q are two rows          of one array (B, H, 2, d): they turn together and meet the weights in one product
    q w - tau q gw                where w - tau gw would be an array as large as the state
    a mean                        is a product with a matrix of 1/d: of one shape with x, it is faster taken off
    vectors are rows              (1, C) as x is, and `x.dot(w)` is x @ w: NumPy takes half of the time

Equation numbers are those of docs/recurrences/ttt_linear.md.
"""

from __future__ import annotations

from typing import Any

from ..backend import errstate, get_xp
from ..nn import over_rms, standardized, without_tape
from ..ops import rope_tables
from ..ops.activation import GELU_CUBIC, GELU_SLOPE
from ..ops.inner_norm import EPS
from ..recurrences import ttt_mlp
from .ttt import TTT, Block, TTTState
from .ttt_layer import BlockState, Mixer


class Decoder:
    """`step` of a TTT, faster. What is precomputed from the parameters is of the moment."""

    def __init__(self, model: TTT):
        plain, self.config = without_tape(model), model.config
        xp, self.embedding = get_xp(plain.embedding), plain.embedding
        final: Any = plain.final_norm
        self.head = final.gain[:, None] * self.embedding.T  # (C, V)
        dtype = self.embedding.dtype
        places = xp.arange(self.config.mini_batch)
        cos, sin = rope_tables(places, self.config.head_width, self.config.rope_base, dtype)  # (K, d / 2)
        self.turn = (cos + 1j * sin).astype(f"complex{16 * dtype.itemsize}")  # adjacent pairs are complex numbers
        self.layers = [_Layer(xp, block) for block in plain.blocks]

    def step(self, tokens: Any, state: TTTState) -> tuple[Any, TTTState]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state; the old stays valid."""
        xp, at, layers = get_xp(tokens), state.at, []
        x, turn = self.embedding[tokens], self.turn[at]  # (B, C), (d / 2,)
        with errstate(over="ignore"):  # e^-x far below zero; 1 / (1 + inf) = 0 is right
            for layer, old in zip(self.layers, state.layers, strict=True):
                x, new = layer.step(xp, x, old, at, turn)
                layers.append(new)
        logits = over_rms(x, self.config.norm_eps).dot(self.head)
        return logits, TTTState((at + 1) % self.config.mini_batch, tuple(layers))


class _Layer:
    """A Block for one token."""

    def __init__(self, xp: Any, block: Block):
        b: Any = block
        self.block, self.mixer = b, _Mixer(xp, b.mixer, b.mixer_norm.gain)
        self.gate_up = xp.concatenate([b.mlp.gate.w, b.mlp.up.w], axis=1)  # (C, 2 F)
        self.gate_up *= b.mlp_norm.gain[:, None]
        self.conv_gain = b.conv_norm and b.conv_norm.gain[None]
        self.eps, self.f = b.mlp_norm.eps, len(b.mlp.down.w)

    def step(self, xp: Any, x: Any, state: BlockState, at: int, turn: Any) -> tuple[Any, BlockState]:
        """x (B, C) -> x (B, C) and the new state."""
        block, before = self.block, None
        if block.conv is not None:
            window = _window(xp, state.before, over_rms(x, self.eps) * self.conv_gain)
            before = window[:, 1:]
            x = x + (window * block.conv.w).sum(axis=1)
            x += block.conv.bias[None]
        y, state = self.mixer.step(xp, over_rms(x, self.eps), state, before, at, turn)
        x = x + y
        gate_up = over_rms(x, self.eps).dot(self.gate_up)
        gate = gate_up[:, : self.f]
        up = gate_up[:, self.f :] * gate  # (B, F)
        gate = xp.exp(-gate)
        gate += 1.0
        up /= gate
        return x + up.dot(block.mlp.down.w), state


class _Mixer:
    """Mixer for one token."""

    def __init__(self, xp: Any, mixer: Mixer, norm_gain: Any):
        m: Any = mixer
        self.mixer, self.c = m, len(m.q.w)
        views = [m.k.w, m.q.w] if m.conv_q is None else [m.q.w]
        gate = [] if m.gate is None else [m.gate.w]
        self.products = norm_gain[:, None] * xp.concatenate([*views, m.v.w, *gate, -m.lam.w], axis=1)
        self.minus_b, self.tau = -m.lam.b[None], m.tau().tolist()
        self.read = (_Linear if m.inner.kind == "linear" else _MLP)(xp, m.inner)
        self.mean = xp.full(self.c, 1.0 / self.c, m.q.w.dtype)
        self.out, self.out_bias = m.norm.gain[:, None] * m.out.w, m.norm.bias[None] @ m.out.w
        if m.conv_q is not None:
            self.taps = xp.stack([m.conv_k.w, m.conv_q.w], axis=1)  # (W, 2, C)
            self.bias = xp.stack([m.conv_k.bias, m.conv_q.bias])  # (2, C)

    def step(self, xp: Any, u: Any, state: BlockState, before: Any, at: int, turn: Any) -> tuple[Any, BlockState]:
        """u (B, C) -> (B, C) and the new state."""
        m, c, qk = self.mixer, self.c, None
        batch, heads = len(u), m.heads
        p = u.dot(self.products)
        if m.conv_q is None:
            kq, at_v = p[:, : 2 * c].reshape(batch, 2, heads, -1), 2 * c
        else:
            window, at_v = _window(xp, state.qk, p[:, :c]), c
            qk, kq = window[:, 1:], (window[:, :, None] * self.taps).sum(axis=1)
            kq += self.bias
            kq = kq.reshape(batch, 2, heads, -1)
        kq = xp.ascontiguousarray(kq).view(turn.dtype) * turn  # RoPE
        kq = kq.view(u.dtype).swapaxes(1, 2)  # (B, H, 2, d)
        v = p[:, at_v : at_v + c].reshape(batch, heads, -1)
        lam = m.max_lam / (xp.exp(p[:, -heads:] + self.minus_b) + 1.0)  # (B, H)
        z, weights, sums = self.read(xp, kq, v, lam[..., None], self.tau[at], state.weights, state.sums)
        if at + 1 == len(self.tau):
            weights = tuple(w - self.tau[at] * g for w, g in zip(weights, sums, strict=True))
            sums = tuple(xp.zeros_like(g) for g in sums)
        o = standardized(z.reshape(batch, c), self.mean, m.norm.eps)
        if m.gate is None:
            return o.dot(self.out) + self.out_bias, BlockState(before, qk, weights, sums)
        o *= m.norm.gain[None]
        o += m.norm.bias[None]
        gate = p[:, at_v + c : at_v + 2 * c]
        o *= gate * _gelu_sigmoid(xp, gate)
        return o.dot(m.out.w), BlockState(before, qk, weights, sums)


class _Inner:
    """What the inner models share: their loss's gradient, and the LayerNorm of what they give."""

    def __init__(self, xp: Any, inner: Any):
        (_, d), dtype = inner.gain.shape, inner.gain.dtype
        self.gain, self.bias = inner.gain[None], inner.bias[None]  # (1, H, d)
        self.gain2, self.mean = self.gain * self.gain, xp.full((d, d), 1.0 / d, dtype)
        self.centred = (xp.eye(d) - 1.0 / d).astype(dtype)  # x @ centred is x less its mean

    def gradient(self, xp: Any, z: Any, k: Any, v: Any, lam: Any) -> Any:
        """lam times (3): z, k, v (B, H, d), lam (B, H, 1) -> (B, H, d)."""
        h, s = self.normalised(xp, z)
        e = k - v
        e += self.bias
        e *= self.gain
        e += self.gain2 * h
        e = e @ self.centred
        h *= (e * h) @ self.mean
        e -= h
        e *= lam / s
        return e

    def output(self, xp: Any, q: Any, z: Any) -> Any:
        """(5): q + LN(z)."""
        y, _ = self.normalised(xp, z)
        y *= self.gain
        y += self.bias
        y += q
        return y

    def normalised(self, xp: Any, x: Any) -> tuple[Any, Any]:
        """(x - mean) / s and s, the deviation, over the last axis: as large as x, each number for all of its row."""
        y = x @ self.centred
        s = (y * y) @ self.mean
        s += EPS
        xp.sqrt(s, out=s)
        y /= s
        return y, s


class _Linear(_Inner):
    """TTT-Linear for one token."""

    def __call__(self, xp: Any, kq: Any, v: Any, lam: Any, tau: float, weights: tuple, sums: tuple) -> tuple:
        """z (B, H, d), the weights as they were, and the new sums; lam (B, H, 1)."""
        (w, b), (gw, gb) = weights, sums
        k, q = kq[:, :, 0], kq[:, :, 1]
        z = kq @ w
        z += b[:, :, None]
        g = self.gradient(xp, z[:, :, 0], k, v, lam)
        more = k[..., None] * g[:, :, None]
        gw, gb = xp.add(more, gw, out=more), gb + g
        z = z[:, :, 1] - tau * ((kq[:, :, 1:] @ gw)[:, :, 0] + gb)  # q (w - tau gw) + b - tau gb
        return self.output(xp, q, z), weights, (gw, gb)


class _MLP(_Inner):
    """TTT-MLP for one token."""

    def __call__(self, xp: Any, kq: Any, v: Any, lam: Any, tau: float, weights: tuple, sums: tuple) -> tuple:
        """z (B, H, d), the weights as they were, and the new sums; lam (B, H, 1)."""
        (w1, b1, w2, b2), (gw1, gb1, gw2, gb2) = weights, sums
        k, q = kq[:, :, 0], kq[:, :, 1]
        z1 = kq @ w1
        z1 += b1[:, :, None]
        zk = z1[:, :, :1]
        s = _gelu_sigmoid(xp, zk)
        x = zk * s  # (B, H, 1, 4 d)
        g2 = self.gradient(xp, (x @ w2)[:, :, 0] + b2, k, v, lam)
        g1 = (w2 @ g2[..., None])[..., 0] * ttt_mlp.inner_slope(zk, s)[:, :, 0]
        gw1, gb1 = gw1 + k[..., None] * g1[:, :, None], gb1 + g1
        gw2, gb2 = gw2 + x.swapaxes(2, 3) * g2[:, :, None], gb2 + g2
        z1 = z1[:, :, 1:] - tau * (kq[:, :, 1:] @ gw1 + gb1[:, :, None])
        z1 *= _gelu_sigmoid(xp, z1)
        z2 = z1 @ w2 - tau * (z1 @ gw2)
        return self.output(xp, q, z2[:, :, 0] + (b2 - tau * gb2)), weights, (gw1, gb1, gw2, gb2)


def _window(xp: Any, last: Any, x: Any) -> Any:
    """The inputs of a convolution, oldest first: last (B, W - 1, C) and x (B, C) -> (B, W, C)."""
    return xp.concatenate([last, x[:, None]], axis=1)


def _gelu_sigmoid(xp: Any, x: Any) -> Any:
    """sigmoid(2u), see ops/activation.py: gelu(x) is x times it."""
    y = x * x  # becomes 1 + e^-2u
    y *= -GELU_SLOPE * GELU_CUBIC
    y -= GELU_SLOPE
    y *= x
    xp.exp(y, out=y)
    y += 1.0
    return xp.reciprocal(y, out=y)
