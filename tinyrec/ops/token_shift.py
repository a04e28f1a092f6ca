"""Token shift (Peng et al. 2023, section 3.1): each channel is mixed with what it was one token before.

    xx_t = x_{t-1}, with xx_0 = `last`, the carried state;   y_m = mu_m x + (1 - mu_m) xx,  one y for each mu

It is a convolution over two tokens with the taps (1 - mu, mu). All mixes of one x are made together: they share
x - xx, and the backward then needs no more than x.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..backend import get_xp
from ..tape import fused
from .shape import concat, getitem, reshape

TILE = 32 * 1024  # numbers of x worked on at a time


def naive(x, last, *mus):
    """The definition, in ops of the tape; shapes as in `token_shift`."""
    (batch, time, width) = x.shape
    earlier = getitem(x, index=(slice(None), slice(0, time - 1)))
    xx = concat(reshape(last, shape=(batch, 1, width)), earlier, axis=1)
    return *(mu * x + (1.0 - mu) * xx for mu in mus), getitem(x, index=(slice(None), -1))


def _pieces(x) -> Iterator[tuple[int, slice]]:
    """(row n, piece of time) with about TILE numbers each, in the order of time."""
    batch, time, width = x.shape
    steps = max(1, TILE // width)
    return ((n, slice(t, min(t + steps, time))) for n in range(batch) for t in range(0, time, steps))


def _before(x, last, n: int, piece: slice):
    """xx of one piece, (t, C)."""
    xx = get_xp(x).empty_like(x[n, piece])
    xx[0] = last[n] if piece.start == 0 else x[n, piece.start - 1]
    xx[1:] = x[n, piece.start : piece.stop - 1]
    return xx


@fused(naive)
def token_shift(x, last, *mus):
    """One y (B, T, C) for each mu (C,), then the next state x_{T-1} (B, C); x (B, T, C), last (B, C). Saves x."""
    batch, time, width = x.shape
    if time < 1 or last.shape != (batch, width) or any(mu.shape != (width,) for mu in mus):
        raise ValueError(f"expected T >= 1, last ({batch}, {width}) and each mu ({width},)")
    xp = get_xp(x)
    ys = [xp.empty(x.shape, x.dtype) for _ in mus]
    for n, piece in _pieces(x):
        xx = _before(x, last, n, piece)
        difference = x[n, piece] - xx
        for y, mu in zip(ys, mus, strict=True):
            xp.multiply(difference, mu, out=y[n, piece])
            y[n, piece] += xx
    return (*ys, x[:, -1].copy()), (x, last, *mus)


@token_shift.vjp
def token_shift_vjp(gs, x, last, *mus):
    # dx_t = sum mu g_t + sum (1 - mu) g_{t+1};  dlast = sum (1 - mu) g_0;  dmu = sum over b, t of g (x - xx)
    xp = get_xp(x)
    dx, dlast, dmus = xp.empty_like(x), xp.zeros_like(last), [xp.zeros_like(mu) for mu in mus]
    used = [(g, mu, dmu) for g, mu, dmu in zip(gs, mus, dmus, strict=False) if g is not None]
    for n, piece in _pieces(x):
        difference = x[n, piece] - _before(x, last, n, piece)
        to_now, to_before = xp.zeros_like(difference), xp.zeros_like(difference)
        product, ones = xp.empty_like(difference), xp.ones(len(difference), x.dtype)
        for g, mu, dmu in used:
            dmu += ones @ xp.multiply(g[n, piece], difference, out=product)
            to_now += xp.multiply(g[n, piece], mu, out=product)
            to_before += g[n, piece]
        to_before -= to_now
        to_now[:-1] += to_before[1:]
        dx[n, piece] = to_now
        before = dlast[n] if piece.start == 0 else dx[n, piece.start - 1]
        before += to_before[0]
    if gs[-1] is not None:
        dx[:, -1] += gs[-1]
    return dx, dlast, *dmus
