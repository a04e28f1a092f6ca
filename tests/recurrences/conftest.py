"""Arguments for TTT-Linear and TTT-MLP."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


def ttt_arguments(kind: str, seed: int, batch: int, time: int, heads: int, width: int, size: int, dtype="float64"):
    """q, k, v, lam, tau, gain, bias, the weights, and sums as in the middle of a mini-batch of `size`.

    Everything is of order one, so that no row of k w + b is so nearly constant that LayerNorm blows up its rounding.
    """
    rng = np.random.default_rng([seed, 3])
    normal, tokens = rng.standard_normal, (batch, time, heads)
    hidden = width + 2
    layers = [(width, width)] if kind == "linear" else [(width, hidden), (hidden, width)]
    shapes = [(batch, heads, *shape) for n, m in layers for shape in ((n, m), (m,))]
    q, k, v = (normal((*tokens, width)) for _ in range(3))
    lam, tau = rng.uniform(0.05, 0.4, tokens), rng.uniform(0.2, 1.0, size)
    gain, bias = 1.0 + 0.3 * normal((heads, width)), 0.3 * normal((heads, width))
    weights = [normal(shape) * (shape[2] ** -0.5 if len(shape) == 4 else 0.5) for shape in shapes]
    sums = [0.3 * normal(shape) for shape in shapes]
    return [x.astype(dtype) for x in (q, k, v, lam, tau, gain, bias, *weights, *sums)]


@pytest.fixture(scope="session", name="ttt_arguments")
def ttt_arguments_fixture() -> Callable:
    return ttt_arguments
