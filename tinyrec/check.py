"""Is a gradient right? Compare it with finite differences; for our ops and for yours.

    gradcheck(my_op, x, w)             # raises GradcheckError, with the place, where the gradient is wrong
    gradcheck(my_op, x, w, order=2)    # and the gradient of the gradient

A backward turns a cotangent v into J^T v, where J = dy/dx is never written down. For a random tangent u

    <v, J u> = <J^T v, u>

must hold: on the left the slope of <v, f(x + t u)> at t = 0 from four more forwards, however large x is; on the right
what the backward says. Random directions see every entry of J with probability one. The sum of the outputs as a loss
(v = 1) would not: there the gradients of softmax and of the norms are zero, and any backward passes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .backend import Array, get_xp, to_cpu
from .tape import Node, Op, Tensor, array_of, make
from .walk import grad, is_float

EPS = 3e-4  # the step: kinks (of relu, max, clip) must be farther than 2 EPS u from every input
# f'(0) = sum of weight * (f(step * EPS) - f(-step * EPS)) / EPS, with an error of order EPS^4 = 1e-14 beside the
# rounding's 1e-16 / EPS = 3e-13.
STENCIL = ((1, 8 / 12), (2, -1 / 12))
FLOOR = 1e-4  # see _check


class GradcheckError(AssertionError):
    """A gradient disagrees with finite differences; the message says where."""


class Report(NamedTuple):
    """The largest relative error of first order, and of second order (None: not asked for)."""

    name: str
    first: float
    second: float | None = None


def gradcheck(
    fn: Callable, *inputs: Any, order: int = 1, eps: float = EPS, seed: int = 0, tol: float = 1e-7,
    constants: Sequence[int] = (), name: str = "",
) -> Report:
    """Compare the gradients of fn(*inputs) with central differences in float64. Raises GradcheckError above `tol`.

    Floating point inputs (arrays or Tensors) are differentiated, save those whose numbers are in `constants`; integers,
    booleans, None and Python numbers are constants too. fn is made of ops and returns a Tensor or a tuple of them, each
    of which is also checked alone. Write inputs of order one: the step is absolute. order=2 also checks the gradient of
    the gradient.
    """
    if order not in (1, 2):
        raise ValueError(f"gradcheck: order must be 1 or 2, got {order}")
    name = name or getattr(fn, "__name__", "function")
    given = [array_of(a) for a in inputs]
    which = [i for i, a in enumerate(given) if is_float(a) and i not in constants]
    if not which:
        raise ValueError(f"gradcheck of {name}: no input is a floating point array")
    _check_kinds(fn, given, which, name)

    wide = [_frozen(a) if is_float(a) else a for a in given]
    n_outputs = len(_call(fn, wide, name))
    functions = [fn] if n_outputs == 1 else [fn, *(_only(fn, k, name) for k in range(n_outputs))]
    labels = _argument_names(fn, len(inputs))
    first, second = 0.0, 0.0
    for f in functions:
        first = max(first, _check(f, wide, which, eps, seed, tol, name, labels))
        if order == 2:
            v = _draw(seed, 1, _call(f, wide, name))  # an input of the gradient, like the others
            arguments, labels_g = [*wide, *v], [*labels, *("g" for _ in v)]
            which_g = [*which, *range(len(wide), len(arguments))]
            gradient = _gradient_of(f, which, len(wide), name)
            second = max(second, _check(gradient, arguments, which_g, eps, seed, tol, f"gradient of {name}", labels_g))
    return Report(name, first, second if order == 2 else None)


def assert_close(a: Any, b: Any, rtol: float = 1e-6, name: str = "arrays") -> float:
    """Raise AssertionError unless |a - b| <= rtol * max|b| everywhere; returns the largest |a - b| / max|b|.

    Relative to the largest entry, because an entry that is zero up to rounding has no digits of its own.
    """
    a, b = (np.asarray(to_cpu(array_of(t)), dtype=np.float64) for t in (a, b))
    if a.shape != b.shape:
        raise AssertionError(f"{name}: shapes differ, {a.shape} and {b.shape}")
    if not b.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0.0, np.abs(a - b))  # equal infinities do not differ
    error = _ratio(float(difference.max()), float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
    if not error <= rtol:
        at = _worst(difference)
        raise AssertionError(
            f"{name}: at index {at} the two are {a[at]:.9g} and {b[at]:.9g}; the difference is {error:.3g} "
            f"of the largest entry, allowed is {rtol:.3g}"
        )
    return error


def _check(
    fn: Callable, inputs: list, which: list[int], eps: float, seed: int, tol: float, name: str, labels: list[str]
) -> float:
    """The largest error over the arguments `which` of fn, each with a tangent of its own; raises above tol.

    One argument at a time, so that a small gradient is not lost beside a large one. The error is
    |<v, J u> - <J^T v, u>| / (|J^T v| rms(u)): for a random u the inner product on the right has just that size,
    so a relative error of the gradient shows up undiminished. A true gradient of zero leaves rounding over rounding;
    hence the floor FLOOR |v y|, far above the rounding 3e-13 |v y| of a difference and far below what matters.
    """
    leaves = [Tensor(a, requires_grad=True) if i in which else a for i, a in enumerate(inputs)]
    ys = _call(fn, leaves, name)
    v = _draw(seed, 2, ys)
    floor = FLOOR * sum(_norm(vk * y.data) for vk, y in zip(v, ys, strict=True))
    gs = _pull_back(ys, v, [leaves[i] for i in which], create_graph=False)
    largest = 0.0
    for i, g in zip(which, gs, strict=True):
        (u,) = _draw(seed, 4 + i, [inputs[i]])
        difference = abs(_slope(fn, inputs, i, u, v, eps, name) - _inner(g, u))
        error = _ratio(difference, max(_norm(g) * _norm(u) / max(1, u.size) ** 0.5, floor))
        if not error <= tol:
            raise GradcheckError(_explain(fn, inputs, i, g, v, eps, f"{name}, argument {labels[i]}", error, tol))
        largest = max(largest, error)
    return largest


def _explain(
    fn: Callable, inputs: list, i: int, g: Array, v: list, eps: float, what: str, error: float, tol: float
) -> str:
    """Differentiate along every single element of input i, and say where the gradient g is worst."""
    numeric = np.zeros(g.shape)
    for at in np.ndindex(g.shape):
        unit = get_xp(g).zeros_like(g)
        unit[at] = 1.0
        numeric[at] = _slope(fn, inputs, i, unit, v, eps, what)
    said = np.asarray(to_cpu(g))
    difference = np.abs(said - numeric)
    at = _worst(difference)
    wrong = max(1, int((~(difference <= tol * np.abs(numeric).max())).sum()))
    return (
        f"{what}: relative error {error:.3g}, allowed is {tol:.3g}. {wrong} of the elements {g.shape} are wrong; "
        f"worst at index {at}: the backward says {said[at]:.9g}, finite differences say {numeric[at]:.9g}"
    )


def _check_kinds(fn: Callable, given: list, which: list[int], name: str) -> None:
    """In the inputs' own dtypes: every gradient has the shape and dtype of its input, float32 gives float32."""
    leaves = [Tensor(a, requires_grad=True) if i in which else a for i, a in enumerate(given)]
    ys = _call(fn, leaves, name)
    expected = np.result_type(*(given[i].dtype for i in which))
    for y in ys:
        if y.dtype.kind == "f" and y.dtype != expected:
            raise GradcheckError(f"{name} turns {expected} inputs into an output of dtype {y.dtype}")
    gs = _pull_back(ys, [get_xp(y.data).ones_like(y.data) for y in ys], [leaves[i] for i in which], create_graph=False)
    for i, g in zip(which, gs, strict=True):
        if (g.shape, g.dtype) != (given[i].shape, given[i].dtype):
            what = f"{name}, argument {_argument_names(fn, len(given))[i]}"
            raise GradcheckError(f"{what} is {given[i].dtype} {given[i].shape}, its gradient is {g.dtype} {g.shape}")


def _call(fn: Callable, inputs: Sequence, name: str) -> list[Tensor]:
    """The floating point outputs of fn as a list; float arrays go in as Tensors, without a history."""
    out = fn(*(Tensor(a) if is_float(a) and type(a) is not Tensor else a for a in inputs))
    outs = list(out) if isinstance(out, (tuple, list)) else [out]
    for y in outs:
        if type(y) is not Tensor:
            raise GradcheckError(f"{name} was given Tensors and returned a {type(y).__name__}: its history is lost")
    return [y for y in outs if is_float(y)]


def _only(fn: Callable, k: int, name: str) -> Callable:
    """fn with one of its outputs: the others get no cotangent."""
    return lambda *inputs: _call(fn, inputs, name)[k]


def _slope(fn: Callable, inputs: list, i: int, u: Array, v: list, eps: float, name: str) -> float:
    """d/dt <v, fn(..., x_i + t u, ...)> at t = 0."""
    total = 0.0
    for step, weight in STENCIL:
        moved = (inputs[i] + (step * eps) * u, inputs[i] - (step * eps) * u)
        ahead, behind = (_call(fn, [*inputs[:i], x, *inputs[i + 1 :]], name) for x in moved)
        total += weight * sum(_inner(vk, a.data - b.data) for vk, a, b in zip(v, ahead, behind, strict=True))
    return total / eps


def _pull_back(ys: list[Tensor], v: list, xs: list[Tensor], create_graph: bool) -> list:
    """J^T v for several outputs at once: the gradient of L = sum <v_k, y_k>, whose vjp is v itself."""
    total = Op(_pull_back, None, "")
    total.backward = lambda g: tuple(v)
    node = Node(total, [y.node and (y.node, y.index) for y in ys], (), 1, (), False)
    return grad(make(np.zeros(()), node, 0), xs, create_graph=create_graph)


def _gradient_of(fn: Callable, which: list[int], n: int, name: str) -> Callable:
    """The function (inputs, v) -> J^T v, one output per differentiated input; recorded if it is given leaves."""

    def gradient(*arguments: Any) -> tuple:
        inputs, v = list(arguments[:n]), list(arguments[n:])
        record = inputs[which[0]].requires_grad
        if not record:
            inputs = [Tensor(a.data, requires_grad=True) if i in which else a for i, a in enumerate(inputs)]
            v = [vk.data for vk in v]
        gs = _pull_back(_call(fn, inputs, name), v, [inputs[i] for i in which], create_graph=record)
        return tuple(gs if record else map(Tensor, gs))

    return gradient


def _draw(seed: int, stream: int, like: Sequence) -> list:
    """Normal random numbers in the shape of each of `like`; every stream is its own, and none is the data's."""
    rng = np.random.default_rng([seed, stream])
    return [_frozen(get_xp(array_of(a)).asarray(rng.standard_normal(a.shape))) for a in like]


def _frozen(a: Array) -> Array:
    """A copy in float64 that cannot be written to: an op that changes its input or its cotangent in place is caught."""
    a = get_xp(a).array(a, dtype=np.float64)
    if isinstance(a, np.ndarray):
        a.flags.writeable = False
    return a


def _inner(a: Array, b: Array) -> float:
    return float(get_xp(a).vdot(a, b))


def _norm(a: Array) -> float:
    return _inner(a, a) ** 0.5


def _ratio(difference: float, scale: float) -> float:
    return difference / scale if scale > 0 else 0.0 if difference == 0 else float("inf")


def _worst(difference: np.ndarray) -> tuple[int, ...]:
    """The index of the largest entry; NaN counts as largest."""
    return tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))


def _argument_names(fn: Callable, n: int) -> list[str]:
    """The names of the first n arguments of fn, or their numbers."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return [str(i) for i in range(n)]
    names = [f"{p.name}" for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [names[i] if i < len(names) else str(i) for i in range(n)]
