"""The gated GELU of Griffin: gelu(gate) * x, as one op, because it is most of the elementwise work of a block.

Written plainly it is a dozen passes over arrays larger than the cache. Here a tile of numbers goes through all of them
while it is still in the cache. Saves gate, x and the sigmoid: 12 bytes per element in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..backend import get_xp
from ..tape import fused
from .activation import GELU_CUBIC, GELU_SLOPE, gelu

TILE = 16384  # elements; a float32 buffer of it is 64 KiB, and a handful of them fit a core's second-level cache


def naive(gate, x):
    """gelu(gate) * x with two ops of the tape: the law, and the form to differentiate twice."""
    return gelu(gate) * x


def _tiles(*arrays) -> Iterable[Sequence]:
    """The same flat pieces of TILE elements of each contiguous array, one after the other (on a GPU: one piece)."""
    if arrays[0].size <= TILE or get_xp(arrays[0]).__name__ != "numpy":
        return [arrays]
    flat = [a.reshape(-1) for a in arrays]
    return ([a[start : start + TILE] for a in flat] for start in range(0, flat[0].size, TILE))


def _sigmoid_2u(gate, out):
    """out = sigmoid(2u), 2u = 2K (gate + 0.044715 gate^3), so that gelu(gate) = gate * out."""
    xp = get_xp(gate)
    xp.multiply(gate, gate, out=out)
    out *= -GELU_SLOPE * GELU_CUBIC
    out -= GELU_SLOPE
    out *= gate
    xp.exp(out, out=out)  # may overflow to inf far below zero, where 1 / (1 + inf) = 0 is right
    out += 1.0
    return xp.reciprocal(out, out=out)


@fused(naive)
def gelu_gate(gate, x):
    """y = gelu(gate) x in the tanh form of GELU; all (...) of one shape."""
    xp = get_xp(gate, x)
    if gate.shape != x.shape:
        raise ValueError("gate and x must have one shape")
    gate, x = xp.asarray(gate, order="C"), xp.asarray(x, order="C")
    s, y = xp.empty_like(x), xp.empty_like(x)
    with np.errstate(over="ignore"):
        for gt, xt, st, yt in _tiles(gate, x, s, y):
            _sigmoid_2u(gt, st)
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
