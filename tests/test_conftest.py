"""The poison of conftest.py reaches fresh arrays of every kind, and changes nothing else about them."""

import numpy as np
import pytest


class Named(np.ndarray):
    """A subclass, as np.empty_like keeps it."""


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
def test_fresh_floats_are_nan(dtype):
    for fresh in (np.empty((2, 3), dtype), np.empty(shape=(4,), dtype=dtype), np.empty_like(np.ones((2, 3), dtype))):
        assert fresh.dtype == dtype and np.isnan(fresh).all()


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, np.uint64])
def test_fresh_integers_are_their_largest_value(dtype):
    assert (np.empty(5, dtype) == np.iinfo(dtype).max).all()
    assert (np.empty_like(np.ones(5), dtype=dtype) == np.iinfo(dtype).max).all()


def test_booleans_and_times():
    assert np.empty(3, bool).all()
    assert np.isnat(np.empty(3, "datetime64[s]")).all() and np.isnat(np.empty(3, "timedelta64[s]")).all()


def test_the_rest_of_the_contract_is_numpys():
    assert np.empty(()).shape == () and np.empty(0).size == 0 and np.empty((2, 3), order="F").flags.f_contiguous
    assert list(np.empty(2, object)) == [None, None]
    assert np.empty(2, "U3").dtype == "U3" and np.empty(2, [("x", "f4")]).dtype.names == ("x",)
    named = np.zeros((2, 3)).view(Named)
    assert type(np.empty_like(named)) is Named and np.isnan(np.empty_like(named)).all()
    assert type(np.empty_like(named, subok=False)) is np.ndarray
    assert np.empty_like(named, shape=(4, 5)).shape == (4, 5)
    assert (named == 0).all()


def test_memory_that_numpy_fills_stays_clean():
    assert (np.zeros(3) == 0).all() and (np.ones_like(np.empty(3)) == 1).all() and (np.full(3, 2.0) == 2).all()


def test_code_that_leaves_a_row_unwritten_is_caught():
    def running_sum(x):  # forgets the first row
        y = np.empty_like(x)
        for t in range(1, len(x)):
            y[t] = x[: t + 1].sum(axis=0)
        return y

    x = np.ones((5, 2))
    assert np.isnan(running_sum(x)[0]).all() and not np.isnan(running_sum(x)[1:]).any()


@pytest.mark.gpu
def test_fresh_gpu_memory_is_nan():
    cupy = pytest.importorskip("cupy")
    assert bool(cupy.isnan(cupy.empty((2, 3), cupy.float32)).all())
