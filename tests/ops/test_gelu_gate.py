"""The gated GELU: fused equals naive for any shape and tile, saturates without warnings, saves what it says."""

import importlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close
from tinyrec.ops import gelu_gate
from tinyrec.tape import SecondOrderError, Tensor
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.ops.gelu_gate")


def draw(seed, shape, dtype="float64"):
    rng = np.random.default_rng(seed)
    return (3.0 * rng.standard_normal(shape)).astype(dtype), rng.standard_normal(shape).astype(dtype)


def test_equals_the_formula_in_plain_python():
    gate, x = draw(0, (2, 7))
    for g, v, y in zip(gate.flat, x.flat, gelu_gate(gate, x).flat, strict=True):
        gelu = 0.5 * g * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (g + 0.044715 * g**3)))
        assert y == pytest.approx(gelu * v, rel=1e-12, abs=1e-15)


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 99),
    tile=st.sampled_from([1, 3, 7, 16384]),
)
def test_fused_equals_naive(assert_same, shape, seed, tile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        assert_same(gelu_gate, module.naive, *draw(seed, shape), tol=1e-12)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1)])
def test_scalars_and_empty_arrays_keep_their_shape(assert_same, shape):
    gate, x = draw(1, shape)
    gate, x = np.asarray(gate), np.asarray(x)
    assert gelu_gate(gate, x).shape == shape
    assert_same(gelu_gate, module.naive, gate, x)


def test_more_than_one_tile_of_the_real_size(assert_same):
    assert_same(gelu_gate, module.naive, *draw(2, (3, 11, 1201)))


def test_a_transposed_input_is_read_in_its_own_order():
    gate, x = draw(3, (7, 5))
    leaves = [Tensor(a.T, requires_grad=True) for a in (gate, x)]
    y = gelu_gate(*leaves)
    assert_close(y.data, gelu_gate(gate, x).T, 1e-15)
    g = np.random.default_rng(4).standard_normal((7, 5))
    plain = [Tensor(a, requires_grad=True) for a in (gate, x)]
    for a, b in zip(grad(y, leaves, g.T), grad(gelu_gate(*plain), plain, g), strict=True):
        assert_close(a, b.T, 1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saturates_without_warnings(outputs_and_gradients, dtype):
    gate = np.array([-1e4, -60.0, -12.0, 0.0, 12.0, 60.0, 1e4], dtype)
    x = np.linspace(-2.0, 3.0, 7, dtype=dtype)
    y, dgate, dx = outputs_and_gradients(gelu_gate, gate, x)
    assert y.dtype == dgate.dtype == dx.dtype == dtype
    g = np.random.default_rng([11, 0]).standard_normal(7).astype(dtype)  # the fixture's cotangent
    gelu, slope = gate * (gate > 0), (gate > 0) + 0.5 * (gate == 0)
    assert_close(y, gelu * x, 1e-6)
    np.testing.assert_allclose(dgate, g * x * slope, atol=1e-6)
    np.testing.assert_allclose(dx, g * gelu, rtol=1e-6, atol=1e-6)


def test_saves_both_inputs_and_the_sigmoid():
    gate, x = (Tensor(a, requires_grad=True) for a in draw(5, (3, 5), "float32"))
    saved = gelu_gate(gate, x).node.saved
    assert sum(a.nbytes for a in saved) == 12 * gate.size
    u = math.sqrt(2.0 / math.pi) * (gate.data + 0.044715 * gate.data**3)
    assert_close(saved[2], 1.0 / (1.0 + np.exp(-2.0 * u)), 1e-6)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"gelu_gate\(gate \(2, 3\), x \(3,\)\): gate and x must have one shape"):
        gelu_gate(np.zeros((2, 3)), np.zeros(3))


def test_second_order_is_refused_and_names_the_naive_form():
    leaves = [Tensor(a, requires_grad=True) for a in draw(6, (2, 3))]
    with pytest.raises(SecondOrderError, match=r"tinyrec\.ops\.gelu_gate\.naive"):
        grad(gelu_gate(*leaves), leaves, np.ones((2, 3)), create_graph=True)
