"""LSTM, the long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

Equation numbers are those of docs/recurrences/lstm.md. The cell c is a diagonal recurrence like the others, but its
gates see h_{t-1} through a full matrix: step t cannot begin before step t-1 has ended, and there is no scan.

    p_t = z_t + h_{t-1} w_h                                     (1)   z = x w_x + b for all t at once, outside
    i, f, o = sigmoid(p_t), g = tanh(p_t), a quarter each       (2)   in the order i, f, g, o
    c_t = f_t c_{t-1} + i_t g_t                                 (3)
    h_t = o_t tanh(c_t)                                         (4)
"""

from __future__ import annotations

from ..backend import get_xp
from ..cuda.launch import contiguous, launch
from ..cuda.switch import kernels_wanted
from ..ops.activation import sigmoid, tanh
from ..ops.shape import getitem, split, stack
from ..tape import fused

TILE = 64 * 1024  # gates worked on at a time in the backward, 256 kB in float32


def naive(z, w_h, h_init, c_init):
    """The definition, one step after the other, in ops of the tape; see `lstm` for the shapes. Slow."""
    h, c, states = h_init, c_init, []
    sizes = (w_h.shape[0],) * 4
    for t in range(z.shape[1]):
        p = getitem(z, index=(slice(None), t)) + h @ w_h  # (1)
        i, f, g, o = split(p, sizes=sizes, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)  # (2) (3)
        h = sigmoid(o) * tanh(c)  # (4)
        states.append(h)
    return stack(*states, axis=1), h, c


@fused(naive)
def lstm(z, w_h, h_init, c_init):
    """h (B, T, H), h_last and c_last (B, H) of z (B, T, 4H), w_h (H, 4H), h_init and c_init (B, H).

    z is x w_x + b, its gates in the order i, f, g, o of torch.nn.LSTM; w_h is (in, out). Saves the four gates, c and h:
    24 bytes per element of h in float32, 4 of them the output's own; z is not needed again.
    """
    width = w_h.shape[0]
    if w_h.shape != (width, 4 * width) or z.ndim != 3 or z.shape[1] < 1 or z.shape[2] != 4 * width:
        raise ValueError("expected z (B, T, 4H) with T >= 1 and w_h (H, 4H)")
    batch, time, _ = z.shape
    if h_init.shape != (batch, width) or c_init.shape != (batch, width):
        raise ValueError(f"expected h_init and c_init ({batch}, {width})")
    xp = get_xp(z)
    if kernels_wanted(xp, "lstm"):  # gates, c and h have the batch first
        gates, c, h = (xp.empty((batch, time, n), z.dtype) for n in (4 * width, width, width))
        inputs, sizes = contiguous(z, w_h, h_init, c_init), (batch, time, width)
        launch("lstm", "lstm_forward", *inputs, gates, c, h, *sizes, **_blocks(batch, width))
        return (h, h[:, -1].copy(), c[:, -1].copy()), (gates, c, h, w_h, h_init, c_init)
    gates = xp.empty((time, batch, 4 * width), z.dtype)
    c = xp.empty((time + 1, batch, width), z.dtype)  # c[t] is the cell before step t
    h = xp.empty((batch, time, width), z.dtype)
    c[0], h_t = c_init, h_init
    half = xp.full(4 * width, 0.5, z.dtype)
    half[2 * width : 3 * width] = 1.0  # g is a tanh
    rest = 1.0 - half
    steps = zip(gates, _quarters(gates), z.swapaxes(0, 1), c[:-1], c[1:], h.swapaxes(0, 1), strict=True)
    for p, (i, f, g, o), z_t, before, c_t, out in steps:
        xp.matmul(h_t, w_h, out=p)
        p += z_t  # (1)
        p *= half  # sigmoid(x) = (1 + tanh(x / 2)) / 2, so one tanh serves all four gates, and none overflows (2)
        xp.tanh(p, out=p)
        p *= half
        p += rest
        h_t = xp.multiply(i, g, out=out)
        xp.multiply(f, before, out=c_t)
        c_t += h_t  # (3)
        xp.tanh(c_t, out=h_t)
        h_t *= o  # (4)
    return (h, h[:, -1].copy(), c[-1].copy()), (gates, c, h, w_h, h_init)


def _quarters(gates):
    """gates (t, B, 4H) seen as (t, 4, B, H)."""
    return gates.reshape(*gates.shape[:2], 4, -1).swapaxes(1, 2)


def _slopes(gates, c) -> tuple:
    """What does not wait for the steps after t: factors of (6) and (7), for a tile of gates (t, B, 4H), c (t+1, B, H).

    dp_dc (t, B, 4H): times dc it is dp for i, f, g; its last quarter makes dp of o, times dh. dc_dh (t, B, H).
    """
    xp = get_xp(gates)
    dp_dc = 1.0 - gates
    dp_dc *= gates  # the slope of sigmoid
    i, _, g, o = _quarters(gates).swapaxes(0, 1)
    slope_i, slope_f, slope_g, slope_o = _quarters(dp_dc).swapaxes(0, 1)
    tc = xp.tanh(c[1:])
    slope_i *= g
    slope_f *= c[:-1]
    xp.multiply(g, g, out=slope_g)
    xp.subtract(1.0, slope_g, out=slope_g)  # the slope of tanh
    slope_g *= i
    slope_o *= tc
    tc *= tc
    xp.subtract(1.0, tc, out=tc)
    tc *= o
    return dp_dc, tc


@lstm.vjp
def lstm_vjp(gs, gates, c, h, w_h, h_init, c_init=None):
    xp = get_xp(gates)
    if c_init is not None:  # by the kernel
        gs = (xp.zeros_like(x) if g is None else g for g, x in zip(gs, (h, h_init, h_init), strict=True))
        dz, dh_init, dc_init = (xp.empty(x.shape, h.dtype) for x in (gates, h_init, h_init))
        inputs, outs = contiguous(gates, c, c_init, w_h.T, *gs), (dz, dh_init, dc_init)
        launch("lstm", "lstm_backward", *inputs, *outs, *h.shape, **_blocks(len(h), h.shape[2]))
        return dz, _dw_h(h, h_init, dz), dh_init, dc_init
    time, batch, _ = gates.shape
    dh_out, dh_last, dc_last = gs
    none = xp.zeros_like(h_init)
    dh_out = xp.broadcast_to(none, (time, *none.shape)) if dh_out is None else dh_out.swapaxes(0, 1)
    dh_next = none.copy() if dh_last is None else dh_last.copy()
    dc = none.copy() if dc_last is None else dc_last.copy()
    dh, from_h = xp.empty_like(none), xp.empty_like(none)
    dz = xp.empty((batch, time, gates.shape[2]), gates.dtype)
    w_back = w_h.T.copy()  # a product with a contiguous matrix is faster, and there are T of them
    n = max(1, TILE // gates[0].size)
    for start in reversed(range(0, time, n)):
        tile = slice(start, min(start + n, time))
        dp, dc_dh = _slopes(gates[tile], c[start : tile.stop + 1])
        steps = (x[::-1] for x in (dp, _quarters(dp), _quarters(gates[tile]), dc_dh, dh_out[tile]))
        for dp_t, quarters, (_, f, _, _), dc_dh_t, dh_t in zip(*steps, strict=True):
            xp.add(dh_t, dh_next, out=dh)  # (5)
            xp.multiply(dh, dc_dh_t, out=from_h)
            dc += from_h  # (6)
            quarters[:3] *= dc
            quarters[3] *= dh  # (7)
            dc *= f  # (8)
            xp.matmul(dp_t, w_back, out=dh_next)  # (9)
        dz[:, tile] = dp.swapaxes(0, 1)  # (10)
    return dz, _dw_h(h, h_init, dz), dh_next, dc


def _dw_h(h, h_init, dz):
    h_before = get_xp(h).concatenate([h_init[:, None], h[:, :-1]], axis=1)
    return h_before.reshape(-1, h.shape[2]).T @ dz.reshape(-1, dz.shape[2])  # (11), all steps at once


def _blocks(batch: int, width: int) -> dict:
    """One block per sequence, a thread per unit, of at most 512."""
    return {"grid": (batch,), "block": (min(512, -(-width // 32) * 32),)}
