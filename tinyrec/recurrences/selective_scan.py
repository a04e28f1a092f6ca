"""S6, the selective scan of Mamba (Gu & Dao 2023, Algorithm 2): a state space whose step size, B and C the input sets.

Equation numbers are those of docs/recurrences/selective_scan.md. Each of D channels has N states of its own, every
state a scan with a decay in (0, 1); b_t and c_t are shared by the channels, a and d by all steps.

    decay_t[d, n] = exp(dt_t[d] a[d, n])               (1)   dt > 0, a < 0
    x_t[d, n] = dt_t[d] b_t[n] u_t[d]                  (2)
    h_t = decay_t h_{t-1} + x_t                        (3)   the recurrence of scan.py
    y_t[d] = sum_n c_t[n] h_t[d, n] + d[d] u_t[d]      (4)

decay, x and h are N times as large as u. The fused form holds them for one tile at a time, and keeps only the state
before each tile, from which the backward runs the tile again. Inside, D is the last axis: rows of N numbers would be
too short for NumPy.
"""

from __future__ import annotations

from ..backend import get_xp
from ..cuda import selective_scan as kernels
from ..cuda.switch import kernels_wanted
from ..ops.elementwise import exp
from ..ops.shape import getitem, stack, sum
from ..tape import fused
from .scan import adjoint_into, scan_into

TILE = 256 * 1024  # numbers in each of the three buffers of a tile
SPACING = 16  # a tile has at least so many steps, so that the state kept for it, (N, D) a sequence, counts little


def naive(u, dt, a, b, c, d, h_init):
    """The definition, one step after the other, in ops of the tape; see `selective_scan` for the shapes. Slow."""
    h, outputs = h_init, []
    for t in range(u.shape[1]):
        ut, dtt = (getitem(x, index=(slice(None), t, slice(None), None)) for x in (u, dt))  # (B, D, 1)
        bt, ct = (getitem(x, index=(slice(None), t, None)) for x in (b, c))  # (B, 1, N)
        h = exp(dtt * a) * h + dtt * bt * ut  # (1) (2) (3)
        outputs.append(sum(ct * h, axis=2) + d * getitem(u, index=(slice(None), t)))  # (4)
    return stack(*outputs, axis=1), h


@fused(naive)
def selective_scan(u, dt, a, b, c, d, h_init):
    """y (B, T, D) and h_last (B, D, N) of inputs u and step sizes dt > 0 (B, T, D); a < 0 (D, N); b, c (B, T, N);
    d (D,); h_init (B, D, N).

    Saves its arguments and the state (B, N, D) before each tile of at least SPACING steps: about N / SPACING arrays
    like u, or fewer, where a tape of single ops keeps several arrays (B, T, D, N).
    """
    batch, time, width = u.shape
    n = a.shape[-1]
    wanted = (u.shape, (width, n), (batch, time, n), (batch, time, n), (width,), (batch, width, n))
    if tuple(x.shape for x in (dt, a, b, c, d, h_init)) != wanted or time < 1:
        raise ValueError(f"expected T >= 1, dt like u, a {wanted[1]}, b and c {wanted[2]}, d {wanted[4]}, "
                         f"h_init {wanted[5]}")  # fmt: skip
    xp = get_xp(u)
    if time > 1 and kernels_wanted(xp, "selective_scan"):
        return kernels.forward(u, dt, a, b, c, d, h_init)
    if time == 1:  # decoding: one step needs neither tiles nor another layout
        dt1 = dt.swapaxes(1, 2)  # (B, D, 1), beside b (B, 1, N)
        h = xp.exp(dt1 * a) * h_init + dt1 * u.swapaxes(1, 2) * b  # (1) (2) (3)
        y = (h @ c.swapaxes(1, 2)).swapaxes(1, 2) + d * u  # (4)
        return (y, h), (u, dt, a, b, c, d, h_init.swapaxes(1, 2)[None])
    groups, tiles = _tiles(batch, time, width * n)
    buffers = _buffers(groups[0], tiles[0], n, u)
    a_t, y, h_last = a.T.copy(), xp.empty_like(u), xp.empty_like(h_init)
    states = xp.empty((len(tiles), batch, n, width), u.dtype)  # before each tile
    states[0] = h_init.swapaxes(1, 2)
    for rows in groups:
        for k, tile in enumerate(tiles):
            ut, dtt, bt, ct = (_time_major(x, rows, tile) for x in (u, dt, b, c))
            _, _, h = _run(ut, dtt, a_t, bt, states[k, rows], buffers)
            y[rows, tile] = ((ct[:, :, None] @ h[1:])[:, :, 0] + d * ut).swapaxes(0, 1)  # (4)
            if k + 1 < len(tiles):
                states[k + 1, rows] = h[-1]
        h_last[rows] = h[-1].swapaxes(1, 2)
    return (y, h_last), (u, dt, a, b, c, d, states)


@selective_scan.vjp
def selective_scan_vjp(gs, u, dt, a, b, c, d, states, how=None):
    if how is not None:  # of the launch
        return kernels.backward(gs, u, dt, a, b, c, d, states, how)
    xp = get_xp(u)
    dy, dh_last = gs
    if dy is None:
        dy = xp.zeros_like(u)
    groups, tiles = _tiles(u.shape[0], u.shape[1], a.size)
    buffers = _buffers(groups[0], tiles[0], a.shape[1], u)
    a_t = a.T.copy()
    du, ddt, db, dc = (xp.empty_like(x) for x in (u, dt, b, c))
    da, dh_init = xp.zeros_like(a_t), xp.empty((len(u), *a.shape), u.dtype)
    for rows in groups:
        carry = xp.zeros_like(states[0, rows]) if dh_last is None else dh_last[rows].swapaxes(1, 2)
        for k, tile in reversed(list(enumerate(tiles))):
            ut, dtt, bt, ct, dyt = (_time_major(x, rows, tile) for x in (u, dt, b, c, dy))
            decay, x, h = _run(ut, dtt, a_t, bt, states[k, rows], buffers)  # again; h[t] is h_{t-1} of the formulas
            dc[rows, tile] = (h[1:] @ dyt[..., None])[..., 0].swapaxes(0, 1)  # (7)
            delta = xp.multiply(dyt[:, :, None], ct[..., None], out=x)  # (5)
            carry = adjoint_into(decay, delta, carry, delta)  # (6), and after the first tile (15)
            db[rows, tile] = (delta @ (dtt * ut)[..., None])[..., 0].swapaxes(0, 1)  # (9)
            w = (bt[:, :, None] @ delta)[:, :, 0]  # (10)
            du[rows, tile] = (d * dyt + dtt * w).swapaxes(0, 1)  # (11)
            s = xp.multiply(delta, decay, out=delta)
            s *= h[:-1]  # (12)
            ddt[rows, tile] = (ut * w + xp.einsum("trnd,nd->trd", s, a_t)).swapaxes(0, 1)  # (13)
            da += xp.einsum("trnd,trd->nd", s, dtt)  # (14)
        dh_init[rows] = carry.swapaxes(1, 2)
    return du, ddt, da.T, db, dc, (dy * u).sum(axis=(0, 1)), dh_init  # (8)


def _tiles(batch: int, time: int, row: int) -> tuple[list[slice], list[slice]]:
    """Cut batch and time into pieces of about TILE numbers; `row` = D N is what one step of one sequence has."""
    steps = min(time, max(SPACING, TILE // (batch * row)))
    count = max(1, TILE // (steps * row))
    groups = [slice(r, min(r + count, batch)) for r in range(0, batch, count)]
    return groups, [slice(t, min(t + steps, time)) for t in range(0, time, steps)]


def _buffers(group: slice, tile: slice, n: int, u) -> tuple:
    """Room for what `_run` returns; the first group and the first tile are the largest."""
    shape = (group.stop, n, u.shape[2])
    return tuple(get_xp(u).empty((tile.stop + more, *shape), u.dtype) for more in (0, 0, 1))


def _time_major(x, rows: slice, tile: slice):
    """A contiguous copy (t, r, ...) of x[rows, tile], x (B, T, ...): small, and NumPy walks it faster than a view."""
    return x[rows, tile].swapaxes(0, 1).copy()


def _run(u, dt, a_t, b, before, buffers) -> tuple:
    """(1) (2) (3) for t steps of r sequences, in the buffers: decay, x (t, r, N, D) and h (t + 1, r, N, D).

    u, dt (t, r, D), a_t (N, D), b (t, r, N), before (r, N, D), which becomes h[0].
    """
    xp = get_xp(u)
    steps, count = u.shape[:2]
    decay, x, h = buffers[0][:steps, :count], buffers[1][:steps, :count], buffers[2][: steps + 1, :count]
    xp.multiply(dt[:, :, None], a_t, out=decay)
    xp.exp(decay, out=decay)  # (1)
    xp.multiply((dt * u)[:, :, None], b[..., None], out=x)  # (2)
    h[0] = before
    scan_into(decay, x, before, h[1:])  # (3)
    return decay, x, h
