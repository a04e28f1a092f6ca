"""Activations, elementwise: any shape in, the same shape out, each gradient under its forward."""

from __future__ import annotations

import math

import numpy as np

from ..backend import get_xp
from ..tape import op


@op
def tanh(x):
    y = get_xp(x).tanh(x)
    return y, (y,)


@tanh.vjp
def tanh_vjp(g, y):  # dx = g (1 - y^2)
    return g * (1.0 - y * y)


def sigmoid_of(x):
    """1 / (1 + e^-x) of an array. Far below zero the exponential overflows to inf, and 1 / inf = 0 is right."""
    xp = get_xp(x)
    with np.errstate(over="ignore"):
        y = xp.asarray(xp.exp(-x))
    y += 1.0
    return xp.reciprocal(y, out=y)


@op
def sigmoid(x):
    """y = 1 / (1 + e^-x)."""
    y = sigmoid_of(x)
    return y, (y,)


@sigmoid.vjp
def sigmoid_vjp(g, y):  # dx = g y (1 - y)
    return g * (y * (1.0 - y))


@op
def softplus(x):
    """y = log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), which cannot overflow."""
    xp = get_xp(x)
    return xp.log1p(xp.exp(-abs(x))) + xp.maximum(x, 0.0), (x,)


@softplus.vjp
def softplus_vjp(g, x):  # dx = g sigmoid(x)
    return g * sigmoid(x)


@op
def relu(x):
    return get_xp(x).maximum(x, 0.0), (x > 0,)


@relu.vjp
def relu_vjp(g, positive):  # dx = g where x > 0
    return g * positive


@op
def squared_relu(x):
    """y = max(x, 0)^2."""
    y = get_xp(x).maximum(x, 0.0)
    return y * y, (x,)


@squared_relu.vjp
def squared_relu_vjp(g, x):  # dx = 2 g max(x, 0)
    return g * (2.0 * relu(x))


@op
def silu(x):
    """y = x sigmoid(x)."""
    return x * sigmoid_of(x), (x,)


@silu.vjp
def silu_vjp(g, x):  # dx = g s (1 + x (1 - s)), s = sigmoid(x)
    s = sigmoid(x)
    return g * (s * (1.0 + x * (1.0 - s)))


GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)  # 2 K, because (1 + tanh u) / 2 = sigmoid(2 u)
GELU_CUBIC = 0.044715


@op
def gelu(x):
    """The tanh form, y = x (1 + tanh(K (x + 0.044715 x^3))) / 2, with the sigmoid, which is faster than tanh."""
    return x * sigmoid_of((GELU_SLOPE * x) * (1.0 + GELU_CUBIC * (x * x))), (x,)


@gelu.vjp
def gelu_vjp(g, x):  # s = sigmoid(2u); dx = g (s + x s (1 - s) d(2u)/dx)
    x2 = x * x
    s = sigmoid((GELU_SLOPE * x) * (1.0 + GELU_CUBIC * x2))
    return g * (s + x * (s * (1.0 - s)) * (GELU_SLOPE * (1.0 + (3.0 * GELU_CUBIC) * x2)))


@op
def softcap(x, *, cap: float):
    """y = cap tanh(x / cap): near 0 the identity, never beyond +-cap."""
    y = cap * get_xp(x).tanh(x * (1.0 / cap))
    return y, (y, cap)


@softcap.vjp
def softcap_vjp(g, y, cap):  # dx = g (1 - (y / cap)^2)
    return g * (1.0 - (y * y) * (1.0 / cap**2))
