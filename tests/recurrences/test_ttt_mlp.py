"""TTT-MLP by itself: gelu's derivatives, and what sets it apart. What it shares with TTT-Linear: test_inner_loop.py."""

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.ops import gelu
from tinyrec.recurrences.ttt_linear import ttt_linear
from tinyrec.recurrences.ttt_mlp import gelu_and_one, gelu_slope, inner_curvature, inner_slope, slope_ops, ttt_mlp
from tinyrec.tape import Tensor
from tinyrec.walk import grad

Z = np.linspace(-12.0, 12.0, 4001)[None]


def derivatives(z):
    """gelu' and gelu'' of the tape."""
    z = Tensor(z, requires_grad=True)
    (first,) = grad(gelu(z).sum(), [z], create_graph=True)
    return first, grad(first.sum(), [z])[0]


def test_gelu_and_its_derivatives_are_those_of_the_tape():
    y, p = gelu_and_one(Z)
    assert_close(y[:, :-1], gelu(Z), 1e-15)
    assert (y[:, -1] == 1.0).all()
    first, second = derivatives(Z)
    assert_close(gelu_slope(Z, p), first, 1e-14)
    assert_close(inner_slope(Z, p), first, 1e-14)
    assert_close(slope_ops(Z), first, 1e-14)
    assert_close(inner_curvature(Z, p), second, 1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_derivatives_far_out_are_those_of_a_ramp_without_warnings(dtype):
    z = np.array([[-1e9, -1e3, -40.0, 40.0, 1e3, 1e9]], dtype)
    _, p = gelu_and_one(z)
    assert (gelu_slope(z, p) == [[0, 0, 0, 1, 1, 1]]).all()
    assert (inner_curvature(z, p) == 0.0).all() and inner_curvature(z, p).dtype == dtype


def test_far_from_zero_it_is_a_linear_model(outputs_and_gradients, ttt_arguments):
    """gelu(z) = z where z is large: then the two layers are one matrix, of which each has its own step."""
    q, k, v, lam, tau, gain, bias, w1, b1, w2, b2, *sums = ttt_arguments("mlp", 0, 2, 4, 3, 5, 4)
    b1[:] = 1e3
    z, *_ = ttt_mlp(q, k, v, 0.0 * lam, tau, gain, bias, w1, b1, w2, b2, *(0.0 * s for s in sums))
    w, b = w1 @ w2, (b1[:, :, None] @ w2)[:, :, 0] + b2
    expected, *_ = ttt_linear(q, k, v, 0.0 * lam, tau, gain, bias, w, b, 0.0 * w, 0.0 * b)
    assert_close(z, expected, 1e-11)


def test_a_second_layer_of_zero_hides_the_first_from_the_first_mini_batch(ttt_arguments):
    """G1 = G2 w2^T is 0 there, so only the second layer learns; by the second mini-batch w2 is no longer 0."""
    q, k, v, lam, tau, gain, bias, w1, b1, w2, b2, *sums = ttt_arguments("mlp", 1, 2, 8, 3, 5, 4)
    none = [0.0 * s for s in sums]
    read = [x[:, :4] for x in (q, k, v, lam)]
    _, *state = ttt_mlp(*read, tau, gain, bias, w1, b1, 0.0 * w2, b2, *none)
    assert (state[0] == w1).all() and (state[1] == b1).all() and (state[2] != 0.0).all() and (state[3] != b2).all()
    rest = [x[:, 4:] for x in (q, k, v, lam)]
    _, *state = ttt_mlp(*rest, tau, gain, bias, *state)
    assert (state[0] != w1).all() and (state[1] != b1).all()
