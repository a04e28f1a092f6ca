"""Tiny models of the Griffin family with every parameter away from its initial value, so that no path is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinyrec.models import build, make_config
from tinyrec.nn import parameters

TINY = dict(vocab_size=11, d_model=8, n_layers=3, d_rnn=12, n_heads=2, gate_blocks=3, mlp_expansion=2, window=3)
NAMES = ("hawk", "griffin", "transformer")


def tiny(name: str, dtype: Any = "float64", seed: int = 0, **overrides: Any) -> Any:
    rng = np.random.default_rng([seed, 1])
    model = build(name, make_config(name, **{**TINY, **overrides}), rng, dtype)
    for key, tensor in parameters(model):
        if key.endswith("conv_w"):
            tensor.data += 0.5 * rng.standard_normal(tensor.shape)  # as large as the other weights
        elif not key.endswith("lam"):
            tensor.data += 0.2 * rng.standard_normal(tensor.shape)
    return model


@pytest.fixture(scope="session", name="tiny")
def tiny_fixture() -> Callable:
    return tiny


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param
