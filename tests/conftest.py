"""What every test runs under: poisoned fresh memory, reproducible hypothesis, GPU tests only where there is a GPU."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest

from tinyrec.cuda.host import CompilerError, compiler
from tinyrec.tape import OPS, Tensor
from tinyrec.walk import grad, is_float

# deadline: the two test processes share their cores, so a slow example says nothing about the code.
hypothesis.settings.register_profile("here", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


def poison(array: Any) -> Any:
    """Fill a fresh array, in place, with values that cannot pass for a result: NaN, NaT, the largest integer, True."""
    kind = getattr(getattr(array, "dtype", None), "kind", "")  # "" for what is no array at all
    if kind in "fc":
        array.fill(np.nan)
    elif kind in "iu":
        array.fill(np.iinfo(array.dtype).max)
    elif kind == "b":
        array.fill(True)
    elif kind in "mM":
        array.fill("NaT")
    return array  # strings, records and objects are born empty or have no such value


def poisoned(allocate: Callable) -> Callable:
    """np.empty or np.empty_like, but what it returns is poisoned."""

    @functools.wraps(allocate)
    def empty(*args: Any, **keywords: Any) -> Any:
        return poison(allocate(*args, **keywords))

    return empty


@functools.cache
def cupy_with_a_device() -> Any:
    """The cupy module, or None where it is not installed or finds no GPU."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy if cupy.cuda.is_available() else None


@pytest.fixture(autouse=True, scope="session")
def poison_fresh_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fresh memory is often zero by luck, and code that forgets to write all of it passes. Under test it never is."""
    modules = [np]
    if any(item.get_closest_marker("gpu") for item in request.session.items) and cupy_with_a_device():
        modules.append(cupy_with_a_device())
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "empty", poisoned(module.empty))
            patch.setattr(module, "empty_like", poisoned(module.empty_like))
        yield


def outputs_and_gradients(fn: Callable, *args: Any, use: tuple[int, ...] | None = None, **static: Any) -> list:
    """The outputs of fn, then the gradient of each float argument, as arrays.

    The loss is the sum of the outputs numbered in `use` (None: all), each times random numbers of its own. The
    arguments cannot be written to, so an op that works in place on its inputs fails.
    """
    leaves = []
    for a in args:
        if is_float(a):
            a = a.copy()
            a.flags.writeable = False
            a = Tensor(a, requires_grad=True)
        leaves.append(a)
    outs = fn(*leaves, **static)
    outs = outs if isinstance(outs, tuple) else (outs,)
    loss: Any = 0.0
    for k, y in enumerate(outs):
        cotangent = np.random.default_rng([11, k]).standard_normal(y.shape).astype(y.dtype)
        if use is None or k in use:
            loss = loss + (y * cotangent).sum()
    return [y.data for y in outs] + grad(loss, [a for a in leaves if type(a) is Tensor])


@pytest.fixture(scope="session", name="outputs_and_gradients")
def outputs_and_gradients_fixture() -> Callable:
    return outputs_and_gradients


@pytest.fixture(scope="session")
def assert_same() -> Callable:
    """assert_same(fn, twin, *args, tol=...): outputs and all gradients of two functions agree.

    To tol of the largest entry, or of 1 where all are smaller: a gradient that is zero has only rounding to compare.
    """

    def check(fn: Callable, twin: Callable, *args: Any, tol: float = 1e-11, **keywords: Any) -> None:
        ours, theirs = (outputs_and_gradients(f, *args, **keywords) for f in (fn, twin))
        assert len(ours) == len(theirs)
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert a.shape == b.shape
            scale = max(1.0, np.abs(b).max(initial=0.0))
            np.testing.assert_allclose(a, b, rtol=0, atol=tol * scale, err_msg=f"output or gradient {k}")

    return check


@pytest.fixture(scope="session")
def cpp() -> str:
    """Ask for it in every test that compiles a kernel for the CPU: skipped, with that reason, where no compiler is.

    But not where `CI` is set: there a compiler that went missing must not look like a success.
    """
    try:
        return compiler()
    except CompilerError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and cupy_with_a_device() is None:
        pytest.skip("needs CuPy and a CUDA GPU")


@pytest.fixture(autouse=True)
def forget_toy_ops():
    """Ops that a test defines do not stay in the registry, where the table of cases would miss them."""
    known = dict(OPS)
    yield
    OPS.clear()
    OPS.update(known)
