"""A block-diagonal matrix product: the cheap dense layer of the RG-LRU gates."""

from __future__ import annotations

from ..backend import get_xp
from ..tape import op
from .matmul import column_sums
from .shape import transpose


def _blocks(x, n: int):
    """x (..., E) as n views (rows, E / n), one per block."""
    rows = x.reshape(-1, x.shape[-1])
    k = rows.shape[1] // n
    return [rows[:, i * k : (i + 1) * k] for i in range(n)]


@op
def block_linear(x, w, b=None):
    """y (..., E): block n of x (..., E) times w[n], plus b; w (N, E/N, E/N) in (in, out) order, b (E,)."""
    if w.ndim != 3 or w.shape[0] * w.shape[1] != x.shape[-1] or w.shape[1] != w.shape[2]:
        raise ValueError("w must be (N, k, k) with N k the last axis of x")
    xp = get_xp(x)
    y = xp.empty(x.shape, x.dtype)
    for xn, wn, yn in zip(_blocks(x, len(w)), w, _blocks(y, len(w)), strict=True):
        xp.matmul(xn, wn, out=yn)
    if b is not None:
        y += b
    return y, (x, w, b is not None)


@block_linear.vjp
def block_linear_vjp(g, x, w, has_bias, *, needs):  # dx = g w^T, dw = x^T g, db = sum of g, block by block
    dx = block_linear(g, transpose(w)) if needs[0] else None
    dw = block_outer(x, g, n=len(w)) if needs[1] else None
    db = column_sums(g) if has_bias and needs[2] else None
    return (dx, dw, db)[: len(needs)]


@op
def block_outer(x, g, *, n: int):
    """dw (n, k, k) = x_n^T g_n for each of the n blocks of x (..., E) and g (..., E), summed over all rows."""
    dw = get_xp(x).stack([xn.T @ gn for xn, gn in zip(_blocks(x, n), _blocks(g, n), strict=True)])
    return dw, (x, g)


@block_outer.vjp
def block_outer_vjp(ddw, x, g):  # dx = g ddw^T, dg = x ddw
    return block_linear(g, transpose(ddw)), block_linear(x, ddw)
