"""Looking up rows of a table; its gradient adds rows up, and the two are each other's vjp."""

from __future__ import annotations

import math

from ..backend import fill_where, get_xp, on_gpu
from ..tape import op

ONE_HOT = 1024  # rows of the table at a time, on a GPU


@op
def embedding(table, tokens):
    """rows (..., D) = table (V, D)[tokens (...)]; tokens are integers in [0, V). Raises IndexError for any other.

    A GPU would have to be waited for to know of one: there its row is NaN, which training does not overlook.
    """
    if on_gpu(tokens):
        rows = table[tokens]  # CuPy lets an index out of range wrap around
        fill_where(rows, (tokens < 0) | (tokens >= len(table)), math.nan)
        return rows, (tokens, len(table))
    if tokens.size and (tokens.min() < 0 or tokens.max() >= len(table)):
        raise IndexError(f"tokens span [{tokens.min()}, {tokens.max()}], the table has rows 0 to {len(table) - 1}")
    return table[tokens], (tokens, len(table))


@embedding.vjp
def embedding_vjp(g, tokens, n_rows):  # dtable_v = sum of g over the places where tokens == v
    return add_rows(g, tokens, n_rows=n_rows), None


@op
def add_rows(g, tokens, *, n_rows: int):
    """table (n_rows, D) with table[v] = sum of g (..., D) where tokens (...) == v.

    Sorted by token, equal rows are neighbours and one reduceat adds each run: many times faster than np.add.at. On
    a GPU it is a product with a matrix of 0 and 1: add.at adds in another order every time, and no run repeats itself.
    """
    xp = get_xp(g)
    rows, flat = g.reshape(-1, g.shape[-1]), tokens.reshape(-1)
    table = xp.zeros((n_rows, g.shape[-1]), g.dtype)
    if on_gpu(g):
        for start in range(0, n_rows, ONE_HOT):
            some = xp.arange(start, min(start + ONE_HOT, n_rows))[:, None]
            table[start : start + ONE_HOT] = (some == flat).astype(g.dtype) @ rows
    elif flat.size:
        order = xp.argsort(flat, kind="stable")
        starts = xp.flatnonzero(xp.diff(flat[order], prepend=-1))
        table[flat[order[starts]]] = xp.add.reduceat(rows[order], starts, axis=0)
    return table, (tokens,)


@add_rows.vjp
def add_rows_vjp(g, tokens):
    return embedding(g, tokens), None
