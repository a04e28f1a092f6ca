"""Ops that move numbers without changing them, and the sum, which is the gradient of a broadcast.

A gradient of a move is the move back: broadcast <-> sum, getitem <-> scatter, concat <-> split, pad <-> getitem.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ..backend import get_xp
from ..tape import array_of, op

Shape = tuple[int, ...]


def shape_of(x: Any) -> Shape:
    """The shape of an array, a Tensor or a Python number, which is ()."""
    return getattr(x, "shape", ())


def kept_shape(shape: Shape, axis: int | Shape | None) -> Shape:
    """The shape that a reduction over `axis` has with keepdims=True."""
    if axis is None:
        return (1,) * len(shape)
    axes = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def unbroadcast(g: Any, shape: Shape) -> Any:
    """Sum the gradient of a broadcast array over the axes along which it was repeated; the result has `shape`."""
    if g.shape == shape:
        return g
    new = g.ndim - len(shape)
    repeated = tuple(i + new for i, n in enumerate(shape) if n == 1 and g.shape[i + new] != 1)
    return reshape(sum(g, axis=tuple(range(new)) + repeated), shape=shape)


@op
def sum(x, *, axis: int | Shape | None = None, keepdims: bool = False):
    return x.sum(axis=axis, keepdims=keepdims), (x.shape, axis)


@sum.vjp
def sum_vjp(g, x_shape, axis):  # every summand gets g
    return broadcast_to(reshape(g, shape=kept_shape(x_shape, axis)), shape=x_shape)


@op
def broadcast_to(x, *, shape: Shape):
    return get_xp(x).broadcast_to(x, shape), (x.shape,)


@broadcast_to.vjp
def broadcast_to_vjp(g, x_shape):
    return unbroadcast(g, x_shape)


@op
def reshape(x, *, shape: Shape):
    return x.reshape(shape), (x.shape,)


@reshape.vjp
def reshape_vjp(g, x_shape):
    return reshape(g, shape=x_shape)


@op
def transpose(x, *, axes: Shape | None = None):
    """Permute the axes as `axes` says; None swaps the last two."""
    if axes is None:
        return x.swapaxes(-1, -2), (None,)
    return x.transpose(axes), (tuple(a % x.ndim for a in axes),)


@transpose.vjp
def transpose_vjp(g, axes):  # the inverse permutation
    return transpose(g, axes=None if axes is None else tuple(axes.index(i) for i in range(len(axes))))


@op
def getitem(x, *, index: Any):
    """x[index]: slices, integers, None, Ellipsis, integer arrays and boolean masks."""
    y = x[index]
    return y, (index, x.shape)


@getitem.vjp
def getitem_vjp(g, index, x_shape):
    return scatter(g, index=index, shape=x_shape)


@op
def scatter(g, *, index: Any, shape: Shape):
    """An array of zeros of `shape` into which g (x[index].shape) is added at `index`; repeated places add up."""
    xp = get_xp(g)
    out = xp.zeros(shape, g.dtype)
    parts = index if isinstance(index, tuple) else (index,)
    if any(hasattr(i, "dtype") or isinstance(i, list) for i in parts):
        xp.add.at(out, index, g)  # integer arrays may name a place twice
    else:
        out[index] = g
    return out, (index,)


@scatter.vjp
def scatter_vjp(g, index):
    return getitem(g, index=index)


def _along(axis: int, ndim: int, start: int, stop: int | None) -> tuple[slice, ...]:
    """The index that cuts [start, stop) out of `axis` and leaves the others whole."""
    return (slice(None),) * (axis % ndim) + (slice(start, stop),)


@op
def concat(*xs, axis: int = 0):
    return get_xp(*xs).concatenate(xs, axis=axis), (tuple(x.shape[axis] for x in xs), axis)


@concat.vjp
def concat_vjp(g, sizes, axis):
    starts = [0]
    for n in sizes:
        starts.append(starts[-1] + n)
    return tuple(getitem(g, index=_along(axis, g.ndim, a, b)) for a, b in pairwise(starts))


@op
def stack(*xs, axis: int = 0):
    return get_xp(*xs).stack(xs, axis=axis), (axis,)


@stack.vjp
def stack_vjp(g, axis):
    index = (slice(None),) * (axis % g.ndim)
    return tuple(getitem(g, index=(*index, i)) for i in range(g.shape[axis]))


@op
def split(x, *, sizes: Shape, axis: int = -1):
    """Cut x along `axis` into pieces of the given sizes (views), which must add up."""
    stops = [0]
    for n in sizes:
        stops.append(stops[-1] + n)
    if stops[-1] != x.shape[axis]:
        raise ValueError(f"sizes {tuple(sizes)} add up to {stops[-1]}, axis {axis} of x has {x.shape[axis]}")
    pieces = tuple(x[_along(axis, x.ndim, a, b)] for a, b in pairwise(stops))
    return pieces, (x.shape, tuple(sizes), axis)


@split.vjp
def split_vjp(gs, x_shape, sizes, axis):
    some = next(g for g in gs if g is not None)
    axis %= len(x_shape)
    shapes = [(*x_shape[:axis], n, *x_shape[axis + 1 :]) for n in sizes]
    zeros = get_xp(array_of(some)).zeros
    return concat(*(zeros(s, some.dtype) if g is None else g for g, s in zip(gs, shapes, strict=True)), axis=axis)


@op
def pad(x, *, widths: tuple[tuple[int, int], ...]):
    """x with widths[i] = (before, after) zeros around axis i."""
    return get_xp(x).pad(x, widths), (widths, x.shape)


@pad.vjp
def pad_vjp(g, widths, x_shape):
    return getitem(g, index=tuple(slice(b, b + n) for (b, _), n in zip(widths, x_shape, strict=True)))


def skewed(x, shift: int, width: int):
    """y (r, width), y[t, j] = x[t, shift + t - j], 0 outside of x (r, n): from steps back to places, or the reverse.

    No op: for arrays alone.
    """
    xp, (rows, columns) = get_xp(x), x.shape
    before, after = max(0, width - 1 - shift), max(0, shift + rows - columns)
    padded = xp.zeros((rows, before + columns + after), x.dtype)
    padded[:, before : before + columns] = x
    down, right = padded.strides
    start = padded[:, before + shift :]  # the place of y[0, 0]; that of y[t, j] is t down, t right, j left
    return xp.lib.stride_tricks.as_strided(start, (rows, width), (down + right, -right))
