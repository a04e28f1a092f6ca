"""The gates: fused equals naive for any shape and tile, they saturate without warnings and save what they say."""

import importlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close
from tinyrec.ops import gelu_gate, sigmoid_gate, silu_gate
from tinyrec.tape import SecondOrderError, Tensor
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.ops.gates")

PLAIN = {
    gelu_gate: lambda z: 0.5 * z * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3))),
    silu_gate: lambda z: z / (1.0 + math.exp(-z)),
    sigmoid_gate: lambda z: 1.0 / (1.0 + math.exp(-z)),
}


@pytest.fixture(params=PLAIN, ids=lambda op: op.__name__)
def gate_op(request):
    return request.param


def draw(seed, shape, dtype="float64"):
    rng = np.random.default_rng(seed)
    return (3.0 * rng.standard_normal(shape)).astype(dtype), rng.standard_normal(shape).astype(dtype)


def test_equals_the_formula_in_plain_python(gate_op):
    gate, x = draw(0, (2, 7))
    for z, v, y in zip(gate.flat, x.flat, gate_op(gate, x).flat, strict=True):
        assert y == pytest.approx(PLAIN[gate_op](z) * v, rel=1e-12, abs=1e-15)


@settings(max_examples=90)
@given(
    gate_op=st.sampled_from(list(PLAIN)),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 99),
    tile=st.sampled_from([1, 3, 7, 16384]),
)
def test_fused_equals_naive(assert_same, gate_op, shape, seed, tile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        assert_same(gate_op, gate_op.op.twin, *draw(seed, shape), tol=1e-12)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1)])
def test_scalars_and_empty_arrays_keep_their_shape(assert_same, gate_op, shape):
    gate, x = draw(1, shape)
    gate, x = np.asarray(gate), np.asarray(x)
    assert gate_op(gate, x).shape == shape
    assert_same(gate_op, gate_op.op.twin, gate, x)


def test_more_than_one_tile_of_the_real_size(assert_same, gate_op):
    assert_same(gate_op, gate_op.op.twin, *draw(2, (3, 11, 1201)))


@pytest.mark.parametrize("shape", [(7, 5), (200, 211)])  # one tile, and several
def test_a_transposed_input_is_read_in_its_own_order(gate_op, shape):
    gate, x = draw(3, shape)
    leaves = [Tensor(a.T, requires_grad=True) for a in (gate, x)]
    y = gate_op(*leaves)
    assert_close(y.data, gate_op(gate, x).T, 1e-15)
    g = np.random.default_rng(4).standard_normal(shape)
    plain = [Tensor(a, requires_grad=True) for a in (gate, x)]
    for a, b in zip(grad(y, leaves, g.T), grad(gate_op(*plain), plain, g), strict=True):
        assert_close(a, b.T, 1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saturates_without_warnings(outputs_and_gradients, gate_op, dtype):
    gate = np.array([-1e4, -60.0, -20.0, 0.0, 20.0, 60.0, 1e4], dtype)
    x = np.linspace(-2.0, 3.0, 7, dtype=dtype)
    y, dgate, dx = outputs_and_gradients(gate_op, gate, x)
    assert y.dtype == dgate.dtype == dx.dtype == dtype
    g = np.random.default_rng([11, 0]).standard_normal(7).astype(dtype)  # the fixture's cotangent
    step = (gate > 0) + 0.5 * (gate == 0)
    value, slope = (step, 0.25 * (gate == 0)) if gate_op is sigmoid_gate else (gate * step, step)
    assert_close(y, value * x, 1e-6)
    np.testing.assert_allclose(dgate, g * x * slope, atol=2e-6)
    np.testing.assert_allclose(dx, g * value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("gate_op", "n_bytes"), [(gelu_gate, 12), (silu_gate, 12), (sigmoid_gate, 8)])
def test_saves_what_it_says(gate_op, n_bytes):
    gate, x = (Tensor(a, requires_grad=True) for a in draw(5, (3, 5), "float32"))
    saved = gate_op(gate, x).node.saved
    assert sum(a.nbytes for a in saved) == n_bytes * gate.size


def test_wrong_shapes_are_refused(gate_op):
    message = rf"{gate_op.__name__}\(gate \(2, 3\), x \(3,\)\): gate and x must have one shape"
    with pytest.raises(ValueError, match=message):
        gate_op(np.zeros((2, 3)), np.zeros(3))


def test_second_order_is_refused_and_names_the_naive_form(gate_op):
    leaves = [Tensor(a, requires_grad=True) for a in draw(6, (2, 3))]
    with pytest.raises(SecondOrderError, match=rf"tinyrec\.ops\.gates\.{gate_op.op.twin.__name__}"):
        grad(gate_op(*leaves), leaves, np.ones((2, 3)), create_graph=True)
