"""The norms of decoders: those of ops/norm.py, with one row and with several."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec.check import assert_close
from tinyrec.nn import over_rms, standardized
from tinyrec.ops import layernorm, rmsnorm

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 70))


@given(SIZES, st.integers(0, 2**32 - 1))
def test_they_are_the_norms_without_gain_and_bias(sizes, seed):
    rows, width = sizes
    x = 3 * np.random.default_rng(seed).standard_normal(sizes) + 1
    mean = np.full(width, 1 / width)
    assert_close(over_rms(x, 1e-3), rmsnorm(x, eps=1e-3), 1e-13)
    assert_close(standardized(x, mean, 1e-3), layernorm(x, np.ones(width), np.zeros(width), eps=1e-3), 1e-11)


@pytest.mark.parametrize("shape", [(1, 1, 6), (2, 3, 6)])
def test_over_rms_takes_more_axes(shape):
    x = np.random.default_rng(1).standard_normal(shape)
    assert over_rms(x, 1e-6).shape == shape
    assert_close(over_rms(x, 1e-6), rmsnorm(x), 1e-14)


@pytest.mark.parametrize("rows", [1, 3])
def test_float32_and_the_input_stay(rows):
    x = np.random.default_rng(2).standard_normal((rows, 5)).astype("float32")
    before = x.copy()
    assert over_rms(x, 1e-5).dtype == standardized(x, np.full(5, 0.2, "float32"), 1e-5).dtype == np.float32
    assert np.array_equal(x, before)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_of_zeros_and_one_with_nan(rows):
    mean = np.full(4, 0.25)
    assert not over_rms(np.zeros((rows, 4)), 1e-6).any() and not standardized(np.zeros((rows, 4)), mean, 1e-6).any()
    x = np.full((rows, 4), 1.0)
    x[-1, 2] = np.nan
    for y in (over_rms(x, 1e-6), standardized(x, mean, 1e-6)):
        assert np.isnan(y[-1]).all() and np.isfinite(y[:-1]).all()
