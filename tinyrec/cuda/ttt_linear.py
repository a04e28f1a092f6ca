"""The launches of ttt_linear.cu: the forward and the vjp of recurrences.ttt_linear, with its arguments.

The kernels have the bias as the last row of its matrix: w and s (B, H, d + 1, d).
"""

from __future__ import annotations

from typing import Any

from ..backend import Array, get_xp
from .launch import contiguous, launch, shared_limit

MOST = 256  # threads in a block
ROWS = 4  # of a product that one thread makes


def forward(
    q: Array, k: Array, v: Array, lam: Array, tau: Array, gain: Array, bias: Array, *state: Array,
    at: int, checkpoint: int,
) -> tuple[tuple, tuple]:  # fmt: skip
    """(z, w, b, gw, gb), and what `backward` reads. checkpoint: n mini-batches between two saved weights; 0 is 1."""
    xp = get_xp(q)
    w, s = contiguous(*(xp.concatenate([x, y[:, :, None]], axis=2) for x, y in (state[:2], state[2:])))
    inputs, every = contiguous(q, k, v, lam, tau, gain, bias), checkpoint or 1
    z, w_last, s_last, g = (xp.empty(x.shape, q.dtype) for x in (q, w, s, q))
    pieces = (at + q.shape[1] - 1) // len(tau) + 1
    saved = xp.empty(((pieces - 1) // every + 1, *w.shape), q.dtype)
    _start("ttt_linear_forward", q, tau, at, saved, every, *inputs, w, s, z, w_last, s_last, g, saved)
    return (z, *_apart(w_last), *_apart(s_last)), (*inputs, (s, g, saved, every), at, checkpoint)


def backward(
    gs: tuple, q: Array, k: Array, v: Array, lam: Array, tau: Array, gain: Array, bias: Array, kept: tuple,
    at: int, checkpoint: int,
) -> tuple:  # fmt: skip
    """The gradients of forward's arguments, in their order; gs may have None."""
    xp, (s, g, saved, every) = get_xp(q), kept
    dlast = [xp.zeros_like(s) for _ in range(2)]
    for part, given in zip((*_apart(dlast[0]), *_apart(dlast[1])), gs[1:], strict=True):
        if given is not None:
            part[...] = given
    dz = xp.zeros_like(q) if gs[0] is None else contiguous(gs[0])[0]
    shapes = [q.shape, q.shape, q.shape, lam.shape, (*s.shape[:2], len(tau)), *[(len(q), *gain.shape)] * 2]
    grads = [xp.empty(shape, q.dtype) for shape in (*shapes, s.shape, s.shape)]
    inputs = q, k, v, lam, tau, gain, bias
    _start("ttt_linear_backward", q, tau, at, saved, every, *inputs, s, g, saved, dz, *dlast, *grads)
    *views, dtau, dgain, dbias, dw, ds = grads
    return *views, dtau.sum(axis=(0, 1)), dgain.sum(axis=0), dbias.sum(axis=0), *_apart(dw), *_apart(ds)


def _start(name: str, q: Array, tau: Array, at: int, saved: Array, every: int, *args: Any) -> None:
    (batch, time, heads, d), size = q.shape, len(tau)
    most = min(size, time)  # tokens of a mini-batch, at once
    threads = min(MOST, -(-(-(-most // ROWS) * d) // 32) * 32)
    row, square = (d + 1) | 1, most * (most | 1)
    forward = (d + 1) * row + 4 * most * row + square
    backward = 2 * (d + 1) * row + 6 * most * row + 2 * square + threads // 32 * (2 * d + 1) + size
    limit = shared_limit(get_xp(q))
    if limit < backward * q.itemsize:  # also before a forward: a training must not end at its first backward
        asked = f"heads of {d} numbers and mini-batches of {most} tokens need {backward * q.itemsize} bytes"
        raise ValueError(f"ttt_linear: {asked} of shared memory, a block of this GPU has {limit}")
    sizes = batch, time, heads, d, d + 1, size, at, len(saved), every
    needed = (forward if name == "ttt_linear_forward" else backward) * q.itemsize
    launch("ttt_linear", name, *args, *sizes, grid=(batch * heads,), block=(threads,), shared_mem=needed)


def _apart(x: Array) -> tuple[Array, Array]:
    return x[:, :, :-1], x[:, :, -1]
