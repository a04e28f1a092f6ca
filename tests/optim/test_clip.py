"""Clipping by the global norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec.optim import clip_by_global_norm
from tinyrec.tape import Tensor

SHAPES = {"w": (4, 3), "b": (5,), "scale": (), "kernel": (2, 3, 2)}


def random_params(rng, shapes=SHAPES, dtype=np.float64):
    return [(name, Tensor(np.asarray(rng.normal(size=s), dtype), requires_grad=True)) for name, s in shapes.items()]


def set_grads(params, rng, scale=1.0):
    for _, tensor in params:
        tensor.grad = np.asarray(scale * rng.normal(size=tensor.shape), tensor.dtype)


@given(seed=st.integers(0, 2**32 - 1), max_norm=st.floats(1e-3, 1e3), scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]))
def test_clipping(seed, max_norm, scale):
    rng = np.random.default_rng(seed)
    params = random_params(rng)
    set_grads(params, rng, scale)
    dict(params)["kernel"].grad = None
    dict(params)["w"].grad = np.asfortranarray(dict(params)["w"].grad)
    before = {name: tensor.grad for name, tensor in params if tensor.grad is not None}
    copies = {name: g.copy() for name, g in before.items()}
    expected = np.linalg.norm(np.concatenate([g.ravel() for g in before.values()]))

    assert clip_by_global_norm(params, max_norm) == pytest.approx(expected, rel=1e-12)
    factor = min(1.0, max_norm / expected) if expected else 1.0
    for name, g in before.items():
        np.testing.assert_allclose(dict(params)[name].grad, g * factor, rtol=1e-12)
        assert np.array_equal(g, copies[name])  # the array itself is untouched: it may be shared
    assert dict(params)["kernel"].grad is None


def test_clipping_scales_a_shared_gradient_once_for_each_leaf():
    x, y = (Tensor(np.ones(8), requires_grad=True) for _ in range(2))
    x.grad = y.grad = np.ones(8)
    assert clip_by_global_norm([("x", x), ("y", y)], 1.0) == pytest.approx(4.0)
    assert np.array_equal(x.grad, np.full(8, 0.25)) and np.array_equal(y.grad, x.grad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_norm_that_is_not_finite_is_returned_and_nothing_is_scaled(bad):
    params = random_params(np.random.default_rng(12), dtype=np.float32)
    set_grads(params, np.random.default_rng(13))
    dict(params)["w"].grad[1, 2] = bad  # (1e30)^2 is beyond float32
    before = {name: tensor.grad for name, tensor in params}
    assert not math.isfinite(clip_by_global_norm(params, 1.0))
    assert all(tensor.grad is before[name] for name, tensor in params)


def test_clipping_edges():
    params = random_params(np.random.default_rng(14))
    assert clip_by_global_norm(params, 1.0) == 0.0  # no gradients at all
    set_grads(params, np.random.default_rng(15))
    assert type(clip_by_global_norm(params, math.inf)) is float
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="max_norm must be positive"):
            clip_by_global_norm(params, bad)
