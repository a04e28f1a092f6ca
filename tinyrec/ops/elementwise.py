"""Elementwise ops, each gradient under its forward: dx = g * dy/dx.

Shapes: inputs broadcast as in NumPy; every gradient comes back in the shape of its input (`unbroadcast`).
Constants are Python floats: a single np.float64 scalar would turn a float32 step into float64.
"""

from __future__ import annotations

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
    return g * pow(x, exponent=exponent - 1) * exponent if exponent else None  # 0 * x^-1 would be NaN at 0


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


@surrogate("the slope of the square root is capped at 1000: q -> 0 gives no NaN (De et al. 2024, official code)")
def bounded_sqrt(q):
    """y = sqrt(q) with a backward that stays finite, g / sqrt(max(4 q, 1e-6)); see docs/recurrences/rglru.md (11)."""
    return get_xp(q).sqrt(q), (q,)


@bounded_sqrt.vjp
def bounded_sqrt_vjp(g, q):
    return g / sqrt(maximum(4.0 * q, 1e-6))


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
    mask = get_xp(mask, x, y).asarray(mask, dtype=bool)
    return get_xp(mask).where(mask, x, y), (mask, shape_of(x), shape_of(y))


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
