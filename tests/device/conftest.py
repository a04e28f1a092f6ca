"""Tests of the path that arrays of a GPU take: on the double of CuPy, and unchanged on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyrec.backend import import_cupy


def load_double() -> Any:
    spec = importlib.util.spec_from_file_location("cupy_double", Path(__file__).with_name("cupy_double.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tables() -> Any:
    """The file of the double itself: its tables, and what it notes."""
    return load_double()


@pytest.fixture(scope="session")
def the_double(tables) -> Any:
    """One module for all tests, so that each kernel is compiled once."""
    return tables.make()


@pytest.fixture
def double(monkeypatch, cpp, tables, the_double) -> Any:
    """The double in CuPy's place, with nothing noted yet."""
    monkeypatch.setitem(sys.modules, "cupy", the_double)
    tables.waits.clear()
    tables.copies.clear()
    return the_double


@pytest.fixture(params=["double", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request) -> Any:
    """The double, or CuPy."""
    return request.getfixturevalue("double") if request.param == "double" else import_cupy()


def placed(x: Any) -> Any:
    """A case, a state, an index: every NumPy array in tuples and lists copied to the GPU."""
    if isinstance(x, tuple | list):
        return type(x)(map(placed, x))
    return import_cupy().asarray(x) if isinstance(x, np.ndarray) else x


@pytest.fixture(scope="session", name="placed")
def placed_fixture() -> Callable:
    return placed
