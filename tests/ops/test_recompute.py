"""Computing a piece again in the backward: the same gradients, inside of threads, nested, and what is kept."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tinyrec.check import assert_close, gradcheck
from tinyrec.ops import matmul, recompute, rmsnorm, tanh
from tinyrec.tape import NonFiniteError, SecondOrderError, Tensor, mode, nan_check, no_grad
from tinyrec.walk import grad

X, COTANGENT = np.random.default_rng(0).standard_normal((2, 5, 7))


def make_weights(seed=1):
    rng = np.random.default_rng(seed)
    return [Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((7, 7), (7,))]


def piece(weights, calls=None):
    """A function of x (5, 7) that uses both weights, and one of them twice."""
    w, gain = weights

    def call(x):
        if calls is not None:
            calls.append(mode.recording)
        return tanh(matmul(tanh(matmul(x, w)), w)) + rmsnorm(x, gain)

    return call


def again(x, weights, calls=None):
    return recompute(x, *weights, call=piece(weights, calls), weights=weights)


def test_the_same_numbers_and_the_gradient_of_every_input_and_weight():
    """The same operations in the same order, so not close but equal."""
    weights, x = make_weights(), Tensor(X, requires_grad=True)
    kept, computed = piece(weights)(x), again(x, weights)
    assert (kept.data == computed.data).all()
    for a, b in zip(grad(computed, [x, *weights], COTANGENT), grad(kept, [x, *weights], COTANGENT), strict=True):
        assert (a == b).all()


def test_weights_agree_with_finite_differences():
    shapes = make_weights()
    gradcheck(lambda x, w, gain: again(x, [w, gain]), X, *(w.data for w in shapes), tol=1e-8)


@pytest.mark.parametrize("depth", [2, 5])
def test_twice_and_more_in_one_graph_with_the_same_weights(depth):
    weights, x, plain, other = make_weights(), Tensor(X, requires_grad=True), [], []
    for results, apply in ((plain, lambda y: piece(weights)(y)), (other, lambda y: again(y, weights))):
        y = x
        for _ in range(depth):
            y = apply(y)
        results += grad(y + x, [x, *weights], COTANGENT)
    for a, b in zip(other, plain, strict=True):
        assert_close(a, b, 1e-14)  # the weights' gradients are added piece by piece


def test_one_inside_of_another():
    weights, x = make_weights(), Tensor(X, requires_grad=True)
    outer = recompute(x, *weights, call=lambda y: again(again(y, weights), weights), weights=weights)
    plain = piece(weights)(piece(weights)(x))
    for a, b in zip(grad(outer, [x, *weights], COTANGENT), grad(plain, [x, *weights], COTANGENT), strict=True):
        assert_close(a, b, 1e-14)


def test_only_the_input_is_kept_and_the_piece_runs_once_more():
    calls, weights = [], make_weights()
    y = again(Tensor(X, requires_grad=True), weights, calls)
    assert calls == [False] and [a.shape for a in y.node.saved if isinstance(a, np.ndarray)] == [(5, 7)]
    grad(y, weights, COTANGENT)
    assert calls == [False, True]  # and what it recorded is gone by now
    with no_grad():
        again(X, weights, calls)
    assert calls == [False, True, False]


def test_an_input_without_a_gradient_gives_the_weights_theirs():
    weights = make_weights()
    for a, b in zip(
        grad(again(X, weights), weights, COTANGENT), grad(piece(weights)(X), weights, COTANGENT), strict=True
    ):
        assert (a == b).all()


def test_in_threads_that_share_the_weights():
    weights, inputs = make_weights(), np.random.default_rng(2).standard_normal((8, 5, 7))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: grad(again(again(x, weights), weights), weights, COTANGENT), inputs))
    for x, gradients in zip(inputs, found, strict=True):
        expected = grad(piece(weights)(piece(weights)(x)), weights, COTANGENT)
        for a, b in zip(gradients, expected, strict=True):
            assert_close(a, b, 1e-14)


def test_arrays_give_an_array():
    weights = [w.data for w in make_weights()]
    y = recompute(X, call=piece(weights), weights=[])
    assert type(y) is np.ndarray and (y == piece(weights)(X)).all()


def test_a_second_derivative_is_refused_and_the_twin_is_named():
    weights, x = make_weights(), Tensor(X, requires_grad=True)
    with pytest.raises(SecondOrderError, match=r"use its naive twin tinyrec\.ops\.recompute\.naive"):
        grad(again(x, weights), [x], COTANGENT, create_graph=True)


def test_nan_check_looks_inside():
    weights = make_weights()
    weights[0].data[0, 0] = np.nan
    with nan_check(), pytest.raises(NonFiniteError, match="op 'matmul'"):
        again(Tensor(X, requires_grad=True), weights)
