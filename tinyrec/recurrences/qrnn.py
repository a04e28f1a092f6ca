"""QRNN pooling, the recurrence of the quasi-recurrent network (Bradbury et al. 2017, section 2.1).

Equation numbers are those of docs/recurrences/qrnn.md. An LSTM's cell whose gates do not see the state: they come from
a short convolution of the input, made outside for all t at once, and what is left is the diagonal scan.

    zt = tanh(z), ft = sigmoid(f)                               (1)
    it = sigmoid(i), or 1 - ft where no i is given              (2)   ifo-pooling, or f- and fo-pooling
    c_t = ft_t c_{t-1} + it_t zt_t                              (3)   the output gate sigmoid(o) c is another op's
"""

from __future__ import annotations

from ..backend import get_xp
from ..cuda.launch import contiguous, launch
from ..cuda.switch import kernels_wanted
from ..ops.activation import sigmoid, sigmoid_of, tanh
from ..ops.shape import getitem, stack
from ..tape import fused
from .scan import adjoint_into, scan_into, time_tiles

TILE = 48 * 1024  # numbers worked on at a time, 192 kB in float32


def naive(z, f, i, c_init):
    """The definition, one step after the other, in ops of the tape; see `qrnn` for the shapes. Slow."""
    z, f = tanh(z), sigmoid(f)  # (1)
    b = (1.0 - f if i is None else sigmoid(i)) * z  # (2)
    c, cells = c_init, []
    for t in range(z.shape[1]):
        c = getitem(f, index=(slice(None), t)) * c + getitem(b, index=(slice(None), t))  # (3)
        cells.append(c)
    return stack(*cells, axis=1), c


@fused(naive)
def qrnn(z, f, i, c_init):
    """c (B, T, C) and c_last (B, C) of pre-activations z, f, i (B, T, C) and c_init (B, C); i=None: f- or fo-pooling.

    Saves zt, ft, it and c: 16 bytes per element in float32, 12 without i, 4 of them the output's own.
    """
    if z.ndim != 3 or z.shape[1] < 1 or f.shape != z.shape or (i is not None and i.shape != z.shape):
        raise ValueError("expected z, f and i (unless None) of one shape (B, T, C) with T >= 1")
    batch, time, width = z.shape
    if c_init.shape != (batch, width):
        raise ValueError(f"expected c_init ({batch}, {width})")
    xp = get_xp(z)
    if kernels_wanted(xp, "qrnn"):
        c = xp.empty(z.shape, z.dtype)
        launch("qrnn", "qrnn_forward", *contiguous(z, f, i, c_init), c, *z.shape, threads=c_init.size)
        return (c, c[:, -1].copy()), (z, f, i, c, c_init, True)  # the backward makes the gates again
    zs, fs = (xp.empty((time, batch, width), z.dtype) for _ in range(2))  # time first, as the scan reads them
    inputs = None if i is None else xp.empty_like(zs)
    c, state = xp.empty(z.shape, z.dtype), c_init
    for tile in time_tiles(z.shape, TILE):
        zt, ft = zs[tile], fs[tile]
        xp.tanh(z[:, tile].swapaxes(0, 1), out=zt)
        ft[...] = sigmoid_of(f[:, tile].swapaxes(0, 1))  # (1)
        if inputs is None:
            b = 1.0 - ft
            b *= zt
        else:
            inputs[tile] = sigmoid_of(i[:, tile].swapaxes(0, 1))  # (2)
            b = inputs[tile] * zt
        cells = xp.empty_like(zt)
        scan_into(ft, b, state, cells)  # (3)
        state = cells[-1]
        c[:, tile] = cells.swapaxes(0, 1)
    return (c, state.copy()), (zs, fs, inputs, c, c_init)


@qrnn.vjp
def qrnn_vjp(gs, zs, fs, inputs, c, c_init, by_kernel=False):
    xp = get_xp(c)
    dc, dc_last = gs
    if by_kernel:  # zs, fs, inputs: z, f and i
        dc, dc_last = (xp.zeros_like(x) if g is None else g for g, x in zip(gs, (c, c_init), strict=True))
        dz, df, di, dc_init = (None if x is None else xp.empty(x.shape, c.dtype) for x in (zs, fs, inputs, c_init))
        given = contiguous(zs, fs, inputs, c, c_init, dc, dc_last)
        launch("qrnn", "qrnn_backward", *given, dz, df, di, dc_init, *c.shape, threads=c_init.size)
        return dz, df, di, dc_init
    dz, df = xp.empty_like(c), xp.empty_like(c)
    di = None if inputs is None else xp.empty_like(c)
    carry = xp.zeros_like(c_init) if dc_last is None else dc_last
    for tile in reversed(time_tiles(c.shape, TILE)):
        zt, ft = zs[tile], fs[tile]
        delta = xp.zeros_like(zt) if dc is None else dc[:, tile].swapaxes(0, 1).copy()
        carry = adjoint_into(ft, delta, carry, delta)  # (4), and after the last tile (8)
        dft = xp.empty_like(zt)
        dft[0] = c_init if tile.start == 0 else c[:, tile.start - 1]
        dft[1:] = c[:, tile.start : tile.stop - 1].swapaxes(0, 1)  # c_{t-1}
        closing = 1.0 - ft
        if di is None:
            it = closing  # (2)
            dft -= zt  # (6)
        else:
            it = inputs[tile]
            dit = delta * zt  # (5)
            dit *= it
            dit *= 1.0 - it
            di[:, tile] = dit.swapaxes(0, 1)  # (7)
        dft *= delta
        dft *= ft
        dft *= closing
        df[:, tile] = dft.swapaxes(0, 1)  # (7)
        slope = zt * zt
        xp.subtract(1.0, slope, out=slope)
        delta *= it  # (5)
        delta *= slope
        dz[:, tile] = delta.swapaxes(0, 1)  # (7)
    return dz, df, di, carry
