"""Matrix products: `matmul` with batch broadcasting, and `linear`, the x W + b of every layer."""

from __future__ import annotations

import math

from ..backend import get_xp
from ..tape import array_of, op
from .shape import reshape, transpose, unbroadcast


@op
def matmul(a, b):
    """a (..., N, K) @ b (..., K, M) -> (..., N, M); the leading axes broadcast."""
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError("both arguments need at least 2 axes")
    return a @ b, (a, b)


@matmul.vjp
def matmul_vjp(g, a, b, *, needs):  # da = g b^T, db = a^T g
    da = unbroadcast(matmul(g, transpose(b)), a.shape) if needs[0] else None
    db = unbroadcast(matmul(transpose(a), g), b.shape) if needs[1] else None
    return da, db


def _rows(x):
    """x (..., N) as a matrix (rows, N)."""
    return reshape(x, shape=(math.prod(x.shape[:-1]), x.shape[-1]))


def column_sums(g, weights=None):
    """(D,): the sum of all rows of g (..., D), each weighted by weights (..., 1). A product is faster than .sum(0)."""
    rows = _rows(g)
    if weights is None:
        weights = get_xp(array_of(g)).ones((1, rows.shape[0]), g.dtype)
    return reshape(matmul(reshape(weights, shape=(1, rows.shape[0])), rows), shape=(rows.shape[1],))


@op
def linear(x, w, b=None):
    """y (..., M) = x (..., N) w (N, M) + b (M,); b may be left out."""
    if w.ndim != 2 or x.shape[-1:] != w.shape[:1] or (b is not None and b.shape != w.shape[1:]):
        raise ValueError("expected x (..., N), a matrix w (N, M) and b (M,)")
    y = x.reshape(-1, w.shape[0]) @ w  # one product of a tall matrix, not one for each leading index
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], w.shape[1]), (x, w)


@linear.vjp
def linear_vjp(g, x, w, *, needs):  # dx = g w^T, dw = x^T g, db = sum over rows of g
    rows = _rows(g)
    dx = reshape(matmul(rows, transpose(w)), shape=x.shape) if needs[0] else None
    dw = matmul(transpose(_rows(x)), rows) if needs[1] else None
    db = column_sums(g) if len(needs) == 3 and needs[2] else None
    return (dx, dw, db)[: len(needs)]
