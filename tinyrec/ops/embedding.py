"""Looking up rows of a table; its gradient adds rows up, and the two are each other's vjp."""

from __future__ import annotations

from ..backend import get_xp
from ..tape import op


@op
def embedding(table, tokens):
    """rows (..., D) = table (V, D)[tokens (...)]; tokens are integers in [0, V). Raises IndexError for any other."""
    if tokens.size and (tokens.min() < 0 or tokens.max() >= len(table)):
        raise IndexError(f"tokens span [{tokens.min()}, {tokens.max()}], the table has rows 0 to {len(table) - 1}")
    return table[tokens], (tokens, len(table))


@embedding.vjp
def embedding_vjp(g, tokens, n_rows):  # dtable_v = sum of g over the places where tokens == v
    return add_rows(g, tokens, n_rows=n_rows), None


@op
def add_rows(g, tokens, *, n_rows: int):
    """table (n_rows, D) with table[v] = sum of g (..., D) where tokens (...) == v.

    Sorted by token, equal rows are neighbours and one reduceat adds each run: many times faster than np.add.at.
    """
    xp = get_xp(g)
    rows, flat = g.reshape(-1, g.shape[-1]), tokens.reshape(-1)
    table = xp.zeros((n_rows, g.shape[-1]), g.dtype)
    if xp.__name__ == "cupy":
        xp.add.at(table, flat, rows)
    elif flat.size:
        order = xp.argsort(flat, kind="stable")
        starts = xp.flatnonzero(xp.diff(flat[order], prepend=-1))
        table[flat[order[starts]]] = xp.add.reduceat(rows[order], starts, axis=0)
    return table, (tokens,)


@add_rows.vjp
def add_rows_vjp(g, tokens):
    return embedding(g, tokens), None
