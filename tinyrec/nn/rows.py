"""Norms of a few rows (B, C), for decoders, in plain array code.

A decoder at batch 1 spends its time on calls, not on arithmetic. NumPy takes two to three times as long for x / s with
s (1, 1) as for x / y of one shape, and two more calls to make such an s. So the mean of a single row is one dot product
and a number of Python. A GPU would have to be waited for to have one; there it is arrays.
"""

from __future__ import annotations

import math

from ..backend import Array, get_xp, on_gpu, row_dots


def over_rms(x: Array, eps: float) -> Array:
    """x / sqrt(mean x^2 + eps), the mean over the last axis: an RMSNorm without its gain. x (..., C)."""
    width = x.shape[-1]
    if x.size == width and not on_gpu(x):
        row = x.ravel()
        return x / math.sqrt(row.dot(row) / width + eps)
    return x / get_xp(x).sqrt(row_dots(x, x)[..., None] * (1.0 / width) + eps)


def standardized(x: Array, mean: Array, eps: float) -> Array:
    """(x - m) / sqrt(mean (x - m)^2 + eps), m the mean over the last axis: a LayerNorm without gain and bias.

    x (B, C); mean (C,), each number of it 1 / C.
    """
    if len(x) == 1 and not on_gpu(x):
        y = x - x[0].dot(mean)
        row = y[0]
        y /= math.sqrt(row.dot(row) / x.shape[1] + eps)
        return y
    y = x - (x @ mean)[:, None]
    variance = (y * y) @ mean
    variance += eps
    y /= get_xp(x).sqrt(variance)[:, None]
    return y
