"""Every op against the table of cases: the registry drives the tests, and an op without a case fails the suite."""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import pytest

import tinyrec.ops
import tinyrec.recurrences
from tinyrec.check import assert_close
from tinyrec.inspect import Row, cases, check_op, run_checks
from tinyrec.inspect.cases import call_of
from tinyrec.tape import OPS, Leaf, Node, Tensor
from tinyrec.walk import grad, is_float

TABLE = cases()
EVERY_CASE = [pytest.param(c, id=f"{name.split('.')[-1]}-{i}") for name, cs in TABLE.items() for i, c in enumerate(cs)]


def as_tuple(out):
    return out if isinstance(out, tuple) else (out,)


def outputs_and_gradients(fn, args, constants=(), g=None):
    """The outputs of fn, then the gradients for every output, with a random cotangent or g(shape); arrays."""
    leaves = [Tensor(a, True) if is_float(a) and i not in constants else a for i, a in enumerate(args)]
    xs = [a for a in leaves if type(a) is Tensor]
    gs = []
    for k in range(len(as_tuple(fn(*args)))):  # one walk for each output
        y = as_tuple(fn(*leaves))[k]
        cotangent = np.random.default_rng([7, k]).standard_normal(y.shape) if g is None else g(y.shape)
        gs += grad(y, xs, cotangent)
    return [y.data for y in as_tuple(fn(*leaves))] + gs


def test_every_op_has_a_case():
    for package in (tinyrec.ops, tinyrec.recurrences):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    assert {name for name in OPS if name.startswith("tinyrec.")} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_first_and_second_order_agree_with_finite_differences(name):
    row = check_op(name, TABLE[name])
    assert row.ok, row.note
    assert row.first is not None and row.first <= 1e-7
    if any(case.gradient is None for case in TABLE[name]):  # else none of the cases has a derivative to speak of
        assert row.second is not None and row.second <= 1e-5  # of the naive twin, where there is one
    assert OPS[name].twin is None or OPS[name].twin.__module__ in row.note
    assert row.kind == ("fused" if OPS[name].twin else "surrogate" if OPS[name].surrogate else "op")
    assert OPS[name].surrogate in row.note


@pytest.mark.parametrize("name", [name for name in TABLE if OPS[name].surrogate and not OPS[name].twin])
def test_a_surrogate_has_an_explicit_case(name):
    assert any(case.gradient is not None for case in TABLE[name])


@pytest.mark.parametrize("case", EVERY_CASE)
def test_arrays_give_arrays_and_record_nothing(case):
    before = Leaf().id
    outs = as_tuple(call_of(case)(*case.args))
    assert Leaf().id == before + 1  # no node was made in between
    for y in outs:
        assert type(y) is not Tensor and hasattr(y, "dtype")
        assert all(y is not a for a in case.args), "an op returned its input object"


@pytest.mark.parametrize("case", EVERY_CASE)
def test_float32_is_kept(case):
    narrow = [a.astype(np.float32) if is_float(a) else a for a in case.args]
    leaves = [Tensor(a, True) if is_float(a) else a for a in narrow]
    for y in as_tuple(call_of(case)(*leaves)):
        assert y.dtype == np.float32 and isinstance(y.node, Node)
        assert [a.shape for a in y.node.saved if is_float(a) and a.dtype != np.float32] == []
    results = outputs_and_gradients(call_of(case), narrow, case.constants)
    assert {a.dtype for a in results} == {np.dtype(np.float32)}
    wide = outputs_and_gradients(call_of(case), case.args, case.constants)
    for a, b in zip(results, wide, strict=True):
        assert_close(a, b, 2e-3)  # loose, because the cases of the surrogates sit on the edge of cancellation


@pytest.mark.parametrize("case", EVERY_CASE)
def test_memory_order_does_not_matter(case):
    def gaps(a):  # the same numbers, no two of them neighbours in memory
        return np.repeat(np.asfortranarray(a), 2, axis=-1)[..., ::2] if is_float(a) and a.ndim else a

    expected = outputs_and_gradients(call_of(case), case.args, case.constants)
    strided = outputs_and_gradients(call_of(case), [gaps(a) for a in case.args], case.constants)
    for a, b in zip(strided, expected, strict=True):
        assert_close(a, b, 1e-12)
    full = outputs_and_gradients(call_of(case), case.args, case.constants, lambda shape: np.full(shape, 1.5))
    one = outputs_and_gradients(call_of(case), case.args, case.constants, lambda shape: np.broadcast_to(1.5, shape))
    for a, b in zip(one, full, strict=True):  # a cotangent that is a single number in memory, and read-only
        assert_close(a, b, 1e-12)


FUSED = [pytest.param(p.values[0], id=p.id) for p in EVERY_CASE if p.values[0].op.op.twin is not None]


@pytest.mark.parametrize("case", FUSED)
def test_fused_equals_naive(case):
    fused = outputs_and_gradients(call_of(case), case.args, case.constants)
    naive = outputs_and_gradients(call_of(case, case.op.op.twin), case.args, case.constants)
    for a, b in zip(fused, naive, strict=True):
        assert_close(a, b, 1e-9)


def test_run_checks_gives_one_row_per_op():
    rows = list(run_checks("activation.s"))
    assert [row.name.rsplit(".")[-1] for row in rows] == ["sigmoid", "softplus", "silu", "squared_relu", "softcap"]
    assert all(isinstance(row, Row) and row.ok for row in rows)


def test_a_wrong_gradient_gives_a_row_that_says_where(monkeypatch):
    name = "tinyrec.ops.elementwise.mul"
    right = OPS[name].backward
    monkeypatch.setattr(OPS[name], "backward", lambda g, x, y, needs: right(g, y, x, needs=needs))
    row = check_op(name, TABLE[name][:1])
    assert not row.ok and row.first is None and "mul, argument x" in row.note


def test_a_fused_op_that_does_not_refuse_is_caught(monkeypatch):
    name = "tinyrec.ops.gates.gelu_gate"
    monkeypatch.setattr("tinyrec.inspect.gradients.grad", lambda *args, **keywords: [])
    row = check_op(name, TABLE[name][:1])
    assert not row.ok and "did not refuse" in row.note
