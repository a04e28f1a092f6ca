"""Elementwise ops, each gradient under its forward: dx = g * dy/dx.

Shapes: inputs broadcast as in NumPy; every gradient comes back in the shape of its input (`unbroadcast`).
Constants are Python floats: a single np.float64 scalar would turn a float32 step into float64.
"""

from __future__ import annotations

import math

from ..backend import get_xp
from ..tape import op, surrogate
from .shape import shape_of, unbroadcast


@op
def add(x, y):
    return x + y, (shape_of(x), shape_of(y))


@add.vjp
def add_vjp(g, x_shape, y_shape, *, needs):  # dx = g, dy = g
    dx = unbroadcast(g, x_shape) if needs[0] else None
    dy = unbroadcast(g, y_shape) if needs[1] else None
    return dx, dy


@op
def sub(x, y):
    return x - y, (shape_of(x), shape_of(y))


@sub.vjp
def sub_vjp(g, x_shape, y_shape, *, needs):  # dx = g, dy = -g
    dx = unbroadcast(g, x_shape) if needs[0] else None
    dy = unbroadcast(-g, y_shape) if needs[1] else None
    return dx, dy


@op
def mul(x, y):
    return x * y, (x, y)


@mul.vjp
def mul_vjp(g, x, y, *, needs):  # dx = g y, dy = g x
    dx = unbroadcast(g * y, shape_of(x)) if needs[0] else None
    dy = unbroadcast(g * x, shape_of(y)) if needs[1] else None
    return dx, dy


@op
def div(x, y):
    return x / y, (x, y)


@div.vjp
def div_vjp(g, x, y, *, needs):  # dx = g / y, dy = -g x / y^2
    dx = unbroadcast(g / y, shape_of(x)) if needs[0] else None
    dy = unbroadcast(-g * x / (y * y), shape_of(y)) if needs[1] else None
    return dx, dy


@op
def neg(x):
    return -x, ()


@neg.vjp
def neg_vjp(g):
    return -g


@op
def pow(x, *, exponent: float):
    """y = x^p for a Python number p. For small whole p, x * x is several times faster."""
    return x**exponent, (x, exponent)


@pow.vjp
def pow_vjp(g, x, exponent):  # dx = g p x^(p-1)
    if exponent == 0:
        return None  # not 0 * x^-1, which is NaN at 0
    return g * pow(x, exponent=exponent - 1) * exponent


@op
def exp(x):
    y = get_xp(x).exp(x)
    return y, (y,)


@exp.vjp
def exp_vjp(g, y):  # dx = g y
    return g * y


@op
def log(x):
    return get_xp(x).log(x), (x,)


@log.vjp
def log_vjp(g, x):  # dx = g / x
    return g / x


@op
def sqrt(x):
    y = get_xp(x).sqrt(x)
    return y, (y,)


@sqrt.vjp
def sqrt_vjp(g, y):  # dx = g / (2 y)
    return g / (2.0 * y)


@surrogate("the slope of the square root is capped at 1000, so that q -> 0 gives no NaN (De et al. 2024, official code)")
def bounded_sqrt(q):
    """y = sqrt(q) with a backward that stays finite: dq = g / sqrt(max(4 q, 1e-6)); see docs/recurrences/rglru.md (11)."""
    return get_xp(q).sqrt(q), (q,)


@bounded_sqrt.vjp
def bounded_sqrt_vjp(g, q):
    return g / sqrt(maximum(4.0 * q, 1e-6))


@op
def tanh(x):
    y = get_xp(x).tanh(x)
    return y, (y,)


@tanh.vjp
def tanh_vjp(g, y):  # dx = g (1 - y^2)
    return g * (1.0 - y * y)


@op
def sigmoid(x):
    """y = 1 / (1 + e^-x). For very negative x the exponential overflows to inf, and 1 / inf = 0 is right."""
    xp = get_xp(x)
    with xp.errstate(over="ignore"):
        y = 1.0 / (1.0 + xp.exp(-x))
    return y, (y,)


@sigmoid.vjp
def sigmoid_vjp(g, y):  # dx = g y (1 - y)
    return g * (y * (1.0 - y))


@op
def softplus(x):
    """y = log(1 + e^x), without overflow."""
    return get_xp(x).logaddexp(x, 0.0), (x,)


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
def silu(x):
    """y = x sigmoid(x)."""
    return x * sigmoid(x), (x,)


@silu.vjp
def silu_vjp(g, x):  # dx = g s (1 + x (1 - s)), s = sigmoid(x)
    s = sigmoid(x)
    return g * (s * (1.0 + x * (1.0 - s)))


GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)  # 2 K, because (1 + tanh u) / 2 = sigmoid(2 u)
GELU_CUBIC = 0.044715


@op
def gelu(x):
    """The tanh form, y = x (1 + tanh(K (x + 0.044715 x^3))) / 2, written with the sigmoid, which is faster than tanh."""
    return x * sigmoid((GELU_SLOPE * x) * (1.0 + GELU_CUBIC * (x * x))), (x,)


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


@op
def maximum(x, y):
    """The larger of the two; where they are equal the gradient goes to x."""
    return get_xp(x, y).maximum(x, y), (x >= y, shape_of(x), shape_of(y))


@maximum.vjp
def maximum_vjp(g, x_wins, x_shape, y_shape, *, needs):
    dx = unbroadcast(g * x_wins, x_shape) if needs[0] else None
    dy = unbroadcast(g * ~x_wins, y_shape) if needs[1] else None
    return dx, dy


@op
def where(mask, x, y):
    """x where mask, else y; mask is boolean and has no gradient."""
    xp = get_xp(mask, x, y)
    mask = xp.asarray(mask, dtype=bool)
    return xp.where(mask, x, y), (mask, shape_of(x), shape_of(y))


@where.vjp
def where_vjp(g, mask, x_shape, y_shape, *, needs):
    dx = unbroadcast(g * mask, x_shape) if needs[1] else None
    dy = unbroadcast(g * ~mask, y_shape) if needs[2] else None
    return None, dx, dy


@op
def clip(x, *, low: float, high: float):
    """x limited to [low, high]; no gradient outside."""
    return get_xp(x).clip(x, low, high), ((x >= low) & (x <= high),)


@clip.vjp
def clip_vjp(g, inside):
    return g * inside
