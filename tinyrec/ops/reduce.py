"""Reductions over one axis, several, or all (axis=None). `sum` lives in shape.py: it is the gradient of a broadcast."""

from __future__ import annotations

import math

from ..backend import get_xp
from ..tape import op
from .elementwise import exp
from .shape import Shape, broadcast_to, kept_shape, reshape, sum

__all__ = ["logsumexp", "max", "mean", "sum"]


@op
def mean(x, *, axis: int | Shape | None = None, keepdims: bool = False):
    y = x.mean(axis=axis, keepdims=keepdims)
    return y, (x.shape, axis)


@mean.vjp
def mean_vjp(g, x_shape, axis):  # every summand gets g / n
    kept = kept_shape(x_shape, axis)
    n = math.prod(x_shape) // math.prod(kept)
    return broadcast_to(reshape(g * (1.0 / n), shape=kept), shape=x_shape)


@op
def max(x, *, axis: int | Shape | None = None, keepdims: bool = False):
    """The largest entry; equal ones share the gradient equally."""
    is_top = x == x.max(axis=axis, keepdims=True)
    return x.max(axis=axis, keepdims=keepdims), (is_top, is_top.sum(axis=axis, keepdims=True))


@max.vjp
def max_vjp(g, is_top, count):
    return reshape(g, shape=count.shape) / count.astype(g.dtype) * is_top


@op
def logsumexp(x, *, axis: int | Shape | None = -1, keepdims: bool = False):
    """y = log sum e^x, shifted by the largest entry so that nothing overflows."""
    xp = get_xp(x)
    total = xp.exp(x - x.max(axis=axis, keepdims=True)).sum(axis=axis, keepdims=keepdims)
    y = x.max(axis=axis, keepdims=keepdims) + xp.log(total)
    return y, (x, y, axis)


@logsumexp.vjp
def logsumexp_vjp(g, x, y, axis):  # dx = g softmax(x), softmax(x) = e^(x - y)
    kept = kept_shape(x.shape, axis)
    return reshape(g, shape=kept) * exp(x - reshape(y, shape=kept))
