"""Initial values. Numbers are drawn in float64 from the caller's Generator, then rounded: every dtype starts alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..tape import Tensor


def normal(rng: np.random.Generator, shape: tuple[int, ...], std: float, dtype: Any = "float32") -> Tensor:
    """A parameter with entries N(0, std^2)."""
    return Tensor((rng.standard_normal(shape) * std).astype(dtype), requires_grad=True)


def lecun_normal(
    rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, dtype: Any = "float32", scale: float = 1.0
) -> Tensor:
    """A parameter with entries N(0, scale / fan_in): the sum of fan_in unit inputs has variance `scale`."""
    return normal(rng, shape, (scale / fan_in) ** 0.5, dtype)


def zeros(shape: tuple[int, ...], dtype: Any = "float32") -> Tensor:
    return Tensor(np.zeros(shape, dtype), requires_grad=True)
