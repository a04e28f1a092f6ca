"""The diagonal linear recurrence h_t = a_t h_{t-1} + b_t: what RG-LRU, WKV, S6 and QRNN are once their gates are fixed.

Equation numbers are those of docs/recurrences/scan.md. Time is the first axis: one step is then one contiguous row,
which NumPy walks faster than slices [:, t]. Any trailing shape (...), any T >= 1.

Two forms of the same numbers, chosen by the length of a row:
- the loop, two NumPy calls per step: long rows (the work of a call outweighs the call);
- two-level: all chunks of C steps side by side, then a carry over the chunks: short rows, fewer and larger calls.
The kernels have the same two forms, and there it is the number of threads that decides.
"""

from __future__ import annotations

import math

import numpy as np

from ..backend import get_xp
from ..cuda.launch import BLOCK, contiguous, launch, named_build
from ..cuda.switch import kernels_wanted
from ..ops.shape import concat, getitem, stack
from ..tape import array_of, op

SHORT_ROW = 700  # numbers in a row below which two levels beat the loop: `python -m benchmarks scan-rows` measures it
CHUNK = 32
# On a GPU two levels take three launches instead of one and 20 bytes instead of 12, and have a thread for every chunk.
# These are estimates; none was measured on a GPU.
ENOUGH_THREADS = 60_000  # they keep the memory of a large GPU busy: 128 multiprocessors, 15 warps each
LEAST_STEPS = 64  # of a chunk on a GPU, so that the ends of the chunks are few beside its steps
LEAST_CHUNKS = 8  # below it, what more threads gain the more bytes and launches may lose


def naive(a, b, h_init):
    """(1), one step after the other, in ops of the tape. a, b (T, ...), h_init (...) -> h (T, ...), h_last (...)."""
    h, states = h_init, []
    for t in range(a.shape[0]):
        h = getitem(a, index=t) * h + getitem(b, index=t)
        states.append(h)
    return stack(*states), h


@op
def scan(a, b, h_init):
    """h_t = a_t h_{t-1} + b_t for t = 0..T-1 with h_{-1} = h_init.

    a, b (T, ...), h_init (...) -> h (T, ...), h_last (...) = h_{T-1}.
    """
    _check(a, b, h_init)
    xp = get_xp(a)
    h = xp.empty(b.shape, b.dtype)
    if kernels_wanted(xp, "scan"):
        inputs, rows = contiguous(a, b, h_init), h_init.size
        if steps := _chunk_steps(xp, len(a), rows):
            _by_chunks(*inputs, out=h, steps=steps, back=False)
        else:
            launch("scan", "scan_forward", *inputs, h, len(a), rows, threads=rows)
    else:
        scan_into(a, b, h_init, h)
    return (h, h[-1].copy()), (a, h, h_init)


@scan.vjp
def scan_vjp(gs, a, h, h_init):
    dh, dh_last = _filled(gs, a)
    delta, dh_init = adjoint_scan(a, dh, dh_last)  # (3) (4) (7)
    da = times_previous(delta, h, h_init)  # (6)
    return da, delta, dh_init  # (5)


@op
def adjoint_scan(a, g, g_last):
    """The scan backwards in time: delta_t = g_t + a_{t+1} delta_{t+1}, starting with delta_{T-1} = g_{T-1} + g_last.

    a, g (T, ...), g_last (...) -> delta (T, ...), first (...) = a_0 delta_0. It is the transpose of `scan` in
    (b, h_init), so each of the two is the vjp of the other, to any order.
    """
    _check(a, g, g_last)
    xp = get_xp(a)
    delta = xp.empty(g.shape, g.dtype)
    if not kernels_wanted(xp, "scan"):
        return (delta, adjoint_into(a, g, g_last, delta)), (a, delta)
    inputs, rows = contiguous(a, g, g_last), g_last.size
    if steps := _chunk_steps(xp, len(a), rows):
        first = _by_chunks(*inputs, out=delta, steps=steps, back=True).reshape(g_last.shape)
    else:
        first, arrays = xp.empty(g_last.shape, g.dtype), (inputs[0], None, None, *inputs[1:], None, delta)
        launch("scan", "scan_backward", *arrays, first, len(a), rows, threads=rows)
    return (delta, first), (a, delta)


@adjoint_scan.vjp
def adjoint_scan_vjp(gs, a, delta):
    mu, mu_init = _filled(gs, a)
    eta, eta_last = scan(a, mu, mu_init)  # (12)
    return times_previous(delta, eta, mu_init), eta, eta_last  # (14) (13)


@op
def times_previous(delta, h, h_init):
    """delta_t h_{t-1} with h_{-1} = h_init: what da is, in the scan (6)."""
    xp = get_xp(delta)
    out = xp.empty_like(delta)
    out[0] = delta[0] * h_init
    xp.multiply(delta[1:], h[:-1], out=out[1:])
    return out, (delta, h, h_init)


@times_previous.vjp
def times_previous_vjp(g, delta, h, h_init):
    ddelta = times_previous(g, h, h_init)
    product = g * delta
    later = getitem(product, index=slice(1, None))
    dh = concat(later, getitem(product, index=slice(0, 1)) * 0.0)
    return ddelta, dh, getitem(product, index=0)


def _chunk_steps(xp, time: int, rows: int) -> int:
    """How many steps of time a thread takes where the kernels cut it into chunks; 0 where they do not.

    On a CPU they do not, as threads run one after the other there; but a build that somebody names has what a GPU has.
    """
    steps = max(LEAST_STEPS, -(-time * rows // ENOUGH_THREADS))
    one_by_one = xp is np and named_build() is None
    return 0 if one_by_one or time <= (LEAST_CHUNKS - 1) * steps else steps


def _by_chunks(a, b, first, *, out, steps: int, back: bool):
    """(9) (10) (11) by kernels, h written to out (T, ...); or backwards (4), with dh for b and delta for h.

    a, b (T, ...), first (...). Returns the state, or the carry (7), after the last chunk (rows,).
    """
    xp, time, rows = get_xp(a), len(a), first.size
    chunks = -(-time // steps)
    p_last, l_last, ends = (xp.empty((chunks, rows), a.dtype) for _ in range(3))
    sizes, grid = (time, rows, chunks, steps, back), (-(-rows // BLOCK), chunks)
    launch("scan", "scan_ends", a, b, p_last, l_last, *sizes, grid=grid)
    launch("scan", "scan_forward", p_last, l_last, first, ends, chunks, rows, threads=rows)
    launch("scan", "scan_chunks", a, b, first, ends, out, *sizes, grid=grid)
    return ends[-1]


def _check(a, b, h_init) -> None:
    if a.shape != b.shape or a.ndim < 1 or a.shape[0] < 1 or h_init.shape != a.shape[1:]:
        raise ValueError("expected two arrays (T, ...) of one shape with T >= 1, and a state of their shape (...)")


def _filled(gs, a) -> tuple:
    """The cotangents of the outputs (T, ...) and (...), with None replaced by zeros; a (T, ...)."""
    zeros = get_xp(array_of(a)).zeros
    return tuple(zeros(shape, a.dtype) if g is None else g for g, shape in zip(gs, (a.shape, a.shape[1:]), strict=True))


def time_tiles(shape: tuple[int, ...], numbers: int, least: int = 1) -> list[slice]:
    """Cut the time of an array (B, T, C) into tiles of about so many numbers, of `least` steps or more each."""
    batch, time, width = shape
    steps = max(least, numbers // (batch * width))
    return [slice(t, min(t + steps, time)) for t in range(0, time, steps)]


def time_major(x, tile: slice):
    """A contiguous copy (t, B, C) of x[:, tile], x (B, T, C); a copy also when B = 1: callers work in place."""
    return x[:, tile].swapaxes(0, 1).copy()


def scan_into(a, b, h_init, h) -> None:
    """(1) on plain arrays: a, b (T, ...), h_init (...), written to h (T, ...), which must not be a or b."""
    if a.ndim == 1:  # a row that is one number must be an array too, to be written to
        return scan_into(a[:, None], b[:, None], h_init.reshape(1), h[:, None])
    if math.prod(a.shape[1:]) < SHORT_ROW and len(a) >= 4 * CHUNK:
        return _two_level(a, b, h_init, h)
    return _loop(a, b, h_init, h)


def adjoint_into(a, g, g_last, delta):
    """(3) (4) on plain arrays: a, g (T, ...), g_last (...), delta written (it may be g itself).

    Returns a_0 delta_0 (...), which is (7).
    """
    xp = get_xp(a)
    if a.ndim == 1:
        return adjoint_into(a[:, None], g[:, None], g_last.reshape(1), delta[:, None])[0]
    if math.prod(a.shape[1:]) < SHORT_ROW and len(a) >= 4 * CHUNK:
        # Reversed in time it is the plain scan with the coefficients shifted by one.
        shifted = xp.concatenate([xp.ones_like(a[:1]), a[:0:-1]])
        _two_level(shifted, g[::-1], g_last, delta[::-1])
        return a[0] * delta[0]
    multiply, add, carry = xp.multiply, xp.add, g_last.copy()
    for at, gt, dt in zip(a[::-1], g[::-1], delta[::-1], strict=True):
        add(gt, carry, dt)
        multiply(at, dt, carry)
    return carry


def _loop(a, b, h_init, h) -> None:
    """(1), two calls a step."""
    xp = get_xp(a)
    multiply, add, previous = xp.multiply, xp.add, h_init
    for at, bt, ht in zip(a, b, h, strict=True):
        multiply(at, previous, ht)  # the last argument is the result
        add(ht, bt, ht)
        previous = ht


def _two_level(a, b, h_init, h) -> None:
    """(9) (10) (11): C steps of all K = T // C chunks at once, a carry over the chunks, and the correction."""
    xp = get_xp(a)
    n = len(a) // CHUNK
    whole = n * CHUNK
    ac, bc, hc = (x[:whole].reshape(n, CHUNK, *x.shape[1:]) for x in (a, b, h))
    p = xp.empty_like(ac)  # running products inside of each chunk; hc holds the states l started from zero
    p[:, 0], hc[:, 0] = ac[:, 0], bc[:, 0]
    product = xp.empty_like(p[:, 0])
    for c in range(1, CHUNK):
        xp.multiply(ac[:, c], hc[:, c - 1], out=product)  # (9)
        xp.add(product, bc[:, c], out=hc[:, c])
        xp.multiply(ac[:, c], p[:, c - 1], out=p[:, c])
    before = xp.empty_like(hc[:, 0])  # the true state before each chunk
    state = h_init
    for k in range(n):
        before[k] = state
        state = p[k, -1] * state + hc[k, -1]  # (10)
    p *= before[:, None]
    hc += p  # (11)
    for t in range(whole, len(a)):
        h[t] = a[t] * h[t - 1] + b[t]
