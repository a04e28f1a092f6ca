"""Initial values. Numbers are drawn in float64 from the caller's Generator, then rounded: every dtype starts alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..tape import Tensor


def normal(rng: np.random.Generator, shape: tuple[int, ...], std: float, dtype: Any = "float32") -> Tensor:
    """A parameter with entries N(0, std^2)."""
    return Tensor((rng.standard_normal(shape) * std).astype(dtype), requires_grad=True)


def truncated(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """N(0, 1) without what lies beyond 3: such draws are repeated. Their standard deviation is 0.9866."""
    x = rng.standard_normal(shape)
    while (far := abs(x) > 3.0).any():
        x[far] = rng.standard_normal(int(far.sum()))
    return x


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...], std: float, dtype: Any = "float32") -> Tensor:
    """A parameter with entries N(0, std^2) cut off at 3 std; std is that of the whole normal distribution."""
    return Tensor((truncated(rng, shape) * std).astype(dtype), requires_grad=True)


def lecun_normal(
    rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, dtype: Any = "float32", scale: float = 1.0
) -> Tensor:
    """A parameter with entries N(0, scale / fan_in): the sum of fan_in unit inputs has variance `scale`."""
    return normal(rng, shape, (scale / fan_in) ** 0.5, dtype)


def uniform(rng: np.random.Generator, shape: tuple[int, ...], bound: float, dtype: Any = "float32") -> Tensor:
    """A parameter with entries U(-bound, bound)."""
    return Tensor(rng.uniform(-bound, bound, shape).astype(dtype), requires_grad=True)


def orthogonal(rng: np.random.Generator, shape: tuple[int, int], gain: float, dtype: Any = "float32") -> Tensor:
    """A parameter (n, m) with orthogonal columns, or rows if there are fewer rows, of length `gain`.

    Q of the QR decomposition of a Gaussian matrix; with R's diagonal made positive, every Q is equally likely
    (Saxe et al. 2014; Mezzadri 2007).
    """
    long, short = max(shape), min(shape)
    q, r = np.linalg.qr(rng.standard_normal((long, short)))
    q *= np.where(np.diag(r) < 0.0, -gain, gain)
    return Tensor((q if shape[0] >= shape[1] else q.T).astype(dtype), requires_grad=True)


def parameter(values: Any, dtype: Any = "float32") -> Tensor:
    """A parameter with these entries: an array or a list of numbers."""
    return Tensor(np.asarray(values).astype(dtype), requires_grad=True)


def full(shape: tuple[int, ...], value: float, dtype: Any = "float32") -> Tensor:
    """A parameter with all entries `value`."""
    return Tensor(np.full(shape, value, dtype), requires_grad=True)


def zeros(shape: tuple[int, ...], dtype: Any = "float32") -> Tensor:
    return full(shape, 0.0, dtype)
