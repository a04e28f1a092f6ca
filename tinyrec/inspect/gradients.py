"""Check the gradient of every op in the table of cases, and of whole models: what `tinyrec check` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..check import STENCIL, GradcheckError, assert_close, gradcheck
from ..models import build, make_config
from ..nn import parameters
from ..tape import Op, SecondOrderError, Tensor, no_grad
from ..walk import grad, is_float
from .cases import Case, call_of, cases

# Of the thousands of squared ReLUs in an RWKV some lie within any step of their kink, so its error falls with the step:
# 8e-6 at 1e-4, 3e-8 here. The other models lose by it what rounding gains, and stay below 1e-8.
MODEL_STEP = 3e-6


class Row(NamedTuple):
    """What the check of one op found: the largest relative error over its cases, of first and of second order."""

    name: str  # as in tape.OPS
    kind: str  # "op", "fused" or "surrogate"
    first: float | None  # None: the check failed, and the note says where
    second: float | None  # of the naive twin if kind is "fused", which refuses itself; None: failed, or not defined
    note: str
    ok: bool = True


def run_checks(names: str = "", tol: float = 1e-7) -> Iterator[Row]:
    """Check every op whose name contains `names`, one row each."""
    for name, its_cases in cases().items():
        if names in name:
            yield check_op(name, its_cases, tol)


def check_op(name: str, its_cases: list[Case], tol: float = 1e-7) -> Row:
    """Check one op on its cases. A wrong gradient gives a row with ok=False, whose note says where it is wrong."""
    op = its_cases[0].op.op  # type: ignore[attr-defined]
    kind = "fused" if op.twin else "surrogate" if op.surrogate else "op"
    try:
        errors = [_check_case(case, op, tol) for case in its_cases]
    except (AssertionError, TypeError, ValueError, IndexError) as error:  # GradcheckError is an AssertionError
        return Row(name, kind, None, None, str(error), ok=False)
    notes = [f"second order: of {op.twin.__module__}.{op.twin.__name__}"] if op.twin else []
    notes += [op.surrogate] if op.surrogate else []
    second = max((second for _, second in errors if second is not None), default=None)
    return Row(name, kind, max(first for first, _ in errors), second, "; ".join(notes))


def _check_case(case: Case, op: Op, tol: float) -> tuple[float, float | None]:
    """(first, second) order error of one case; second is None where it is not defined."""
    call = call_of(case)
    if case.gradient is not None:
        return _surrogate_error(case, call, tol), None
    check = partial(gradcheck, constants=case.constants, tol=tol)
    if op.twin is None:
        report = check(call, *case.args, order=2, name=op.name)
        return report.first, report.second
    _expect_refusal(case, call, op)
    twin = check(call_of(case, op.twin), *case.args, order=2, name=f"the naive twin of {op.name}")
    return check(call, *case.args, name=op.name).first, twin.second


def _leaves(case: Case) -> list[Any]:
    """The arguments of the case, those with a gradient as leaves."""
    return [Tensor(a, True) if is_float(a) and i not in case.constants else a for i, a in enumerate(case.args)]


def _surrogate_error(case: Case, call: Callable, tol: float) -> float:
    """The error of a surrogate's gradient, measured against the one that its case gives."""
    args = _leaves(case)
    y = call(*args)
    g = np.random.default_rng(2).standard_normal(y.shape)
    assert case.gradient is not None
    xs = [a for a in args if type(a) is Tensor]
    pairs = zip(grad(y, xs, g), case.gradient(g, *case.args), strict=True)
    name = f"surrogate gradient of {case.op.__name__}"
    return max(assert_close(gx, expected, tol, name) for gx, expected in pairs)


def _expect_refusal(case: Case, call: Callable, op: Op) -> None:
    """A raw array backward cannot be differentiated again, and must say so and name its naive twin."""
    assert op.twin is not None
    args = _leaves(case)
    y = call(*args)
    y = y[0] if isinstance(y, tuple) else y
    try:
        grad(y, [a for a in args if type(a) is Tensor], np.ones(y.shape), create_graph=True)
    except SecondOrderError as error:
        if f"{op.twin.__module__}.{op.twin.__name__}" in str(error):
            return
    raise GradcheckError(f"op '{op.name}' is fused, and did not refuse its second derivative with the name of its twin")


def check_model(name: str, tol: float = 1e-7) -> Row:
    """The gradient of <v, logits> by every parameter, each along a random direction u of its own.

    v (B, T, V) random: the sum of the logits (v = 1) would hide errors that cancel. Parameters are moved away from
    their start, where many models have zeros, behind which no gradient shows.
    """
    rng = np.random.default_rng(0)
    model = build(name, make_config(name, vocab_size=11), rng, np.float64)
    for _, tensor in parameters(model):
        tensor.data += 0.1 * rng.standard_normal(tensor.shape)
    tokens, v = rng.integers(0, 11, (2, 7)), rng.standard_normal((2, 7, 11))
    names, tensors = zip(*parameters(model), strict=True)
    gradients = grad(model(tokens), tensors, v)
    worst, where = 0.0, ""
    for parameter, tensor, gradient in zip(names, tensors, gradients, strict=True):
        u = rng.standard_normal(tensor.shape)
        slope = _slope(model, tokens, v, tensor, u)
        size = max(float(np.linalg.norm(gradient)), abs(slope), 1e-12)  # u is normal, so slope is about |gradient|
        error = abs(slope - float((gradient * u).sum())) / size
        if not error <= worst:
            worst, where = error, parameter
    return Row(name, "model", worst, None, f"{len(names)} parameters, worst {where}", worst <= tol)


@no_grad()
def _slope(model: Any, tokens: np.ndarray, v: np.ndarray, tensor: Any, u: np.ndarray) -> float:
    """d <v, logits> / dt along tensor + t u, by central differences."""
    before, slope = tensor.data.copy(), 0.0
    for steps, weight in STENCIL:
        for sign in (1, -1):
            tensor.data[...] = before + sign * steps * MODEL_STEP * u
            slope += sign * weight * float((v * model(tokens).data).sum()) / MODEL_STEP
    tensor.data[...] = before
    return slope
