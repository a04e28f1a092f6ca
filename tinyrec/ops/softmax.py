"""Softmax, and the cross entropy that is fused with it because log(softmax(x)) alone overflows and loses digits."""

from __future__ import annotations

import math

from ..backend import fill_where, get_xp, on_gpu
from ..tape import op
from .shape import sum


def _softmax(x, axis):
    y = x - x.max(axis=axis, keepdims=True)
    get_xp(x).exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


@op
def softmax(x, *, axis: int = -1):
    """y = e^x / sum e^x along `axis`."""
    y = _softmax(x, axis)
    return y, (y, axis)


@softmax.vjp
def softmax_vjp(g, y, axis):  # dx = y (g - sum(g y))
    return y * (g - sum(g * y, axis=axis, keepdims=True))


@op
def cross_entropy(logits, targets, *, ignore_index: int = -1, reduction: str = "mean"):
    """-log softmax(logits)[target] in nats, a scalar.

    logits (..., V), targets (...) integers in [0, V) or `ignore_index`, which scores nothing. reduction "mean" divides
    by the number of scored targets, "sum" does not. Raises ValueError for other targets, shapes, or nothing to score.
    A GPU would have to be waited for to know of a wrong target: there the loss is NaN. For "mean" it is waited for.
    """
    xp = get_xp(logits)
    if targets.shape != logits.shape[:-1]:
        raise ValueError("targets must have the shape of logits without its last axis")
    flat, rows = targets.reshape(-1), logits.reshape(-1, logits.shape[-1])
    scored = flat != ignore_index
    wrong = scored & ((flat < 0) | (flat >= rows.shape[1]))
    if not on_gpu(wrong) and wrong.any():
        raise ValueError(f"target {flat[wrong][0]} is outside of [0, {rows.shape[1]})")
    n = int(scored.sum()) if reduction == "mean" else 1
    if reduction not in ("mean", "sum") or n == 0:
        raise ValueError(f"no target is scored, or reduction {reduction!r} is not 'mean' or 'sum'")
    top = rows.max(axis=1)
    log_total = top + xp.log(xp.exp(rows - top[:, None]).sum(axis=1))
    losses = (log_total - rows[xp.arange(len(flat)), xp.where(scored, flat, 0)]) * scored
    if on_gpu(wrong):
        fill_where(losses, wrong, math.nan)
    return losses.sum() * (1.0 / n), (logits, targets, ignore_index, 1.0 / n)


@cross_entropy.vjp
def cross_entropy_vjp(g, logits, targets, ignore_index, weight):  # dlogits = (softmax - onehot) / n where scored
    return softmax_error(logits, targets, ignore_index=ignore_index) * (g * weight), None


@op
def softmax_error(logits, targets, *, ignore_index: int = -1):
    """softmax(logits) - onehot(targets), zero in the rows that score nothing: (..., V), (...) -> (..., V)."""
    xp = get_xp(logits)
    y = _softmax(logits, -1)
    scored = targets != ignore_index
    rows, flat = y.reshape(-1, y.shape[-1]), targets.reshape(-1)
    rows[xp.arange(len(flat)), xp.where(flat != ignore_index, flat, 0)] -= 1.0
    if on_gpu(scored) or not scored.all():
        y *= scored[..., None]
    return y, (logits, scored)


@softmax_error.vjp
def softmax_error_vjp(g, logits, scored):  # the onehot is a constant, so this is the vjp of softmax
    return softmax_vjp(g * scored[..., None], softmax(logits), -1), None
