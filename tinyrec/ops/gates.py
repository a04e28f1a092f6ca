"""Gates: one branch of a layer decides how much of another passes, y = f(gate) x, each as one op.

    gelu_gate      f = gelu       Griffin
    silu_gate      f = silu       Mamba
    sigmoid_gate   f = sigmoid    RWKV, QRNN, AFT

Written plainly a gate is up to a dozen passes over arrays larger than the cache. Here a tile of numbers goes through
all of them while it is still in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..backend import get_xp, on_gpu
from ..tape import fused
from .activation import GELU_CUBIC, GELU_SLOPE, gelu, sigmoid, silu

TILE = 16384  # elements; a float32 buffer of it is 64 KiB, and a handful of them fit a core's second-level cache


def _tiles(*arrays) -> Iterable[Sequence]:
    """The same flat pieces of TILE elements of each contiguous array, one after the other (on a GPU: one piece)."""
    if arrays[0].size <= TILE or on_gpu(arrays[0]):
        return [arrays]
    flat = [a.reshape(-1) for a in arrays]
    return ([a[start : start + TILE] for a in flat] for start in range(0, flat[0].size, TILE))


def _checked(gate, x) -> tuple:
    """Both contiguous, so that they can be cut into flat pieces."""
    xp = get_xp(gate, x)
    if gate.shape != x.shape:
        raise ValueError("gate and x must have one shape")
    return xp.asarray(gate, order="C"), xp.asarray(x, order="C")


def _sigmoid_into(minus_z, out):
    """out = 1 / (1 + e^minus_z). The exponential may overflow to inf, where 1 / (1 + inf) = 0 is right."""
    xp = get_xp(out)
    xp.exp(minus_z, out=out)
    out += 1.0
    return xp.reciprocal(out, out=out)


def naive_gelu(gate, x):
    """gelu(gate) * x with two ops of the tape: the law, and the form to differentiate twice."""
    return gelu(gate) * x


@fused(naive_gelu)
def gelu_gate(gate, x):
    """y = gelu(gate) x in the tanh form of GELU; all (...) of one shape. Saves 12 bytes per element in float32.

    With u = K (gate + 0.044715 gate^3), gelu(gate) = gate (1 + tanh u) / 2 = gate sigmoid(2u).
    """
    gate, x = _checked(gate, x)
    xp = get_xp(x)
    s, y = xp.empty_like(x), xp.empty_like(x)
    with np.errstate(over="ignore"):
        for gt, xt, st, yt in _tiles(gate, x, s, y):
            xp.multiply(gt, gt, out=st)  # becomes -2u
            st *= -GELU_SLOPE * GELU_CUBIC
            st -= GELU_SLOPE
            st *= gt
            _sigmoid_into(st, st)
            xp.multiply(gt, st, out=yt)
            yt *= xt
    return y, (gate, x, s)


@gelu_gate.vjp
def gelu_gate_vjp(g, gate, x, s):  # dx = g gate s; dgate = g x (s + gate s (1 - s) d2u/dgate)
    xp = get_xp(g)
    dgate, dx = xp.empty_like(gate), xp.empty_like(x)
    for gt, gate_t, xt, st, dgate_t, dxt in _tiles(g, gate, x, s, dgate, dx):
        slope = gate_t * gate_t  # becomes gelu'(gate); d2u/dgate = 2K (1 + 3 * 0.044715 gate^2)
        slope *= 3.0 * GELU_CUBIC * GELU_SLOPE
        slope += GELU_SLOPE
        gs = xp.multiply(gate_t, st, out=dxt)
        slope *= gs
        slope *= 1.0 - st
        slope += st
        slope *= xt
        xp.multiply(slope, gt, out=dgate_t)
        dxt *= gt
    return dgate, dx


def naive_silu(gate, x):
    """silu(gate) * x with two ops of the tape."""
    return silu(gate) * x


@fused(naive_silu)
def silu_gate(gate, x):
    """y = silu(gate) x = gate sigmoid(gate) x; all (...) of one shape. Saves 12 bytes per element in float32."""
    gate, x = _checked(gate, x)
    xp = get_xp(x)
    s, y = xp.empty_like(x), xp.empty_like(x)
    with np.errstate(over="ignore"):
        for gt, xt, st, yt in _tiles(gate, x, s, y):
            _sigmoid_into(xp.negative(gt, out=st), st)
            xp.multiply(gt, st, out=yt)
            yt *= xt
    return y, (gate, x, s)


@silu_gate.vjp
def silu_gate_vjp(g, gate, x, s):  # dx = g gate s; dgate = g x s (1 + gate (1 - s))
    xp = get_xp(g)
    dgate, dx = xp.empty_like(gate), xp.empty_like(x)
    for gt, gate_t, xt, st, dgate_t, dxt in _tiles(g, gate, x, s, dgate, dx):
        gs = xp.multiply(gt, st, out=dxt)
        slope = xp.subtract(1.0, st, out=dgate_t)
        slope *= gate_t
        slope += 1.0
        slope *= xt
        slope *= gs
        gs *= gate_t
    return dgate, dx


def naive_sigmoid(gate, x):
    """sigmoid(gate) * x with two ops of the tape."""
    return sigmoid(gate) * x


@fused(naive_sigmoid)
def sigmoid_gate(gate, x):
    """y = sigmoid(gate) x; all (...) of one shape. Saves 8 bytes per element in float32: the slope needs no gate."""
    gate, x = _checked(gate, x)
    xp = get_xp(x)
    s, y = xp.empty_like(x), xp.empty_like(x)
    with np.errstate(over="ignore"):
        for gt, xt, st, yt in _tiles(gate, x, s, y):
            _sigmoid_into(xp.negative(gt, out=st), st)
            xp.multiply(st, xt, out=yt)
    return y, (s, x)


@sigmoid_gate.vjp
def sigmoid_gate_vjp(g, s, x):  # dx = g s; dgate = g x s (1 - s)
    xp = get_xp(g)
    dgate, dx = xp.empty_like(s), xp.empty_like(x)
    for gt, st, xt, dgate_t, dxt in _tiles(g, s, x, dgate, dx):
        gs = xp.multiply(gt, st, out=dxt)
        xp.subtract(1.0, st, out=dgate_t)
        dgate_t *= gs
        dgate_t *= xt
    return dgate, dx
