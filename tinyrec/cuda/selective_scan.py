"""The launches of selective_scan.cu: the forward and the vjp of recurrences.selective_scan, with its arguments.

A block has 32 channels, and up to 8 warps that share out their states. In the simd build of a CPU a warp is one: then a
block has one warp, and none may be cut, so that channels of zeros stand behind the last.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array, get_xp
from .launch import contiguous, launch
from .switch import whole_warps

LANES, WARPS = 32, 8  # channels of a block; warps, at most
TILE = 64  # bytes that one channel has in a tile


def forward(u: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, h_init: Array) -> tuple[tuple, tuple]:
    """(y, h_last), and what `backward` reads."""
    xp, (batch, time, width), n = get_xp(u), u.shape, a.shape[1]
    full, how = width, dict[str, Any](block=(LANES, min(n, WARPS)))
    if whole_warps(xp):
        full, how = -(-width // LANES) * LANES, dict(block=(LANES,), build="simd")
    y = xp.empty((batch, time, full), u.dtype)
    states = xp.empty((-(-time * u.itemsize // TILE) + 1, batch, n, full), u.dtype)  # before each tile, and the last
    states[0, ..., :width], states[0, ..., width:] = h_init.swapaxes(1, 2), 0
    wide_u, wide_dt, a_t, wide_d = _channels(full, u, dt, a.T, d)
    inputs = (wide_u, wide_dt, a_t, *contiguous(b, c), wide_d)
    _start("selective_scan_forward", how, *inputs, y, states, batch, time, full, n, len(states))
    h_last = states[-1, ..., :width].swapaxes(1, 2).copy()
    return (y[..., :width], h_last), (u, dt, a, b, c, d, states, how)


def backward(
    gs: tuple, u: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, states: Array, how: dict[str, Any]
) -> tuple:
    """The gradients of forward's arguments, in their order; gs may have None."""
    xp, (batch, time, width), (saves, _, n, full) = get_xp(u), u.shape, states.shape
    tiles, steps, groups = saves - 1, TILE // u.itemsize, -(-full // LANES)
    likes = (u, states[0, ..., :width].swapaxes(1, 2))
    dy, dh_last = (xp.zeros_like(x) if g is None else g for g, x in zip(gs, likes, strict=True))
    wide_u, wide_dt, a_t, wide_d, *given = _channels(full, u, dt, a.T, d, dy, dh_last.swapaxes(1, 2))
    inputs = (wide_u, wide_dt, a_t, *contiguous(b, c), wide_d, states[:-1], *given)
    wide, state, sums = (batch, time, full), (batch, n, full), (groups, batch, n, tiles, LANES)
    grads = [xp.empty(shape, u.dtype) for shape in (wide, wide, state, sums, (batch, full), state)]
    _start("selective_scan_backward", how, *inputs, *grads, batch, time, full, n, tiles)
    dbc = grads.pop(3).sum(axis=0)  # of a tile, STEPS numbers of db and then as many of dc
    db, dc = (dbc[..., k : k + steps].reshape(batch, n, tiles * steps)[..., :time] for k in (0, steps))
    du, ddt, da, dd, dh_init = (x[..., :width] for x in grads)  # da and dd have a row per sequence
    return du, ddt, da.sum(axis=0).T, db.swapaxes(1, 2), dc.swapaxes(1, 2), dd.sum(axis=0), dh_init.swapaxes(1, 2)


def _start(name: str, how: dict[str, Any], *args: Any) -> None:
    """args: all but groups; batch, time, width, states, saves or tiles come last."""
    batch, width = args[-5], args[-3]
    groups = -(-width // LANES)
    launch("selective_scan", name, *args, groups, grid=(batch * groups,), **how)


def _channels(full: int, *arrays: Array) -> list[Array]:
    """The arrays (..., D), contiguous, with zeros behind the last channel up to `full` of them."""
    return [_filled(x, full) if x.shape[-1] < full else contiguous(x)[0] for x in arrays]


def _filled(x: Array, full: int) -> Array:
    wide = get_xp(x).zeros((*x.shape[:-1], full), x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide
