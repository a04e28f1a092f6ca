"""Tiny models with every parameter away from its initial value, so that no path is silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tinyrec.models import MODELS, build, make_config
from tinyrec.nn import parameters
from tinyrec.tape import array_of

TINY: dict[str, dict] = {
    "griffin": dict(d_model=8, n_layers=3, d_rnn=12, n_heads=2, gate_blocks=3, mlp_expansion=2, window=3),
    "huginn": dict(d_model=8, n_heads=2, d_mlp=7, n_core=2, mean_steps=3, grad_steps=2),
    "rwkv4": dict(d_model=6, n_layers=3, ffn_expansion=2),
    "mamba": dict(d_model=6, n_layers=2, d_state=3, dt_rank=2),
    "ttt": dict(d_model=12, n_layers=2, n_heads=2, mini_batch=3, d_mlp=5, conv_width=3),
    "baseline": dict(d_model=6, n_layers=2, mlp_expansion=2, window=3, max_length=40, rank=4),
}
AS_THEY_ARE = {"lam", "a_log", "time_decay"}  # spread over decades: a little noise would change nothing of it


def tiny(name: str, dtype: Any = "float64", seed: int = 0, **overrides: Any) -> Any:
    rng = np.random.default_rng([seed, 1])
    sizes = {"vocab_size": 11, **TINY[MODELS[name].family]}
    model = build(name, make_config(name, **{**sizes, **overrides}), rng, dtype)
    for key, tensor in parameters(model):
        last = key.rpartition(".")[2]
        if last not in AS_THEY_ARE:  # a convolution's taps start far smaller than the other weights
            tensor.data += (0.5 if last == "conv_w" else 0.2) * rng.standard_normal(tensor.shape)
    return model


def arrays_in(state: Any) -> Iterator[Any]:
    """Every floating point array in a state: nested tuples, or a KVCache."""
    if isinstance(state, tuple):
        for part in state:
            yield from arrays_in(part)
    elif hasattr(state, "keys"):
        yield from (state.keys, state.values)
    elif np.asarray(array_of(state)).dtype.kind == "f":
        yield array_of(state)


class Shaped:
    """Stands in for an array of which only the shape matters."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.size, self.ndim, self.dtype = shape, int(np.prod(shape)), len(shape), np.dtype("float32")

    def __mul__(self, _: Any) -> Shaped:
        return self

    __getitem__ = astype = __mul__


class ShapedRandom:
    """Stands in for a Generator, so that a model of gigabytes is counted without being made."""

    standard_normal = staticmethod(Shaped)

    @staticmethod
    def uniform(low: float, high: float, size: Any) -> Any:
        return Shaped(size) if isinstance(size, tuple) else np.full(size, low)


@pytest.fixture(scope="session")
def shaped_random() -> ShapedRandom:
    return ShapedRandom()


@pytest.fixture(scope="session", name="tiny")
def tiny_fixture() -> Callable:
    return tiny


@pytest.fixture(scope="session", name="arrays_in")
def arrays_in_fixture() -> Callable:
    return arrays_in


@pytest.fixture(params=["hawk", "griffin", "transformer"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=MODELS)
def any_name(request: pytest.FixtureRequest) -> str:
    return request.param
