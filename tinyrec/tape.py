"""The tape: it remembers which op made which array, so that walk.py can go back. It knows no formula.

A primitive is two plain functions of arrays, one under the other:

    @op
    def square(x):                    # x (...)
        return x * x, (x,)            # the result, and exactly what the backward will read

    @square.vjp
    def square_vjp(g, x):             # dL/dx = 2 x g
        return 2.0 * g * x

`square(array)` returns an array and records nothing. `square(tensor)` returns a Tensor that knows its Node. Because a
vjp is itself written with ops, it runs at array speed in an ordinary backward and is recorded when `grad` is asked for
a graph (`create_graph=True`): the same text gives the second derivative. docs/tape.md tells the story slowly.

Rules for a forward: positional arguments are the arrays (or Python numbers) that may get a gradient, keyword-only
arguments are static. It returns `(result, saved)`; result may be a tuple of arrays, then the vjp's `g` is a tuple with
None for each output that nothing depends on. It never returns an input array itself (a view is fine).
Rules for a vjp: it takes `(g, *saved)` and returns one gradient per positional argument (None: no gradient). If it has
a keyword `needs`, needs[i] is true for each argument that wants one; it need not compute the others.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array, get_xp, to_cpu


class _Mode(threading.local):
    recording = True  # no_grad switches it off
    checking = False  # nan_check switches it on


mode = _Mode()
_next_id = itertools.count().__next__  # ids count upward, so newest first is a topological order
OPS: dict[str, Op] = {}  # every op ever defined, "module.name" -> Op; the tests and `tinyrec check` walk it


class SecondOrderError(RuntimeError):
    """A second derivative was asked of an op whose backward is raw array code."""


class NonFiniteError(FloatingPointError):
    """NaN or infinity appeared; the message names the op."""


class Leaf:
    """The node of a tensor that the user made: where gradients end."""

    __slots__ = ("grad", "id")
    op, n_outputs = None, 1

    def __init__(self) -> None:
        self.id, self.grad = _next_id(), None


class Node:
    """One recorded call: parents are (node, output index) pairs or None, saved is what the vjp will read."""

    __slots__ = ("array_ids", "id", "many", "n_outputs", "op", "parents", "saved")

    def __init__(self, op: Op, parents: list, saved: tuple, n_outputs: int, array_ids: tuple, many: bool):
        self.id, self.op, self.parents, self.saved = _next_id(), op, parents, saved
        self.n_outputs, self.array_ids, self.many = n_outputs, array_ids, many  # many: it returned a tuple, even of 1


class Tensor:
    """An array (NumPy or CuPy, any shape) and the node that made it; requires_grad=True: a leaf that has `.grad`."""

    __slots__ = ("__weakref__", "data", "index", "node")
    __array_ufunc__ = None  # so that `array * tensor` asks the Tensor

    if TYPE_CHECKING:  # ops/__init__.py binds the real ones
        def _op(self, *args: Any, **static: Any) -> Tensor: ...
        def backward(self, g: Any = None) -> None: ...
        __add__ = __sub__ = __mul__ = __truediv__ = __matmul__ = __pow__ = __neg__ = __getitem__ = _op
        __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rmatmul__ = sum = mean = max = reshape = transpose = _op
    else:  # hidden from type checkers, to whom whatever has an __array__ is an array
        def __array__(self, *_, **__):
            raise TypeError("NumPy would lose this Tensor's history: use an op of tinyrec, or x.data if you mean that")

    def __init__(self, data: Any, requires_grad: bool = False):
        if isinstance(data, Tensor):
            raise TypeError("Tensor(...) takes an array, got a Tensor; use x.detach() to cut the history")
        # A view, so that two Tensors never share one array object: saved arrays are recognised by identity (walk.py).
        self.data = data[...] if hasattr(data, "dtype") else np.asarray(data)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only floating point tensors have gradients, got dtype {self.data.dtype}")
        self.node: Node | Leaf | None = Leaf() if requires_grad else None
        self.index = 0

    @property
    def grad(self) -> Array | None:
        """The gradient that `backward` has added up in this leaf, or None."""
        return self.node.grad if isinstance(self.node, Leaf) else None

    @grad.setter
    def grad(self, value: Array | None) -> None:
        if not isinstance(self.node, Leaf):
            raise ValueError("only a leaf (requires_grad=True, not made by an op) has a .grad to set")
        self.node.grad = value

    requires_grad = property(lambda self: self.node is not None)
    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)

    def detach(self) -> Tensor:
        """The same numbers without a history."""
        return Tensor(self.data)

    def numpy(self) -> np.ndarray:
        return to_cpu(self.data)

    def item(self) -> float:
        return float(self.data.item())

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        made_by = f", from {self.node.op.name}" if isinstance(self.node, Node) else ", leaf" if self.node else ""
        return f"Tensor({np.array2string(self.numpy(), precision=4, threshold=20)}, {self.dtype}{made_by})"


def make(data: Array, node: Node | Leaf | None, index: int) -> Tensor:
    """Tensor(...) without its checks: what ops use."""
    t = object.__new__(Tensor)
    t.data, t.node, t.index = data, node, index
    return t


def array_of(x: Any) -> Any:
    """The array inside of a Tensor; anything else is returned as it is."""
    return x.data if type(x) is Tensor else x


class Op:
    """What the tape knows of a primitive: its two functions, and whether the backward can be differentiated again.

    twin: the naive form of a `fused` op, for second derivatives. surrogate: why the backward is not the derivative.
    """

    def __init__(self, forward: Callable, twin: Callable | None, surrogate: str):
        self.name, self.forward, self.twin, self.surrogate = forward.__name__, forward, twin, surrogate
        self.backward: Callable | None = None
        self.selective = False  # does the backward want to know which arguments need a gradient?

    def describe(self, arrays: list) -> str:
        """`add(x (2, 7), y (5,))`: the call with every shape, for error messages."""
        parameters = inspect.signature(self.forward).parameters.values()
        names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        names += names[-1:] * (len(arrays) - len(names))  # *args repeat their name
        shown = [f"{name} {getattr(a, 'shape', a)}" for name, a in zip(names, arrays, strict=False)]
        return f"{self.name}({', '.join(shown)})"


def _primitive(forward: Callable, twin: Callable | None = None, surrogate: str = "") -> Any:
    """The function that users call: `forward` plus recording. It has the attributes `.op` and `.vjp`."""
    op = Op(forward, twin, surrogate)

    @functools.wraps(forward)
    def call(*args: Any, **static: Any) -> Any:
        arrays: Any = args
        for a in args:
            if type(a) is Tensor:
                arrays = [b.data if type(b) is Tensor else b for b in args]
                break
        try:
            out, saved = forward(*arrays, **static)
        except (ValueError, TypeError, IndexError) as error:
            raise type(error)(f"{op.describe(arrays)}: {error}") from error
        if mode.checking:
            check_finite(out, f"op '{op.name}'", "result")
        if arrays is args:
            return out  # arrays in, arrays out
        many = type(out) is tuple
        node = None
        if mode.recording:
            # (node, output index) of each argument, None for a constant
            parents = [a.node and (a.node, a.index) if type(a) is Tensor else None for a in args]
            if any(parents):
                outs = out if many else (out,)
                node = Node(op, parents, saved, len(outs), (*map(id, arrays), *map(id, outs)), many)
        return tuple([make(o, node, i) for i, o in enumerate(out)]) if many else make(out, node, 0)

    def vjp(backward: Callable) -> Callable:
        op.backward, op.selective = backward, "needs" in inspect.signature(backward).parameters
        return backward

    call.op, call.vjp = op, vjp  # type: ignore[attr-defined]
    OPS[f"{forward.__module__}.{op.name}"] = op
    return call


def op(forward: Callable) -> Any:
    """Make a differentiable primitive. See the top of this file."""
    return _primitive(forward)


def fused(twin: Callable, surrogate: str = "") -> Callable[[Callable], Any]:
    """Like `op`, for a backward of raw array code; asked for a second derivative it raises and names `twin`."""
    return lambda forward: _primitive(forward, twin=twin, surrogate=surrogate)


def surrogate(reason: str) -> Callable[[Callable], Any]:
    """Like `op`, for a backward that is deliberately not the derivative; the reason says why."""
    return lambda forward: _primitive(forward, surrogate=reason)


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing in here (also as a decorator)."""
    before, mode.recording = mode.recording, False
    try:
        yield
    finally:
        mode.recording = before


@contextmanager
def nan_check() -> Iterator[None]:
    """Raise NonFiniteError, naming the op, as soon as a forward or a vjp yields NaN or infinity. Slow: reads all."""
    before, mode.checking = mode.checking, True
    try:
        yield
    finally:
        mode.checking = before


def check_finite(out: Any, who: str, what: str) -> None:
    for a in out if type(out) is tuple else (out,):
        a = a.data if type(a) is Tensor else a
        if hasattr(a, "dtype") and a.dtype.kind == "f" and not get_xp(a).isfinite(a).all():
            raise NonFiniteError(f"{who} gave NaN or infinity in a {what} of shape {a.shape}")
