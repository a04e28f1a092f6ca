"""Derivatives of derivatives through `grad(..., create_graph=True)`, and the refusals where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from tinyrec import ops
from tinyrec.check import assert_close
from tinyrec.tape import SecondOrderError, Tensor, fused, op
from tinyrec.walk import grad


def leaf(*numbers):
    return Tensor(np.array(numbers), requires_grad=True)


def derivative(y, x):
    return grad(y.sum(), [x], create_graph=True)[0]


@pytest.mark.parametrize("cube", [lambda x: x * x * x, lambda x: x**3, lambda x: ops.exp(3.0 * ops.log(x))])
def test_three_derivatives_of_a_cube(cube):
    x = leaf(1.5, 2.0)
    first = derivative(cube(x), x)
    second = derivative(first, x)
    third = derivative(second, x)
    assert_close(first, 3.0 * x.data**2, 1e-12)
    assert_close(second, 6.0 * x.data, 1e-12)
    assert_close(third, np.full(2, 6.0), 1e-12)


def test_derivatives_of_powers_end_at_zero():
    x = leaf(0.0, 2.0)
    y = x**2
    for expected in ([0.0, 4.0], [2.0, 2.0], [0.0, 0.0]):
        y = derivative(y, x)
        assert y.data.tolist() == expected  # and no NaN from 0 * 0^-1
        if not y.requires_grad:
            break


def test_create_graph_keeps_the_graph():
    x = leaf(2.0)
    y = (x * x).sum()
    assert derivative(y, x).data.tolist() == derivative(y, x).data.tolist() == [4.0]
    y.backward()
    assert x.grad.tolist() == [4.0]


def test_a_detached_copy_is_a_constant():
    for numbers in ((2.0, 3.0), 2.0):
        x = Tensor(np.array(numbers), requires_grad=True)
        first = derivative(x * x.detach(), x)
        assert_close(first, x.data, 0.0)
        assert not first.requires_grad or not derivative(first, x).data.any()
        second = derivative(derivative(x * x.detach() * x, x), x)
        assert_close(second, 2.0 * x.data, 1e-15)


def test_one_array_as_tensor_and_as_constant_is_refused_rather_than_confused():
    x = leaf(2.0, 3.0)
    assert_close(grad((x * x.data).sum(), [x])[0], x.data, 0.0)
    with pytest.raises(SecondOrderError, match="op 'mul' saves one array that is two different inputs"):
        derivative(x * x.data, x)


def test_the_gradient_of_a_gradient_norm():
    x = leaf(0.3, -0.7, 1.1)
    dx = derivative(ops.tanh(x), x)
    (dx * dx).sum().backward()
    t = np.tanh(x.data)
    assert_close(x.grad, 2.0 * (1.0 - t * t) * (-2.0 * t * (1.0 - t * t)), 1e-14)


def test_a_fused_op_refuses_and_names_its_twin():
    def naive(x):
        return x * x

    @fused(naive)
    def quick(x):
        return x * x, (x,)

    quick.vjp(lambda g, x: 2.0 * g * x)
    x = leaf(2.0)
    assert grad(quick(x).sum(), [x])[0].tolist() == [4.0]
    with pytest.raises(SecondOrderError, match=f"'quick' has a raw array backward.*naive twin {__name__}.naive"):
        derivative(quick(x), x)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (lambda x, y: (x * 2.0,), "neither input nor output"),
        (lambda x, y: (x[...],), "neither input nor output"),
        (lambda x, y: ((x, y),), "arrays inside a tuple or list"),
    ],
)
def test_a_backward_that_lost_its_history_refuses(saved, words):
    @op
    def doubled(x):
        return x * 2.0, saved(x, x)

    doubled.vjp(lambda g, s: 2.0 * g)
    x = leaf(2.0)
    assert grad(doubled(x).sum(), [x])[0].tolist() == [2.0]
    with pytest.raises(SecondOrderError, match=f"op 'doubled' saves .*{words}"):
        derivative(doubled(x), x)
