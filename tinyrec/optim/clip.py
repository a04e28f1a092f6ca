"""One factor for all gradients, so that a single bad batch cannot throw the parameters far away."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend import get_xp, to_floats
from ..tape import Tensor


def global_norm(params: Iterable[tuple[str, Tensor]]) -> Any:
    """The norm of all gradients laid end to end, a float64 array (), so that a GPU is not waited for; 0.0 for none."""
    flat = [g.ravel("A") for _, tensor in params if (g := tensor.grad) is not None]  # "A": no copy of a transposed one
    if not flat:
        return 0.0
    xp = get_xp(flat[0])
    with np.errstate(over="ignore", invalid="ignore"):  # squares beyond the dtype give inf, and that is the answer
        squares = xp.stack([g.dot(g) for g in flat])  # a dot product needs no temporary for g^2
        return xp.sqrt(squares.sum(dtype="float64"))


def clip_by_global_norm(
    params: Iterable[tuple[str, Tensor]], max_norm: float, norm: float | None = None
) -> float:
    """Scale all gradients by one factor so that their joint norm is at most max_norm; return the norm before that.

    The norm is `global_norm`. If it is not finite the gradients are left as they are: the
    caller sees it in the result and decides. max_norm = inf only measures. A scaled gradient is a new array, since
    whoever set `.grad` may hold the old one, or have given it to two leaves. norm: `global_norm` of these gradients,
    where the caller has it; otherwise a GPU is waited for.
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    params = list(params)
    if norm is None:
        (norm,) = to_floats([global_norm(params)])
    if max_norm < norm < math.inf:  # never a division by zero; false for nan
        for _, tensor in params:
            if tensor.grad is not None:
                tensor.grad = tensor.grad * (float(max_norm) / norm)  # a Python float keeps the dtype
    return norm
