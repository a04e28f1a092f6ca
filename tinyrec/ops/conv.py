"""Causal depthwise convolution over time, cut at document starts, with the last inputs carried as state."""

from __future__ import annotations

from ..backend import fill_where, get_xp, on_gpu
from ..tape import fused
from .shape import concat, getitem

TILE = 64 * 1024  # elements


def naive(x, w, b, state, *, positions=None):
    """The definition, one op at a time: u_t = b + sum_j w[W-1-j] x_{t-j}; shapes as in `causal_conv`. Slow."""
    taps, time = w.shape[0], x.shape[1]
    padded = concat(state, x, axis=1)  # (B, W-1+T, E): the input at time t - j stands at W-1 + t - j
    u = b
    for j in range(taps):
        shifted = getitem(padded, index=(slice(None), slice(taps - 1 - j, taps - 1 - j + time)))
        if positions is not None:
            shifted = shifted * (positions >= j)[..., None]
        u = u + getitem(w, index=taps - 1 - j) * shifted
    return u, getitem(padded, index=(slice(None), slice(time, None)))


def _few_steps(padded, w, positions):
    """The sum of (W, E) products for each step: T calls. padded (B, W-1+T, E) -> (B, T, E)."""
    taps, time = w.shape[0], padded.shape[1] - w.shape[0] + 1
    xp = get_xp(padded)
    u = xp.empty((padded.shape[0], time, padded.shape[2]), padded.dtype)
    for t in range(time):
        window = padded[:, t : t + taps]
        if positions is not None:
            window = window * (positions[:, t, None] >= xp.arange(taps - 1, -1, -1))[..., None]
        (window * w).sum(axis=1, out=u[:, t])
    return u


def _many_steps(padded, w, positions):
    """The same, one tap for all steps at once: W calls, on as much of the batch at a time as fits the cache."""
    taps, time = w.shape[0], padded.shape[1] - w.shape[0] + 1
    u = padded[:, taps - 1 :] * w[taps - 1]
    rows_at_once = max(1, TILE // (time * padded.shape[2]))
    for n in range(0, len(padded), rows_at_once):
        rows = slice(n, n + rows_at_once)
        for j in range(1, taps):
            product = padded[rows, taps - 1 - j : taps - 1 - j + time] * w[taps - 1 - j]
            if positions is not None:
                fill_where(product, positions[rows] < j, 0.0)
            u[rows] += product
    return u


@fused(naive)
def causal_conv(x, w, b, state, *, positions=None):
    """u (B, T, E), new state (B, W-1, E) of x (B, T, E), taps w (W, E), bias b (E,), state (B, W-1, E).

    u_t = b + sum_{j<W} w[W-1-j] x_{t-j}, so w[W-1] meets the present; times before 0 are in `state`, oldest first.
    positions (B, T): places inside the document; an input from before the document's start does not count.
    """
    xp = get_xp(x)
    (batch, time, width), taps = x.shape, w.shape[0]
    if w.shape != (taps, width) or b.shape != (width,) or state.shape != (batch, taps - 1, width):
        raise ValueError(f"expected w (W, {width}), b ({width},) and state ({batch}, W-1, {width})")
    padded = xp.concatenate([state, x], axis=1)
    u = _few_steps(padded, w, positions) if time < taps else _many_steps(padded, w, positions)
    u += b
    return (u, padded[:, time:].copy()), (padded, w, positions)


@causal_conv.vjp
def causal_conv_vjp(gs, padded, w, positions):
    # dx_s = sum_j w[W-1-j] M_j[s+j] du_{s+j};  dw[W-1-j] = sum_{b,t} M_j[t] du_t x_{t-j};  db = sum du
    du, dlast = gs
    xp = get_xp(padded)
    taps = w.shape[0]
    batch, time = padded.shape[0], padded.shape[1] - taps + 1
    dpadded, dw, db = xp.zeros_like(padded), xp.zeros_like(w), xp.zeros(w.shape[1:], w.dtype)
    ones = xp.ones(time, w.dtype)
    product = xp.empty((time, w.shape[1]), w.dtype)
    for n in range(batch if du is not None else 0):
        db += ones @ du[n]
        for j in range(taps):
            g = du[n]
            if positions is not None and (on_gpu(du) or (positions[n] < j).any()):
                g = g * (positions[n] >= j)[:, None]
            here = slice(taps - 1 - j, taps - 1 - j + time)
            xp.multiply(g, padded[n, here], out=product)
            dw[taps - 1 - j] += ones @ product
            xp.multiply(g, w[taps - 1 - j], out=product)
            dpadded[n, here] += product
    if dlast is not None:
        dpadded[:, time:] += dlast
    return dpadded[:, taps - 1 :], dw, db, dpadded[:, : taps - 1]
