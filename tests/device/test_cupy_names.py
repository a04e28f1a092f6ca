"""What the library calls, held against CuPy itself: its names and keywords need no GPU, and neither do its views.

Skipped where CuPy is not installed; it needs no driver for this. Two things are compared with it: every name, method
and keyword in the text of the library, and the tables of the double.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tinyrec
from tinyrec.tape import Tensor

LIBRARY = Path(tinyrec.__file__).parent
FOR_THE_HOST = ("cli", "data", "interop", "inspect", "checkpoint.py", "check.py", "nn/init.py", "cuda/host.py")
FILES = sorted(
    path for path in LIBRARY.rglob("*.py") if not path.relative_to(LIBRARY).as_posix().startswith(FOR_THE_HOST)
)


@pytest.fixture(scope="module")
def real() -> Any:
    """CuPy. Its fixture and not an import at the top: a test that is not run must not load it."""
    if importlib.util.find_spec("cupy") is None:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("needs CuPy, the package cupy-cuda13x; a GPU or its driver it does not need")
    return importlib.import_module("cupy")


# --- what the library says --------------------------------------------------------------------------------------------


class Use(NamedTuple):
    where: str
    name: str  # "linalg.norm", or ".sum" for a method
    keywords: tuple[str, ...] | None  # None: not called
    arguments: int = 0


def is_module(node: ast.AST) -> bool:
    """`xp`, `self.xp` or `get_xp(...)`: NumPy or CuPy."""
    name = node.func if isinstance(node, ast.Call) else node
    return getattr(name, "attr", getattr(name, "id", "")) == ("get_xp" if isinstance(node, ast.Call) else "xp")


def dotted(node: ast.AST) -> str:
    """The name below the module, "linalg.norm"; "" for what is none."""
    if not isinstance(node, ast.Attribute):
        return ""
    if is_module(node.value):
        return node.attr
    above = dotted(node.value)
    return f"{above}.{node.attr}" if above else ""


def aliases(tree: ast.AST) -> dict[str, str]:
    """What stands for a function of the module: `zeros = get_xp(x).zeros`, `multiply, add = xp.multiply, xp.add`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                found |= {a.id: dotted(b) for a, b in pairs if isinstance(a, ast.Name) and dotted(b)}
    return found


def uses(where: str, source: str) -> Iterator[Use]:
    """Every name of the module, every call of it or of an alias, and every call of what may be a method of an array."""
    tree = ast.parse(source)
    known = aliases(tree)
    for node in ast.walk(tree):
        line = f"{where}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and dotted(node):
            yield Use(line, dotted(node), None)
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func) or known.get(getattr(node.func, "id", ""), "")
        if not name and isinstance(node.func, ast.Attribute) and not is_numpy(node.func.value):
            name = f".{node.func.attr}" if hasattr(np.ndarray, node.func.attr) else ""
        if name:
            starred = any(isinstance(a, ast.Starred) for a in node.args)
            keywords = tuple(k.arg for k in node.keywords if k.arg)
            yield Use(line, name, keywords, 0 if starred else len(node.args))


def is_numpy(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("np", "math", "ops")


# --- what CuPy takes --------------------------------------------------------------------------------------------------


class Takes(NamedTuple):
    names: list[str]
    any_number: bool
    any_keyword: bool


def takes(function: Any) -> Takes:
    """The parameters: from the signature, or from the first line of the docstring of what is compiled."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        head = (function.__doc__ or "").split("\n")[0]
        inside = re.search(r"\((.*)\)", head)
        words = [] if inside is None else [word.strip().lstrip("\\") for word in inside[1].split(",")]
        words = [word.partition("=")[0].split()[-1] for word in words if word and word not in ("/", "*", "self")]
        stars = [word for word in words if word.startswith("*")]
        return Takes([word.lstrip("*") for word in words], bool(stars), False)
    kinds = {p.kind for p in parameters}
    names = [p.name for p in parameters if p.name != "self"]
    return Takes(names, inspect.Parameter.VAR_POSITIONAL in kinds, inspect.Parameter.VAR_KEYWORD in kinds)


def lookup(cupy: Any, name: str) -> Any:
    """The object of that name in CuPy, None where there is none."""
    found = cupy
    for part in (f"ndarray{name}" if name.startswith(".") else name).split("."):
        found = getattr(found, part, None)
    return found


def complaint(cupy: Any, use: Use) -> str:
    """What is wrong with a use; "" if nothing is."""
    function = lookup(cupy, use.name)
    if function is None:
        return f"{use.where}: CuPy has no {use.name}"
    if use.keywords is None or not callable(function):
        return ""
    names, any_number, any_keyword = takes(function)
    if (unknown := set(use.keywords) - set(names)) and not any_keyword:
        return f"{use.where}: CuPy's {use.name} takes no {', '.join(sorted(unknown))}="
    if use.arguments > len(names) and not any_number:
        return f"{use.where}: CuPy's {use.name} takes at most {len(names)} arguments, got {use.arguments}"
    return ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_cupy_has_what_the_library_calls(real, path):
    found = list(uses(path.name, path.read_text("utf-8")))
    assert [text for use in found if (text := complaint(real, use))] == []


def test_the_library_is_read_at_all():
    found = {use.name for path in FILES for use in uses(path.name, path.read_text("utf-8"))}
    assert {"exp", "lib.stride_tricks.as_strided", "linalg.norm", ".sum", "add.at", "cuda.Device", "zeros"} <= found


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("xp.vecdot(x, x)", "CuPy has no vecdot"),
        ("get_xp(x).lib.stride_tricks.bogus(x)", "CuPy has no lib.stride_tricks.bogus"),
        ("self.xp.exp(x, where=m)", "exp takes no where="),
        ("zeros = get_xp(x).zeros\nzeros((3,), device='gpu')", "zeros takes no device="),
        ("a, b = xp.multiply, xp.add\nb(x, y, where=m)", "add takes no where="),
        ("xp.sqrt(x, y, z, q, r, s, t)", "takes at most"),
        ("x.sum(axis=0, where=m)", ".sum takes no where="),
        ("x.max(initial=0)", ".max takes no initial="),
        ("x.setflags(write=False)", "CuPy has no .setflags"),
        ("xp.linalg.norm(x, axes=1)", "norm takes no axes="),
    ],
)
def test_what_cupy_lacks_is_found(real, source, said):
    assert any(said in complaint(real, use) for use in uses("x.py", source))


# --- the double -------------------------------------------------------------------------------------------------------


def in_order(ours: list[str], theirs: Takes) -> bool:
    """Are these the first parameters of CuPy's function, but for keywords that are left out?"""
    positions = [theirs.names.index(name) for name in ours if name in theirs.names]
    return len(positions) == len(ours) and positions == sorted(positions)


def test_the_tables_of_the_double_are_cupys(real, tables):
    for name in tables.UFUNCS:
        assert isinstance(getattr(real, name), real.ufunc) and "out" in takes(getattr(real, name)).names, name
        assert getattr(real, name).nin == getattr(np, name).nin, name
    for name, parameters in tables.FUNCTIONS.items():
        ours = [word for word in parameters.split() if not word.startswith("*")]
        assert in_order(ours, takes(lookup(real, name))), name
    for name, parameters in tables.METHODS.items():
        ours = [word for word in parameters.split() if not word.startswith("*")]
        assert in_order(ours, takes(lookup(real, f".{name}"))), name
    for name, value in tables.CONSTANTS.items():
        assert getattr(real, name) is value or np.isnan(value), name
    mine = {name for name in vars(tables.ndarray) if name not in vars(object) and not name.startswith("__slots")}
    assert mine - set(dir(real.ndarray)) == {"_held", "__contains__"}  # the second only to refuse
    assert set(tables.make().__dict__) - {"__name__"} <= set(dir(real))


# --- arrays of CuPy itself --------------------------------------------------------------------------------------------


@pytest.fixture
def array(real) -> Callable:
    """A function that makes an array of CuPy with memory of the host behind it: whatever launches nothing works."""
    memory = np.zeros(1 << 12)

    def make(shape: tuple, dtype: str = "float32") -> Any:
        where = real.cuda.UnownedMemory(memory.ctypes.data, memory.nbytes, memory, device_id=0)
        return real.ndarray(shape, dtype, real.cuda.MemoryPointer(where, 0))

    return make


VIEWS = {
    "x.T": lambda xp, x: x.T,
    "index": lambda xp, x: x[1, :, None, ::-2],
    "number": lambda xp, x: x[1, 2, 3],
    "ellipsis": lambda xp, x: x[...],
    "reshape": lambda xp, x: x.reshape(-1, 6),
    "reshape of a part": lambda xp, x: x[:, 1:].reshape(2, 2, 3, 2),
    "swapaxes": lambda xp, x: x.swapaxes(0, 2),
    "transpose": lambda xp, x: x.transpose(2, 0, 1),
    "complex": lambda xp, x: x.view("complex64"),
    "complex of a part": lambda xp, x: x[..., :4].view("complex64"),
    "real": lambda xp, x: x.view("complex64").real,
    "ravel": lambda xp, x: x.T.ravel("A"),
    "broadcast": lambda xp, x: xp.broadcast_to(x[:, None], (2, 5, 3, 6)),
    "strided": lambda xp, x: xp.lib.stride_tricks.as_strided(x[0, 0, 3:], (2, 3), (4, -4)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_the_views_of_the_double_are_cupys(real, array, tables, the_double, view):
    theirs, ours = view(real, array((2, 3, 6))), view(the_double, tables.held(np.zeros((2, 3, 6), "float32")))
    assert type(theirs) is real.ndarray
    for name in ("shape", "strides", "dtype", "size", "ndim", "nbytes"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("c_contiguous", "f_contiguous"):
        assert getattr(ours.flags, name) == getattr(theirs.flags, name), name


def test_a_tensor_is_asked_before_an_array_of_cupy(array, monkeypatch):
    """`array * tensor` is the Tensor's to answer, or its history would be lost."""
    asked = []
    for name in ("add", "sub", "mul", "truediv", "matmul"):
        monkeypatch.setattr(Tensor, f"__r{name}__", lambda self, other, name=name: asked.append(name))
    x, t = array((2, 2)), Tensor(np.ones((2, 2)))
    x + t, x - t, x * t, x / t, x @ t
    assert asked == ["add", "sub", "mul", "truediv", "matmul"]


def test_what_cupy_refuses_without_a_gpu(array):
    x = array((2, 3))
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    with pytest.raises(TypeError):
        range(5)[x[0, 0]]
    with pytest.raises(IndexError):
        x[2]
    assert not hasattr(x.flags, "writeable")
