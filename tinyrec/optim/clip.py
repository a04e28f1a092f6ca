"""One factor for all gradients, so that a single bad batch cannot throw the parameters far away."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ..backend import get_xp
from ..tape import Tensor


def clip_by_global_norm(params: Iterable[tuple[str, Tensor]], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint norm is at most max_norm; return the norm before that.

    The norm is that of all gradients laid end to end. If it is not finite the gradients are left as they are: the
    caller sees it in the result and decides. max_norm = inf only measures. A scaled gradient is a new array, since
    whoever set `.grad` may hold the old one, or have given it to two leaves. On a GPU the host waits once, for the sum.
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    found = [(tensor, g) for _, tensor in params if (g := tensor.grad) is not None]
    if not found:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # squares beyond the dtype give inf, and that is the answer
        flat = [g.ravel("A") for _, g in found]  # "A": a transposed array is not copied
        squares = get_xp(flat[0]).stack([g.dot(g) for g in flat])  # a dot product needs no temporary for g^2
        norm = math.sqrt(float(squares.sum(dtype="float64")))
    if max_norm < norm < math.inf:  # never a division by zero; false for nan
        for tensor, g in found:
            tensor.grad = g * (float(max_norm) / norm)  # a Python float keeps the dtype
    return norm
