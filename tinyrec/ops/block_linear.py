"""A block-diagonal matrix product: the cheap dense layer of the RG-LRU gates."""

from __future__ import annotations

from ..backend import get_xp
from ..tape import op
from .matmul import column_sums
from .shape import transpose


def _blocks(x, n: int):
    """x (..., E) as n blocks (n, rows, E / n): a view, which matmul hands to BLAS as it is."""
    return x.reshape(-1, n, x.shape[-1] // n).swapaxes(0, 1)


@op
def block_linear(x, w, b=None):
    """y (..., E): block n of x (..., E) times w[n], plus b; w (N, E/N, E/N) in (in, out) order, b (E,)."""
    if w.ndim != 3 or w.shape[0] * w.shape[1] != x.shape[-1] or w.shape[1] != w.shape[2]:
        raise ValueError("w must be (N, k, k) with N k the last axis of x")
    xp = get_xp(x)
    y = xp.empty(x.shape, x.dtype)
    xp.matmul(_blocks(x, len(w)), w, out=_blocks(y, len(w)))
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
    return _blocks(x, n).swapaxes(1, 2) @ _blocks(g, n), (x, g)


@block_outer.vjp
def block_outer_vjp(ddw, x, g):  # dx = g ddw^T, dg = x ddw
    return block_linear(g, transpose(ddw)), block_linear(x, ddw)
