"""Every op with arrays of a GPU: the numbers of NumPy, all of them on the GPU, and nothing that waits for it."""

from __future__ import annotations

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.inspect import cases
from tinyrec.inspect.cases import call_of
from tinyrec.ops.embedding import ONE_HOT, add_rows
from tinyrec.recurrences.aft import aft_full
from tinyrec.recurrences.scan import scan
from tinyrec.tape import Tensor
from tinyrec.walk import grad, is_float

MOST = 2000  # numbers in an argument: kernels run in fibers here
CASES = [
    pytest.param(case, id=f"{name.removeprefix('tinyrec.')}-{i}")
    for name, found in cases().items()
    for i, case in enumerate(found)
    if not name.startswith("tinyrec.recurrences.") or case.args[0].size < MOST
]


def outputs_and_gradients(case, move=lambda x: x):
    """The outputs, and the gradients for all of them together, under random cotangents."""
    fn = call_of(case._replace(static={key: move(x) for key, x in case.static.items()}))
    leaves = [
        Tensor(move(a), True) if is_float(a) and i not in case.constants else move(a) for i, a in enumerate(case.args)
    ]
    ys, total = fn(*leaves), 0.0
    ys = ys if isinstance(ys, tuple) else (ys,)
    for k, y in enumerate(ys):
        total = total + (y * move(np.random.default_rng([9, k]).standard_normal(y.shape))).sum()
    return [y.data for y in ys] + grad(total, [x for x in leaves if type(x) is Tensor])


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_numpy_and_stay_on_the_gpu(case, cupy, placed):
    tol = 1e-11 if "recurrences" in case.op.__module__ else 1e-12
    for x, y in zip(outputs_and_gradients(case, placed), outputs_and_gradients(case), strict=True):
        assert isinstance(x, cupy.ndarray), "a result lies on the host"
        assert x.dtype == y.dtype
        assert_close(x, y, tol)


# By name: why the host must know. Everything else must not wait, forward and back.
MAY_WAIT = {"ops.softmax.cross_entropy": 1}  # the mean asks how many targets are scored; training sums


@pytest.mark.parametrize(("spread", "fine"), [(100.0, True), (340.0, True), (370.0, False)])
def test_aft_takes_one_form_and_says_nan_where_that_would_be_wrong(cupy, placed, spread, fine):
    """In float32 NumPy takes the other form beyond 44."""
    rng = np.random.default_rng(4)
    k, v, w = (rng.standard_normal(shape).astype("float32") for shape in ((2, 7, 5), (2, 7, 5), (7, 7)))
    k[1, 4, 2] = spread + k[1, :4, 2].min()
    g = rng.standard_normal((2, 7, 5)).astype("float32")
    leaves = [[Tensor(move(x), True) for x in (k, v, w)] for move in (placed, lambda x: x)]
    ys = [aft_full(*xs) for xs in leaves]
    there, here = (
        [y.data, *grad(y, xs, move(g))] for y, xs, move in zip(ys, leaves, (placed, lambda x: x), strict=True)
    )
    for x, y in zip(there, here, strict=True):
        assert x.dtype == "float32"
        if fine:
            assert_close(x, y, 1e-5)
        else:
            assert np.isnan(x.get()).all()


@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_the_gpu(case, double, tables, placed):
    name = f"{case.op.__module__}.{case.op.__name__}".removeprefix("tinyrec.")
    index = case.static.get("index")
    if isinstance(index, np.ndarray) and index.dtype.kind == "b":
        pytest.skip("how large a result is, a mask alone knows")
    outputs_and_gradients(case, placed)
    assert len(tables.waits) <= MAY_WAIT.get(name, 0), tables.waits


def test_a_table_longer_than_one_product(cupy, placed):
    rng = np.random.default_rng(6)
    tokens, g = rng.integers(0, ONE_HOT + 5, (3, 400)), rng.standard_normal((3, 400, 2))
    there = add_rows(placed(g), placed(tokens), n_rows=ONE_HOT + 5)
    assert_close(there, add_rows(g, tokens, n_rows=ONE_HOT + 5), 1e-13)


def test_a_scan_so_long_that_time_is_cut_into_chunks(cupy, placed):
    draw = np.random.default_rng(8)
    a, b, h_init, dh, dh_last = (draw.uniform(0.2, 0.9, shape) for shape in ((460, 3), (460, 3), 3, (460, 3), 3))
    found = []
    for move in (placed, lambda x: x):
        leaves = [Tensor(move(x), True) for x in (a, b, h_init)]
        h, last = scan(*leaves)
        found.append([h.data, last.data, *grad((h * move(dh)).sum() + (last * move(dh_last)).sum(), leaves)])
    for x, y in zip(*found, strict=True):
        assert isinstance(x, cupy.ndarray)
        assert_close(x, y, 1e-12)
