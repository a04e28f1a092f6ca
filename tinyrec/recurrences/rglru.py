"""RG-LRU, the real-gated linear recurrent unit of Hawk and Griffin (De et al. 2024, section 2.4).

Equation numbers are those of docs/recurrences/rglru.md. Per channel: a decay a_t in (0, 1), set by the recurrence gate
r_t and a learned lam, and a gated input whose scale sqrt(1 - a_t^2) keeps the state's variance at that of the input.

    r = sigmoid(zr), i = sigmoid(zi)                            (2)   zr, zi: block-diagonal products of u, outside (1)
    a = exp(-c softplus(lam) r), q = 1 - a^2, m = sqrt(q)       (3) (4) (5)
    h_t = a_t h_{t-1} + m_t i_t u_t                             (7)   at a document start a = 0, m = 1 (6)
"""

from __future__ import annotations

from ..backend import fill_where, get_xp
from ..cuda.launch import contiguous, launch
from ..cuda.switch import kernels_wanted
from ..ops.activation import sigmoid, sigmoid_of, softplus
from ..ops.elementwise import bounded_sqrt, exp, where
from ..ops.shape import getitem, stack
from ..tape import fused
from .scan import adjoint_into, scan_into, time_major, time_tiles

C = 8.0
MAX_SLOPE = 1000.0  # of the square root: the bounded derivative (11)
TILE = 24 * 1024  # numbers worked on at a time; a handful of float32 buffers of it fit the second-level cache


def naive(u, zr, zi, lam, h_init, *, starts=None):
    """The definition, one step after the other, in ops of the tape; see `rglru` for the shapes. Slow."""
    r, i = sigmoid(zr), sigmoid(zi)  # (2)
    log_a = r * (softplus(lam) * -C)  # (3)
    a = exp(log_a)  # (4)
    m = bounded_sqrt(1.0 - exp(log_a * 2.0))  # (5), derivative (11); loses digits as a -> 1, `_decay` does not
    if starts is not None:  # (6)
        a = where(starts[..., None], 0.0, a)
        m = where(starts[..., None], 1.0, m)
    b = m * (i * u)
    h, states = h_init, []
    for t in range(u.shape[1]):
        h = getitem(a, index=(slice(None), t)) * h + getitem(b, index=(slice(None), t))  # (7)
        states.append(h)
    return stack(*states, axis=1), h


def _decay(r, slope, starts) -> tuple:
    """a and m = sqrt(1 - a^2) of (3) to (6); r (t, B, E), slope (E,) = -c softplus(lam), starts (t, B) or None.
    The first two axes may also be (B, t).

    With th = tanh(-log a), 1 - a^2 = -expm1(2 log a) = 2 th / (1 + th): as exact as expm1 as a -> 1, and much faster in
    float32.
    """
    xp = get_xp(r)
    log_a = r * slope  # (3)
    a = xp.exp(log_a)  # (4)
    m = xp.tanh(-log_a, out=log_a)
    m /= 0.5 * m + 0.5
    xp.sqrt(m, out=m)  # (5)
    if starts is not None:
        fill_where(a, starts, 0.0)  # (6)
        fill_where(m, starts, 1.0)
    return a, m


@fused(naive, surrogate="the slope of sqrt(1 - a^2) is capped at 1000 (11)")
def rglru(u, zr, zi, lam, h_init, *, starts=None):
    """h (B, T, E) and h_last (B, E) of inputs u and gate arguments zr, zi (B, T, E), lam (E,), h_init (B, E).

    starts (B, T): True where a document begins; there the state before does not count. Saves u, r, i, h: 16 bytes per
    element in float32; a and m are recomputed in the backward.
    """
    batch, time, width = u.shape
    if zr.shape != u.shape or zi.shape != u.shape or lam.shape != (width,) or h_init.shape != (batch, width):
        raise ValueError(f"expected zr and zi like u, lam ({width},), h_init ({batch}, {width})")
    if time < 1 or (starts is not None and starts.shape != (batch, time)):
        raise ValueError(f"expected T >= 1 and starts ({batch}, {time})")
    xp = get_xp(u)
    if time > 1 and kernels_wanted(xp, "rglru"):
        h = xp.empty(u.shape, u.dtype)
        inputs = contiguous(u, zr, zi, lam, h_init, starts)
        launch("rglru", "rglru_forward", *inputs, h, *u.shape, threads=h_init.size)
        return (h, h[:, -1].copy()), (u, zr, zi, lam, h, h_init, starts, True)  # the backward makes the gates again
    r, i = sigmoid_of(zr), sigmoid_of(zi)  # (2)
    slope = softplus(lam) * -C
    if time == 1:  # decoding: one step of (7) needs neither tiles nor a scan
        a, m = _decay(r, slope, starts)
        h = a * h_init[:, None] + m * i * u
        return (h, h[:, 0].copy()), (u, r, i, lam, h, h_init, starts)
    h = xp.empty_like(u)
    state = h_init
    for tile in time_tiles(u.shape, TILE):
        a, m = _decay(time_major(r, tile), slope, None if starts is None else starts[:, tile].T)
        m *= i[:, tile].swapaxes(0, 1)
        m *= u[:, tile].swapaxes(0, 1)
        states = xp.empty_like(m)
        scan_into(a, m, state, states)  # (7)
        state = states[-1]
        h[:, tile] = states.swapaxes(0, 1)
    return (h, state.copy()), (u, r, i, lam, h, h_init, starts)


@rglru.vjp
def rglru_vjp(gs, u, r, i, lam, h, h_init, starts, by_kernel=False):
    xp = get_xp(u)
    dh, dh_last = gs
    if by_kernel:  # r, i: what goes into the gates
        dh, dh_last = (xp.zeros_like(x) if g is None else g for g, x in zip(gs, (h, h_init), strict=True))
        du, dzr, dzi, dlam, dh_init = grads = [xp.empty(x.shape, u.dtype) for x in (u, u, u, h_init, h_init)]
        inputs = contiguous(u, r, i, lam, h, h_init, starts, dh, dh_last)
        launch("rglru", "rglru_backward", *inputs, *grads, *u.shape, threads=h_init.size)
        return du, dzr, dzi, dlam.sum(axis=0), dh_init  # dlam has a row per sequence
    du, dzr, dzi, dlam = xp.empty_like(u), xp.empty_like(u), xp.empty_like(u), xp.zeros_like(lam)
    slope = softplus(lam) * -C
    carry = xp.zeros_like(h_init) if dh_last is None else dh_last
    for tile in reversed(time_tiles(u.shape, TILE)):
        ut, rt, it = time_major(u, tile), time_major(r, tile), time_major(i, tile)
        ht = xp.empty_like(ut)  # h_{t-1}
        ht[0] = h_init if tile.start == 0 else h[:, tile.start - 1]
        ht[1:] = h[:, tile.start : tile.stop - 1].swapaxes(0, 1)
        first = None if starts is None else starts[:, tile].T
        a, m = _decay(rt, slope, first)
        delta = xp.zeros_like(ut) if dh is None else time_major(dh, tile)
        carry = adjoint_into(a, delta, carry, delta)  # (8), and after the last tile (16)
        dgx = delta * m  # (9)
        dut = dgx * it
        du[:, tile] = dut.swapaxes(0, 1)
        dgx *= ut  # = di
        dgx *= it
        dgx *= 1.0 - it
        dzi[:, tile] = dgx.swapaxes(0, 1)  # (14)
        dq = xp.multiply(delta, ut, out=ut)
        dq *= it  # = dm = delta gx (9)
        dq /= xp.maximum(2.0 * m, 1.0 / MAX_SLOPE)  # (11): sqrt(max(4 q, 1e-6)) = max(2 m, 1e-3)
        dlog_a = xp.multiply(delta, ht, out=delta)  # = da (10)
        dq *= a
        dq *= 2.0
        dlog_a -= dq
        dlog_a *= a  # (12), zero at a document start, where a = 0
        dlog_a *= rt
        dlam += dlog_a.reshape(-1, len(lam)).sum(axis=0)
        dlog_a *= slope
        dlog_a *= 1.0 - rt
        dzr[:, tile] = dlog_a.swapaxes(0, 1)  # (13)
    return du, dzr, dzi, dlam * sigmoid(lam) * -C, carry  # (15)
