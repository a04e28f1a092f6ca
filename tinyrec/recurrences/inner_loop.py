"""What TTT-Linear and TTT-MLP share: reading tokens in mini-batches, each a step of gradient descent on the weights.

Equation numbers are those of docs/recurrences/ttt_linear.md. The state is a tuple: the arrays of the inner model,
(B, H, n, m) or for a bias (B, H, m), at the start of the current mini-batch, then as many sums of the same shapes: the
gradients of its tokens so far, each times its rate lam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

from ..backend import get_xp, row_dots
from ..ops.shape import concat, getitem, reshape, transpose
from ..tape import Tensor, array_of
from ..walk import grad

GROUP = 4  # mini-batches for which all that need not wait is done at once: more leave the cache, fewer cost more calls


def matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(B, H, m) -> (B, H, 1, m): a bias is one row."""
    return shape if len(shape) == 4 else (*shape[:2], 1, shape[2])


# --- one token after the other, in ops of the tape --------------------------------------------------------------------


def token_by_token(
    gradient: Callable, f: Callable, q: Any, k: Any, v: Any, lam: Any, tau: Any, gain: Any, bias: Any, *state: Any,
    at: int,
) -> tuple:  # fmt: skip
    """(4) and (5) as they are written: z and the state after it.

    gradient(k, v, norm, *weights) gives dl/dweights for one token, f(q, norm, *weights) is the inner model.
    """
    q, k, v, lam = (transpose(x, axes=(0, 2, 1, 3)) for x in (q, k, v, reshape(lam, shape=(*lam.shape, 1))))
    norm, arrays, outputs = (gain, bias), [reshape(x, shape=matrix(x.shape)) for x in state], []
    weights, sums = arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]
    for t in range(q.shape[2]):
        q_t, k_t, v_t, lam_t = (getitem(x, index=(slice(None), slice(None), slice(t, t + 1))) for x in (q, k, v, lam))
        sums = [s + lam_t * g for s, g in zip(sums, gradient(k_t, v_t, norm, *weights), strict=True)]
        tau_t = getitem(tau, index=at)
        moved = [w - tau_t * s for w, s in zip(weights, sums, strict=True)]  # (4)
        outputs.append(f(q_t, norm, *moved))  # (5)
        at += 1
        if at == tau.shape[0]:
            weights, sums, at = moved, [0.0 * s for s in sums], 0
    last = (reshape(x, shape=given.shape) for x, given in zip((*weights, *sums), state, strict=True))
    return transpose(concat(*outputs, axis=2), axes=(0, 2, 1, 3)), *last


def by_the_tape(loss: Callable) -> Callable:
    """The gradient of loss(k, v, norm, *weights) that the tape finds, to be differentiated again."""

    def gradient(k: Any, v: Any, norm: tuple, *weights: Any) -> list:
        leaves = [w if getattr(w, "node", None) else Tensor(array_of(w), requires_grad=True) for w in weights]
        return grad(loss(k, v, norm, *leaves), leaves, create_graph=True)

    return gradient


# --- mini-batches, arrays ---------------------------------------------------------------------------------------------
#
# The bias is one more row of its matrix and reads the feature 1: weights and sums are lists of arrays (B, H, n + 1, o).


def read(
    segment: Callable, q: Any, k: Any, v: Any, lam: Any, tau: Any, gain: Any, bias: Any, *state: Any,
    at: int, checkpoint: int,
) -> tuple:  # fmt: skip
    """What a forward returns: ((z, *last state), saved), of which `read_vjp` reads saved.

    checkpoint = 0 keeps what the backward needs, n only the state before every n mini-batches.

    segment(q, k, v, lam, tau, step, norm, weights, sums) reads N mini-batches, or a part of one: z, the weights and
    sums after it, and what its vjp needs. There v and z are (N, B, H, m, d), q and k have their 1 at the end, lam is
    (N, B, H, m, 1), tau (m, 1), norm gain and bias (H, d); step: the last tau, if a mini-batch ends with these m
    tokens, or None; sums: None where they are 0.
    """
    check(q, k, v, lam, tau, gain, bias, state, at, checkpoint)
    xp = get_xp(q)
    pairs = [xp.concatenate([w, b[:, :, None]], axis=2) for w, b in zip(state[::2], state[1::2], strict=True)]
    weights, sums = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
    z, kept = xp.empty(q.shape, q.dtype), []
    for time, place in segments(q.shape[1], len(tau), at, checkpoint or GROUP):
        before, inputs = (weights, sums), _inputs(q, k, v, lam, tau, gain, bias, time, place)
        _cut(z, time, place)[...], weights, sums, saved = segment(*inputs, weights, sums)
        kept.append((before, None if checkpoint else saved))
    last = (*weights, *(sums or map(xp.zeros_like, weights)))
    return (z, *_apart(last)), (q, k, v, lam, tau, gain, bias, kept, at, checkpoint)


def read_vjp(
    segment: Callable, segment_vjp: Callable, gs: tuple, q: Any, k: Any, v: Any, lam: Any, tau: Any, gain: Any,
    bias: Any, kept: list, at: int, checkpoint: int,
) -> tuple:  # fmt: skip
    """The vjp of `read`, from the last segment to the first; with checkpoints each is read once more beforehand.

    segment_vjp(dz, dweights, dsums, saved) gives the gradients of segment's arguments in their order.
    """
    xp = get_xp(q)
    dz = xp.zeros_like(q) if gs[0] is None else gs[0]
    dlast = [xp.zeros_like(w) for w in kept[0][0][0] * 2]
    for part, g in zip(_apart(dlast), gs[1:], strict=True):
        if g is not None:
            part[...] = g
    dweights, dsums = dlast[: len(dlast) // 2], dlast[len(dlast) // 2 :]
    dq, dk, dv, dlam = dheads = [xp.empty(x.shape, x.dtype) for x in (q, k, v, lam[..., None])]
    dtau, dgain, dbias = (xp.zeros_like(x) for x in (tau, gain, bias))
    cuts = list(segments(q.shape[1], len(tau), at, checkpoint or GROUP))
    for (time, place), (before, saved) in zip(reversed(cuts), reversed(kept), strict=True):
        if saved is None:
            *_, saved = segment(*_inputs(q, k, v, lam, tau, gain, bias, time, place), *before)
        here = _cut(dz, time, place).copy()
        *dviews, dt, dstep, (dg, db), dweights, dsums = segment_vjp(here, dweights, dsums, saved)
        for full, part in zip(dheads, dviews, strict=True):
            _cut(full, time, place)[...] = part
        dtau[place] += dt
        dtau[-1] += dstep
        dgain += dg
        dbias += db
    return dq, dk, dv, dlam[..., 0], dtau, dgain, dbias, *_apart((*dweights, *dsums))


def segments(time: int, size: int, at: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut T tokens into what is left of a mini-batch, whole ones, `most` together, and the rest: of each the tokens,
    and their places in the mini-batch."""
    start = 0
    while start < time:
        whole = 0 if at else (time - start) // size
        stop = start + size * min(whole, most) if whole else min(time, start + size - at)
        yield slice(start, stop), slice(0, size) if whole else slice(at, at + stop - start)
        start, at = stop, 0


def _inputs(
    q: Any, k: Any, v: Any, lam: Any, tau: Any, gain: Any, bias: Any, time: slice, place: slice
) -> tuple:
    q, k, v, lam = (_cut(x, time, place) for x in (q, k, v, lam[..., None]))
    step = tau[-1] if place.stop == len(tau) else None
    return with_one(q), with_one(k), v, lam.copy(), tau[place, None], step, (gain, bias)


def _cut(x: Any, time: slice, place: slice) -> Any:
    """A view (N, B, H, m, n) of these tokens of x (B, T, H, n)."""
    batch, _, heads, n = x.shape
    return x[:, time].reshape(batch, -1, place.stop - place.start, heads, n).transpose(1, 0, 3, 2, 4)


def _apart(arrays: Iterable) -> list:
    """Weights and biases again: (B, H, n + 1, o) -> (B, H, n, o) and (B, H, o)."""
    return [part for x in arrays for part in (x[:, :, :-1], x[:, :, -1])]


# --- what the gradients of m tokens change ----------------------------------------------------------------------------


def with_one(x: Any) -> Any:
    """(..., n) -> (..., n + 1): after the others the feature 1."""
    y = get_xp(x).empty((*x.shape[:-1], x.shape[-1] + 1), x.dtype)
    y[..., :-1] = x
    y[..., -1] = 1.0
    return y


def changes(x: Any, y: Any, lam: Any, tau: Any, step: Any) -> tuple[Any, tuple]:
    """A (..., m + n, m) of (6), and what the vjp reads. x, y (..., m, n), with their 1; lam (..., m, 1), tau (m, 1)."""
    xp, m = get_xp(x), len(tau)
    a = xp.empty((*x.shape[:-2], m + x.shape[-1], m), x.dtype)
    rates = (xp.tri(m, dtype=x.dtype) * tau) * lam.swapaxes(-1, -2)
    scores = x @ y.swapaxes(-1, -2)
    factor = 1.0 if step is None else step
    xp.multiply(rates, scores, out=a[..., :m, :])
    xp.multiply(y.swapaxes(-1, -2), factor * lam.swapaxes(-1, -2), out=a[..., m:, :])
    return a, (x, y, lam, tau, factor, rates, scores)


def changes_vjp(da: Any, x: Any, y: Any, lam: Any, tau: Any, factor: Any, rates: Any, scores: Any) -> tuple:
    """(12): dx and dy (without the 1), dlam, dtau (m,), and that of step."""
    xp, m = get_xp(da), len(tau)
    upper, lower = da[..., :m, :], da[..., m:, :].swapaxes(-1, -2).copy()
    dlam = row_dots(lower, y)[..., None]
    dfactor = xp.vdot(dlam, lam)
    dlam *= factor
    dscores = upper * rates
    dx = dscores @ y[..., :-1]
    dy = dscores.swapaxes(-1, -2) @ x[..., :-1]
    lower *= factor * lam
    dy += lower[..., :-1]
    drates = upper * scores
    drates *= xp.tri(m, dtype=da.dtype)
    dlam += drates.swapaxes(-1, -2) @ tau
    dtau = (drates @ lam).reshape(-1, m).sum(axis=0)
    return dx, dy, dlam, dtau, dfactor


def after(w: Any, s: Any, change: Any, step: Any) -> tuple[Any, Any]:
    """(8): weights and sum after m tokens; change: the lower rows of A G. Weights move where a mini-batch ends."""
    if step is None:
        return w, change if s is None else s + change
    return (w - change if s is None else w - change - step * s), None


def after_vjp(dw: Any, ds: Any, s: Any, step: Any, dchange: Any) -> tuple[Any, Any]:
    """(10): fills dchange; ds of the sum before (None where there is none), and that of step. dw stays as it is."""
    if step is None:
        dchange[...] = ds
        return None if s is None else ds, 0.0
    xp = get_xp(dw)
    xp.negative(dw, out=dchange)
    return None if s is None else -step * dw, 0.0 if s is None else -xp.vdot(dw, s)


def before_vjp(dout: Any, x: Any, s: Any, tau: Any) -> tuple[Any, Any, Any]:
    """(18): what -tau (x s), the effect of the sum from before, gives to dx (without the 1), dtau (m,) and ds."""
    moved = tau * dout
    dtau = -(dout * (x @ s)).sum(axis=(0, 1, 3))
    return -(moved @ s[:, :, :-1].swapaxes(2, 3)), dtau, -(x.swapaxes(2, 3) @ moved)


def check(
    q: Any, k: Any, v: Any, lam: Any, tau: Any, gain: Any, bias: Any, state: tuple, at: int, checkpoint: int
) -> None:
    if not (q.ndim == 4 and q.shape == k.shape == v.shape and q.shape[1] > 0):
        raise ValueError("expected q, k and v of one shape (B, T, H, d) with T >= 1")
    if lam.shape != q.shape[:3] or not gain.shape == bias.shape == q.shape[2:] or tau.ndim != 1:
        raise ValueError(f"expected lam {q.shape[:3]}, tau (K,), gain and bias {q.shape[2:]}")
    batch, _, heads, d = q.shape
    shapes, half = [x.shape for x in state], len(state) // 2
    widths = [d, *(b[-1] for b in shapes[1:half:2])]  # of what goes into each layer, and of what comes out
    layers = [((batch, heads, n, m), (batch, heads, m)) for n, m in pairwise(widths)]
    if widths[-1] != d or shapes != 2 * [shape for layer in layers for shape in layer]:
        raise ValueError(f"expected matrices ({batch}, {heads}, n, m) and biases ({batch}, {heads}, m) that lead from "
                         f"{d} features to {d}, and sums of the same shapes")  # fmt: skip
    if not 0 <= at < len(tau):
        raise ValueError(f"at, the tokens read of a mini-batch of {len(tau)}, must be 0 to {len(tau) - 1}, got {at}")
    if checkpoint < 0:
        raise ValueError(f"checkpoint must be 0 or a number of mini-batches, got {checkpoint}")
