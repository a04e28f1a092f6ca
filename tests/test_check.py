"""The checker is checked: planted bugs must be caught, and their correct twins must pass."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tinyrec import ops
from tinyrec.check import GradcheckError, Report, assert_close, gradcheck
from tinyrec.tape import SecondOrderError, Tensor, fused, op
from tinyrec.walk import grad

RNG = np.random.default_rng(0)  # the very seed that a careless checker would use for its tangents
X, Y, ROW = RNG.standard_normal((2, 7, 5)), RNG.standard_normal((2, 7, 5)), RNG.standard_normal((7, 5))


def toy(forward, vjp, decorator=op):
    call = decorator(forward)
    call.vjp(vjp)
    return call


def product(x, y):
    return x * y, (x, y)


def sum_to(g, shape):
    """The gradient of a broadcast, in ops of the tape."""
    return ops.reshape(ops.sum(g, axis=0), shape=shape) if g.shape != shape else g


def one_element_off(g, x, y):
    dx, dy = g * y, g * x
    if not isinstance(dx, Tensor):
        dx = dx.copy()
        dx[0, 3, 2] *= 1.0005
    return dx, dy


def cube(x):
    return x * x * x, (x,)


def writes_into_its_cotangent(g, x, y):
    g *= 1.0
    return g * y, g * x


FIRST_ORDER_BUGS = {  # name: (vjp, inputs, words of the message)
    "wrong sign": (lambda g, x, y: (g * y, -g * x), (X, Y), "argument y"),
    "swapped arguments": (lambda g, x, y: (g * x, g * y), (X, Y), "argument x"),
    "missing unbroadcast": (lambda g, x, y: (g * y, g * x), (X, ROW), "its gradient is float64 (2, 7, 5)"),
    "off by 0.05 %": (lambda g, x, y: (g * y * 1.0005, g * x), (X, Y), "70 of the elements"),
    "one element off by 0.05 %": (one_element_off, (X, Y), "1 of the elements (2, 7, 5) are wrong; worst at index (0,"),
    "forgotten gradient": (lambda g, x, y: (g * y, None), (X, Y), "argument y"),
    "no gradient at all": (lambda g, x, y: (g * 0.0, g * 0.0), (X, Y), "argument x"),
    "transposed": (lambda g, x, y: (g * y, (g * x).swapaxes(0, 1)), (X[:, :2], Y[:, :2]), "argument y"),
    "wrong shape": (lambda g, x, y: (g * y, (g * x).reshape(70)), (X, Y), "its gradient is float64 (70,)"),
    "not a number": (lambda g, x, y: (g * y * np.nan, g * x), (X, Y), "says nan"),
}


@pytest.mark.parametrize("bug", FIRST_ORDER_BUGS)
def test_a_planted_bug_is_caught(bug):
    vjp, inputs, words = FIRST_ORDER_BUGS[bug]
    with pytest.raises(GradcheckError) as caught:
        gradcheck(toy(product, vjp), *inputs)
    assert "product" in str(caught.value) and words in str(caught.value)


def test_the_correct_twins_pass():
    right = toy(product, lambda g, x, y: (g * y, sum_to(g * x, y.shape)))
    for y in (Y, ROW):
        report = gradcheck(right, X, y, order=2)
        assert report.first < 1e-10 and report.second is not None and report.second < 1e-8
    assert gradcheck(toy(cube, lambda g, x: 3.0 * g * x * x), X, order=2).first < 1e-10


def test_both_numbers_and_the_place_are_in_the_message():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([5.0, 5.0, 5.0])

    def doubled_in_the_middle(g, x, y):
        return g * y * np.array([1.0, 2.0, 1.0]), g * x

    with pytest.raises(GradcheckError, match=r"argument x.* 1 of the elements \(3,\).* index \(1,\)") as caught:
        gradcheck(toy(product, doubled_in_the_middle), x, y)
    said, found = re.search(r"backward says (\S+), finite differences say (\S+)$", str(caught.value)).groups()
    assert float(said) / float(found) == pytest.approx(2.0, 1e-6)


def test_a_gradient_that_only_float32_shows_to_be_float64():
    vjp = lambda g, x, y: (g * y * np.float64(1.0), g * x)  # noqa: E731
    assert gradcheck(toy(product, vjp), X, Y).first < 1e-10
    with pytest.raises(GradcheckError, match=r"argument x is float32.* its gradient is float64"):
        gradcheck(toy(product, vjp), X.astype(np.float32), Y.astype(np.float32))
    gradcheck(toy(product, lambda g, x, y: (g * y, g * x)), X.astype(np.float32), Y.astype(np.float32))


def test_an_output_of_the_wrong_dtype():
    wide = toy(lambda x: (x * np.float64(2.0), ()), lambda g: 2.0 * g)
    with pytest.raises(GradcheckError, match="float32 inputs into an output of dtype float64"):
        gradcheck(wide, X.astype(np.float32))


def test_a_second_order_bug_is_caught_only_by_the_second_order():
    def numbers_only(g, x):  # right numbers, but the history of x ends here
        return 3.0 * g * (x.data * x.data if isinstance(x, Tensor) else x * x)

    wrong = toy(cube, numbers_only)
    assert gradcheck(wrong, X).first < 1e-10
    with pytest.raises(GradcheckError, match="gradient of cube, argument x"):
        gradcheck(wrong, X, order=2)


def test_a_lost_history_of_the_cotangent_is_caught_by_the_second_order():
    def numbers_only(g):
        return 2.0 * (Tensor(g.data) if isinstance(g, Tensor) else g)

    with pytest.raises(GradcheckError, match="argument g"):
        gradcheck(toy(lambda x: (x * 2.0, ()), numbers_only), X, order=2)


def test_a_small_gradient_is_not_lost_beside_a_large_one():
    wrong = toy(lambda x, y: (1e6 * x + y, ()), lambda g: (1e6 * g, 1.01 * g))
    with pytest.raises(GradcheckError, match="argument y"):
        gradcheck(wrong, X, Y)
    gradcheck(toy(lambda x, y: (1e6 * x + y, ()), lambda g: (1e6 * g, g)), X, Y, tol=1e-5)


def test_a_gradient_of_zero_is_no_false_alarm_and_no_hiding_place():
    assert gradcheck(lambda x: ops.softmax(x) * 0.0 + 1.0, X).first == 0.0
    assert gradcheck(lambda x: ops.sum(ops.softmax(x), axis=-1), X).first < 1e-7  # zero up to rounding
    leak = toy(lambda x: (x * 0.0 + 1.0, ()), lambda g: 1e-6 * g)
    with pytest.raises(GradcheckError):
        gradcheck(leak, X)


def test_the_sum_as_a_loss_would_not_see_what_gradcheck_sees():
    def broken(g, y):  # the backward of softmax without g
        return y * (1.0 - ops.sum(y, axis=-1, keepdims=True))

    wrong = toy(ops.softmax.op.forward, lambda g, y, axis: broken(g, y))
    x = Tensor(X, True)
    for softmax in (wrong, ops.softmax):
        assert abs(grad(ops.sum(softmax(x)), [x])[0]).max() < 1e-15  # both are right, they say
    with pytest.raises(GradcheckError):
        gradcheck(wrong, X)


def test_writing_into_an_input_or_a_cotangent_is_caught():
    with pytest.raises(ValueError, match="read-only"):
        gradcheck(toy(product, writes_into_its_cotangent), X, Y)

    def doubles_in_place(x):
        x *= 2.0
        return x * 1.0, ()

    with pytest.raises(ValueError, match="read-only"):
        gradcheck(toy(doubles_in_place, lambda g: g), X)


def test_every_output_is_checked_alone_and_together():
    def halves(x):
        return (x[:1] * 2.0, x[1:] * 3.0), (x.shape,)

    def careless(gs, shape):  # forgets what to do about an output that nobody used
        return ops.concat(gs[0] * 2.0, gs[1] * 3.0)

    def careful(gs, shape):
        zero = np.zeros((1, *shape[1:]))
        return ops.concat(zero if gs[0] is None else gs[0] * 2.0, zero if gs[1] is None else gs[1] * 3.0)

    with pytest.raises(TypeError):
        gradcheck(toy(halves, careless), X)
    assert gradcheck(toy(halves, careful), X, order=2).first < 1e-10

    def crossed(gs, shape):
        return ops.concat(*(np.zeros((1, *shape[1:])) if g is None else g * 2.0 for g in gs))

    with pytest.raises(GradcheckError):
        gradcheck(toy(halves, crossed), X)


def test_constants_are_not_differentiated():
    index = np.array([1, 0, 1])
    assert gradcheck(lambda table, index: ops.embedding(table, index), X[0], index).first < 1e-10
    assert gradcheck(ops.where, X > 0, Y, 0.0).first < 1e-10
    no_dy = toy(product, lambda g, x, y: (g * y, None))
    assert gradcheck(no_dy, X, Y, constants=(1,)).first < 1e-10
    with pytest.raises(ValueError, match="no input is a floating point array"):
        gradcheck(ops.neg, np.arange(3))


def test_functions_of_several_ops_methods_and_scalars():
    report = gradcheck(lambda x, w: ((x @ w).sum(axis=1) * x.mean()).reshape(-1) ** 2, X, ROW.T, order=2, name="mine")
    assert isinstance(report, Report) and report.name == "mine"
    assert gradcheck(lambda x: x * x, np.float64(3.0), order=2).second < 1e-8
    assert gradcheck(lambda x: x * x, Tensor(X)).second is None


def test_what_is_not_a_function_of_ops_is_refused():
    with pytest.raises(GradcheckError, match="returned a ndarray: its history is lost"):
        gradcheck(lambda x: x.data * 2.0, X)
    with pytest.raises(ValueError, match="order must be 1 or 2"):
        gradcheck(ops.neg, X, order=3)


def test_a_fused_op_refuses_its_second_order():
    def twin(x):
        return x * x

    squared = toy(lambda x: (x * x, (x,)), lambda g, x: 2.0 * g * x, fused(twin))
    assert gradcheck(squared, X).first < 1e-10
    with pytest.raises(SecondOrderError, match="twin"):
        gradcheck(squared, X, order=2)


def test_the_same_seed_gives_the_same_report():
    assert gradcheck(ops.tanh, X, order=2) == gradcheck(ops.tanh, X, order=2)
    assert gradcheck(ops.tanh, X, seed=1) != gradcheck(ops.tanh, X)


def test_assert_close():
    a = np.arange(6.0).reshape(2, 3)
    assert assert_close(a, a) == 0.0
    assert assert_close(Tensor(a), a + 1e-8) == pytest.approx(1e-8 / 5.00000001)
    assert assert_close(np.array([0.0, 1e-7]), np.zeros(2) + [0.0, 0.0] + [0, 1e-7]) == 0.0
    assert assert_close(np.array([1.0, -np.inf]), np.array([1.0, -np.inf])) == 0.0
    assert assert_close(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0
    b = a.copy()
    b[1, 2] = 4.0
    with pytest.raises(AssertionError, match=r"logits: at index \(1, 2\) the two are 5 and 4; the difference is 0.25"):
        assert_close(a, b, 1e-3, "logits")
    with pytest.raises(AssertionError, match=r"shapes differ, \(2, 3\) and \(3,\)"):
        assert_close(a, a[0])
    for wrong in (np.nan, np.inf):
        with pytest.raises(AssertionError, match="at index"):
            assert_close(np.array([1.0, wrong]), np.ones(2))
        with pytest.raises(AssertionError, match="at index"):
            assert_close(np.ones(2), np.array([1.0, wrong]))
    with pytest.raises(AssertionError):
        assert_close(np.ones(2), np.zeros(2))
