"""Walking back: sums over paths, partial graphs, and what it says when that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from tinyrec import ops
from tinyrec.check import assert_close
from tinyrec.tape import Tensor, no_grad, op
from tinyrec.walk import grad


def leaf(*numbers):
    return Tensor(np.array(numbers), requires_grad=True)


# --- backward ---------------------------------------------------------------------------------------------------------


def test_shared_subexpressions_add():
    x = leaf(2.0, 3.0)
    y = x * x
    (y + y * x + y).sum().backward()  # 2 x^2 + x^3
    assert_close(x.grad, 4.0 * x.data + 3.0 * x.data**2, 1e-15)


def test_a_doubling_graph_is_walked_once_per_node():
    x = leaf(1.0)
    y = x
    for _ in range(200):  # 2^200 paths
        y = y + y
    y.sum().backward()
    assert x.grad[0] == 2.0**200


def test_backward_adds_to_what_is_there():
    x = leaf(2.0, 3.0)
    for times in (1, 2, 3):
        (x * 5.0).sum().backward()
        assert_close(x.grad, np.full(2, 5.0 * times), 1e-15)


def test_leaves_do_not_share_their_gradient_arrays():
    x, y, g = leaf(1.0, 2.0), leaf(3.0, 4.0), np.array([1.0, 10.0])
    (x + x + y).backward(g)
    assert_close(x.grad, 2.0 * g, 0.0)
    assert_close(y.grad, g, 0.0)
    for one, other in ((y.grad, g), (x.grad, y.grad)):
        assert not np.shares_memory(one, other)
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    for _ in range(2):
        (a + b.reshape(1, 2).reshape(2)).backward(g)
        a.grad *= 0.5  # as clipping does, in place
    assert_close(a.grad, (g * 0.5 + g) * 0.5, 0.0)
    assert_close(b.grad, 2.0 * g, 0.0)
    c = leaf(1.0, 2.0)
    c.sum().backward()
    c.grad *= 2.0  # not a read-only view of one number
    assert g.tolist() == [1.0, 10.0]


def test_a_leaf_is_its_own_derivative():
    x = leaf(2.0, 3.0)
    x.backward(np.array([4.0, 5.0]))
    assert x.grad.tolist() == [4.0, 5.0]


def test_backward_twice_is_a_clear_error():
    x = leaf(2.0)
    y = x * x
    z = y.sum()
    z.backward()
    with pytest.raises(RuntimeError, match=r"backward through 'sum' a second time: .*Run the forward again"):
        z.backward()
    with pytest.raises(RuntimeError, match="backward through 'mul' a second time"):
        (y * 1.0).sum().backward()  # another path into the part that is used up
    assert x.grad[0] == 4.0


def test_the_cotangent_must_fit():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"shape \(2,\) is not a scalar; pass its cotangent g"):
        (x * 2.0).backward()
    with pytest.raises(ValueError, match=r"cotangent g has shape \(3,\), the tensor has \(2,\)"):
        (x * 2.0).backward(np.ones(3))
    with pytest.raises(ValueError, match="does not depend on any tensor with requires_grad"):
        Tensor(np.ones(())).backward()
    with pytest.raises(ValueError, match="no gradient can reach a tensor of shape"):
        grad((x * 2.0).sum(), [Tensor(np.ones(3))])


def test_the_cotangent_may_be_a_number_a_list_a_tensor_and_takes_the_dtype():
    for g in (3.0, np.float64(3.0), np.array(3.0), Tensor(np.array(3.0))):
        x = Tensor(np.ones(2, np.float32), requires_grad=True)
        x.sum().backward(g)
        assert type(x.grad) is np.ndarray and x.grad.dtype == np.float32 and x.grad.tolist() == [3.0, 3.0]
    x = leaf(1.0, 2.0)
    assert grad(x * 2.0, [x], [1.0, 10.0])[0].tolist() == [2.0, 20.0]


# --- grad -------------------------------------------------------------------------------------------------------------


def test_grad_touches_no_grad_and_gives_zeros_where_nothing_depends():
    x, other = leaf(2.0, 3.0), leaf(1.0, 1.0, 1.0)
    dx, zero = grad((x * x).sum(), [x, other])
    assert_close(dx, 2.0 * x.data, 1e-15)
    assert zero.tolist() == [0.0, 0.0, 0.0]
    assert x.grad is None and other.grad is None
    (zero,) = grad((x * x).sum(), [other], create_graph=True)
    assert type(zero) is Tensor and zero.data.tolist() == [0.0, 0.0, 0.0]


def test_grad_of_an_intermediate_tensor():
    x = leaf(2.0, 3.0)
    y = x * x
    z = (y * y).sum()
    dy, dx, dz = grad(z, [y, x, z])
    assert_close(dy, 2.0 * y.data, 1e-15)
    assert_close(dx, 4.0 * x.data**3, 1e-15)
    assert dz == 1.0


def test_grad_of_one_output_among_several():
    x = leaf(1.0, 2.0, 3.0)
    first, second = ops.split(x * x, sizes=(1, 2))
    dfirst, dsecond = grad((first * 2.0).sum() + (second * 3.0).sum(), [first, second])
    assert (dfirst.tolist(), dsecond.tolist()) == ([2.0], [3.0, 3.0])
    first, second = ops.split(x, sizes=(1, 2))
    assert grad(first.sum(), [second])[0].tolist() == [0.0, 0.0]


def test_grad_stops_at_what_is_asked_for():
    visits = []

    @op
    def counted(x):
        return x * 1.0, ()

    @counted.vjp
    def counted_vjp(g):
        visits.append(1)
        return g

    x = leaf(1.0)
    y = counted(x)
    z = (y * 2.0).sum()
    assert grad(z, [y])[0].tolist() == [2.0] and visits == []
    assert grad(counted(y * 1.0).sum(), [x])[0].tolist() == [1.0] and visits == [1, 1]


def test_inputs_that_need_no_gradient_cost_no_backward():
    asked = []

    @op
    def product(x, y):
        return x * y, (x, y)

    @product.vjp
    def product_vjp(g, x, y, *, needs):
        asked.append([bool(wanted) for wanted in needs])
        return (g * y if needs[0] else None), (g * x if needs[1] else None)

    x, constant = leaf(2.0), Tensor(np.array([3.0]))
    product(product(constant, constant), x).sum().backward()  # the inner product was never recorded
    product(x, 5.0).sum().backward()
    product(x, x.detach()).sum().backward()
    assert asked == [[False, True], [True, False], [True, False]]
    assert x.grad.tolist() == [9.0 + 5.0 + 2.0]


def test_an_unused_output_has_no_cotangent():
    seen = []

    @op
    def two(x):
        return (x * 2.0, x * 3.0), ()

    @two.vjp
    def two_vjp(gs):
        seen.append([g is None for g in gs])
        return sum(f * g for f, g in zip((2.0, 3.0), gs, strict=True) if g is not None)

    x = leaf(1.0)
    a, b = two(x)
    (a.sum() + b.sum() * 10.0).backward()
    two(x)[1].sum().backward()
    assert seen == [[False, False], [True, False]] and x.grad.tolist() == [2.0 + 30.0 + 3.0]


def test_a_tuple_of_one_output_is_a_tuple_for_the_backward_too():
    x = leaf(1.0, 2.0)
    (whole,) = ops.split(x, sizes=(2,))
    assert grad(whole, [x], [3.0, 4.0])[0].tolist() == [3.0, 4.0]


def test_extra_gradients_are_allowed_for_arguments_left_out():
    @op
    def scaled(x, by=None):
        return x * (1.0 if by is None else by), (x, by)

    @scaled.vjp
    def scaled_vjp(g, x, by):
        return (g, None) if by is None else (g * by, (g * x).sum())

    x = leaf(2.0)
    assert grad(scaled(x).sum(), [x])[0].tolist() == [1.0]
    assert grad(scaled(x, 3.0).sum(), [x])[0].tolist() == [3.0]


def test_no_grad_inside_a_graph_cuts_it():
    x = leaf(2.0)
    with no_grad():
        scale = x * 10.0
    (x * scale).sum().backward()
    assert x.grad.tolist() == [20.0]
