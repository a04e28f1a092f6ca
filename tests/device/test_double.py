"""The double itself: each misuse is refused, each wait is noted, and what CuPy allows works."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinyrec import ops
from tinyrec.backend import fill_where, get_xp, import_cupy, on_gpu, row_dots, to_cpu, to_floats, to_gpu
from tinyrec.check import gradcheck
from tinyrec.cuda.launch import launch, synchronised
from tinyrec.tape import Tensor, op

TEXT = """
extern "C" __global__ void twice(const real* x, real* y, int n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 2 * x[i];
}
"""


@pytest.fixture
def x(double):
    """(2, 3): 0, 1, ... 5."""
    return double.asarray(np.arange(6.0).reshape(2, 3))


HOST = np.ones((2, 3))
MISUSES = {
    "NumPy on the right": lambda xp, x: x * HOST,
    "NumPy on the left": lambda xp, x: HOST * x,
    "NumPy in place": lambda xp, x: x.__iadd__(HOST),
    "into NumPy": lambda xp, x: HOST.copy().__iadd__(x),
    "NumPy in a function": lambda xp, x: xp.maximum(x, HOST),
    "NumPy in a list": lambda xp, x: xp.stack([x, HOST]),
    "NumPy as out": lambda xp, x: xp.exp(x, out=HOST.copy()),
    "NumPy as an index": lambda xp, x: x[np.array([0])],
    "NumPy assigned": lambda xp, x: x.__setitem__(..., HOST),
    "assigned to NumPy": lambda xp, x: HOST.copy().__setitem__(..., x),
    "NumPy as a mask": lambda xp, x: xp.copyto(x, 0.0, where=HOST > 0),
    "NumPy compared": lambda xp, x: x > HOST,
    "np.asarray": lambda xp, x: np.asarray(x),
    "np.float64(array)": lambda xp, x: np.asarray(x.sum(), np.float64),
    "a NumPy ufunc": lambda xp, x: np.exp(x),
    "a NumPy function": lambda xp, x: np.concatenate([x, x]),
    "a NumPy reduction": lambda xp, x: np.sum(x),
    "a list for an array": lambda xp, x: x + [1.0, 2.0, 3.0],
    "a list as an index": lambda xp, x: x[[0, 1]],
    "a list of arrays": lambda xp, x: xp.asarray([x, x]),
    "where=": lambda xp, x: xp.exp(x, where=x > 0),
    "sum(where=)": lambda xp, x: x.sum(where=x > 0),
    "max(initial=)": lambda xp, x: x.max(initial=0.0),
    "too many arguments": lambda xp, x: xp.broadcast_to(x, (2, 3), True),
    "range": lambda xp, x: range(x.astype("int64")[0, 1]),
    "in": lambda xp, x: 3.0 in x,
    "hash": lambda xp, x: hash(x),
    "None": lambda xp, x: x == None,  # noqa: E711
    "onto itself": lambda xp, x: x.__setitem__((slice(None), slice(1, None)), x[:, :-1]),
    "into a broadcast": lambda xp, x: xp.broadcast_to(x, (5, 2, 3)).__iadd__(1.0),
    "float32 += complex": lambda xp, x: x.__iadd__(1j),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_misuse_is_refused(double, x, misuse):
    with pytest.raises((TypeError, ValueError)):
        misuse(double, x)


@pytest.mark.parametrize("name", ["random", "vecdot", "errstate", "newaxis", "float128"])
def test_names_that_are_not_in_the_tables_do_not_exist(double, name):
    with pytest.raises(AttributeError, match=f"the double of CuPy has no {name}"):
        getattr(double, name)


def test_arrays_have_no_more_than_cupys(double, x):
    for name in ("ctypes", "setflags", "tofile", "newbyteorder"):
        assert not hasattr(x, name)
    with pytest.raises(AttributeError):
        x.flags.writeable = False
    assert not isinstance(x, np.ndarray)


WAITS = {
    "float": lambda xp, x: float(x.sum()),
    "int": lambda xp, x: int(x[0, 1]),
    "bool": lambda xp, x: bool((x > 0).any()),
    "if": lambda xp, x: 1 if (x > 0).all() else 2,
    "item": lambda xp, x: x.sum().item(),
    "tolist": lambda xp, x: x.tolist(),
    "get": lambda xp, x: x.get(),
    "to_cpu": lambda xp, x: to_cpu(x),
    "format": lambda xp, x: f"{x.sum()}",
    "repr": lambda xp, x: repr(x),
    "a mask read": lambda xp, x: x[x > 1],
    "a mask written": lambda xp, x: x.__setitem__(x > 1, 0.0),
    "a mask added to": lambda xp, x: xp.add.at(x, x > 1, 1.0),
    "synchronize": lambda xp, x: xp.cuda.get_current_stream().synchronize(),
    "to_floats": lambda xp, x: to_floats([x.sum(), x.max(), 2.0]),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_what_waits_is_noted(double, tables, x, wait):
    wait(double, x)
    assert len(tables.waits) == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda xp, x: xp.where(x > 1, x, 0.0) * np.float32(2) + 1,
        lambda xp, x: x[:, 1:].sum(axis=0, keepdims=True).max() / 3.0,
        lambda xp, x: x[xp.asarray(np.array([1, 0]))],
        lambda xp, x: xp.copyto(x, -math.inf, where=x > 1),
        lambda xp, x: fill_where(x, x[:, 0] > 1, 0.0),
        lambda xp, x: row_dots(x, x),
        lambda xp, x: (x @ x.T).swapaxes(0, 1).astype("float32").reshape(-1),
        lambda xp, x: (x.shape, x.size, len(x), x.dtype, x.flags.c_contiguous, x is None, x.device.id),
    ],
)
def test_work_does_not(double, tables, x, work):
    work(double, x)
    assert tables.waits == []


def test_the_line_that_waits_is_named(double, tables, x):
    to_cpu(x)
    (where,) = tables.waits
    assert where.startswith("get in backend.py:")


def test_copies_to_the_gpu_are_noted(double, tables):
    tables.copies.clear()
    x = to_gpu(np.ones(3))
    double.asarray([3])
    assert to_gpu(x) is x and double.asarray(x) is x
    assert [what.split()[0] for what in tables.copies] == ["asarray", "asarray"]


def test_numbers_are_numpys(double, x):
    """Results, dtypes, and arrays () where NumPy has scalars."""
    here = x.get()
    assert x.sum().shape == () and type(x.sum()) is double.ndarray and float(x.sum()) == here.sum()
    assert (np.float32(3) * x.astype("float32")).dtype == np.float32
    assert (2.0 * x.astype("float32")).dtype == np.float32 and (np.float64(2) * x.astype("float32")).dtype == np.float64
    np.testing.assert_array_equal((1.0 - x / 4 + x**2).get(), 1.0 - here / 4 + here**2)
    np.testing.assert_array_equal((2.0**x).get(), 2.0**here)
    np.testing.assert_array_equal(abs(-x).T.get(), here.T)
    y = x[0, 0]
    y += 7.0  # an array () is a view
    assert float(x[0, 0]) == 7.0
    assert np.isnan(double.empty(3).get()).all()  # poisoned, as np.empty is


def test_an_index_out_of_range_wraps_around(double, x):
    np.testing.assert_array_equal(x[:, double.asarray(np.array([3, -4, 7]))].get(), x.get()[:, [0, 2, 1]])


def test_nothing_warns(double):
    assert double.exp(double.full(2, 1e3)).get().tolist() == [math.inf, math.inf]
    assert np.isnan((double.zeros(2) / 0.0).get()).all()


# --- what the library makes of it -------------------------------------------------------------------------------------


def test_the_array_decides(double, x):
    assert get_xp(x) is get_xp(1.0, HOST, x) is import_cupy() is double
    assert on_gpu(x) and not on_gpu(HOST) and not on_gpu(2.0)


@pytest.mark.parametrize("xp", ["numpy", "gpu"])
def test_what_numpy_and_cupy_do_not_do_alike(cupy, xp):
    move = (lambda a: a) if xp == "numpy" else to_gpu
    rng = np.random.default_rng(0)
    a, b, mask = rng.standard_normal((4, 3, 5)), rng.standard_normal((3, 5)), rng.random((4, 3)) > 0.5
    np.testing.assert_allclose(to_cpu(row_dots(move(a), move(b))), (a * b).sum(-1), rtol=1e-12)
    filled = move(a.copy())
    fill_where(filled, move(mask), 7.0)
    np.testing.assert_array_equal(to_cpu(filled), np.where(mask[..., None], 7.0, a))
    found = to_floats([move(a).sum(), move(np.float32([1.5])).max(), 2])
    assert found == pytest.approx([a.sum(), 1.5, 2.0], rel=1e-12) and {type(x) for x in found} == {float}


def test_an_op_that_says_np_is_caught(double, x):
    @op
    def careless_exp(x):
        return np.exp(x), ()

    @op
    def careless_mask(x):
        return x * np.tri(2, 3), ()

    for careless in (careless_exp, careless_mask):
        careless(x.get())
        with pytest.raises(TypeError):
            careless(x)


def test_a_tensor_on_either_side(cupy):
    x, w = to_gpu(np.ones((2, 3))), Tensor(to_gpu(np.full((2, 3), 2.0)), requires_grad=True)
    for y in (x + w, w + x, x * w, 3.0 * w, x - w, x / w, (x @ w.transpose())):
        assert type(y) is Tensor and isinstance(y.data, cupy.ndarray) and y.node is not None


def test_gradients_are_checked_on_the_gpu_too(cupy):
    rng = np.random.default_rng(1)
    x, w = (to_gpu(rng.standard_normal(shape)) for shape in ((2, 3), (3, 4)))
    gradcheck(lambda x, w: ops.tanh(ops.matmul(x, w)), x, w, order=2)


# --- kernels ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def twice(double):
    return double.RawModule(code=TEXT, options=("-Dreal=double",)).get_function("twice")


def test_a_kernel_runs(double, x, twice):
    y = double.empty((2, 3))
    twice((1,), (8,), (x, y, np.int32(6)))
    np.testing.assert_array_equal(y.get(), 2 * x.get())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda xp, x, y: (x.get(), y, np.int32(6)),
        lambda xp, x, y: (x, y, 6),
        lambda xp, x, y: (x, y, np.int64(6)),
        lambda xp, x, y: (x, None, np.int32(6)),
        lambda xp, x, y: (x, y.astype("float32"), np.int32(6)),
        lambda xp, x, y: (x, np.uint64(0), np.int32(6)),
    ],
)
def test_a_kernel_takes_what_a_gpu_would(double, x, twice, wrong):
    with pytest.raises(TypeError):
        twice((1,), (8,), wrong(double, x, double.empty((2, 3))))


def test_shared_memory_must_be_asked_for(double, x, twice):
    args = x, double.empty((2, 3)), np.int32(6)
    with pytest.raises(RuntimeError, match="49153 bytes"):
        twice((1,), (8,), args, shared_mem=49153)
    twice.max_dynamic_shared_size_bytes = 65536
    twice((1,), (8,), args, shared_mem=49153)
    with pytest.raises(RuntimeError, match="INVALID_VALUE"):
        twice.max_dynamic_shared_size_bytes = 10**6


def test_the_launch_waits_only_when_it_is_told_to(double, tables):
    a, b, h_init, h = (double.asarray(np.full(shape, 0.5)) for shape in ((4, 3), (4, 3), (3,), (4, 3)))
    launch("scan", "scan_forward", a, b, h_init, h, 4, 3, threads=3)
    assert tables.waits == []
    with synchronised():
        launch("scan", "scan_forward", a, b, h_init, h, 4, 3, threads=3)
    assert len(tables.waits) == 1
    with pytest.raises(TypeError, match=r"a is a numpy\.ndarray, expected a cupy\.ndarray"):
        launch("scan", "scan_forward", a.get(), b, h_init, h, 4, 3, threads=3)
