"""The tape: what is recorded, what is not, and what it says when something is wrong."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tinyrec import ops
from tinyrec.tape import OPS, Leaf, NonFiniteError, Tensor, fused, nan_check, no_grad, op


def leaf(*shape, dtype=np.float64):
    return Tensor(np.ones(shape, dtype), requires_grad=True)


# --- Tensor -----------------------------------------------------------------------------------------------------------


def test_a_tensor_of_a_tensor_is_refused():
    with pytest.raises(TypeError, match="got a Tensor; use x"):
        Tensor(leaf(2))


@pytest.mark.parametrize("data", [np.arange(3), np.array([True]), 3])
def test_only_floats_require_gradients(data):
    assert not Tensor(data).requires_grad
    with pytest.raises(TypeError, match=r"only floating point tensors have gradients, got dtype (int64|bool)"):
        Tensor(data, requires_grad=True)


def test_a_tensor_is_a_view_of_its_array_and_never_the_array_itself():
    for array in (np.ones((2, 3)), np.array(1.0)):
        x = Tensor(array)
        assert x.data is not array and x.detach().data is not x.data
        array[...] = 5.0
        assert (x.numpy() == 5.0).all()


def test_what_a_tensor_tells_about_itself():
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, np.float32, 2)
    assert "float32, leaf" in repr(x) and "from mul" in repr(x * 2.0)
    assert repr(Tensor([1.5])) == "Tensor([1.5], float64)"
    assert ops.sum(x).item() == 6.0


def test_grad_can_only_be_set_on_a_leaf():
    x = leaf(3)
    x.grad = np.zeros(3)
    assert (x.grad == 0.0).all()
    for other in (x * 2.0, x.detach()):
        assert other.grad is None
        with pytest.raises(ValueError, match="only a leaf"):
            other.grad = np.zeros(3)


@pytest.mark.parametrize("call", [np.asarray, np.sum, np.exp, np.zeros_like, lambda x: np.concatenate([x, x])])
def test_numpy_does_not_swallow_a_tensor(call):
    with pytest.raises(TypeError):
        call(leaf(3))


def test_operators_with_arrays_and_numbers_on_either_side():
    x, a = Tensor(np.array([[1.0, 2.0], [3.0, 5.0]])), np.array([[2.0, 4.0], [8.0, 16.0]])
    pairs = [
        (x + a, x.data + a), (a + x, a + x.data), (x - a, x.data - a), (a - x, a - x.data), (x * a, x.data * a),
        (a * x, a * x.data), (x / a, x.data / a), (a / x, a / x.data), (x @ a, x.data @ a), (a @ x, a @ x.data),
        (2.0 - x, 2.0 - x.data), (2.0 / x, 2.0 / x.data), (-x, -x.data), (x**2, x.data**2), (x[1], x.data[1]),
        (np.float64(2.0) * x, 2.0 * x.data), (x.sum(axis=0), x.data.sum(0)), (x.mean(), x.data.mean()),
        (x.max(axis=1), x.data.max(1)), (x.reshape(4), x.data.reshape(4)), (x.reshape((1, -1)), x.data.reshape(1, -1)),
        (x.transpose(), x.data.T), (x.transpose(1, 0), x.data.T),
    ]  # fmt: skip
    for y, expected in pairs:
        assert type(y) is Tensor
        np.testing.assert_array_equal(y.data, expected)


# --- recording --------------------------------------------------------------------------------------------------------


def nodes_made(call) -> int:
    """How many ids `call` used up."""
    before = Leaf().id
    call()
    return Leaf().id - before - 1


def test_only_what_leads_to_a_leaf_is_recorded():
    x, constant = leaf(3), Tensor(np.ones(3))
    assert nodes_made(lambda: x * 2.0 + constant) == 2
    assert nodes_made(lambda: constant * 2.0 + np.ones(3)) == 0
    assert nodes_made(lambda: ops.silu(x)) == 1  # the ops inside of a forward get arrays
    y = constant * 2.0
    assert type(y) is Tensor and not y.requires_grad


def test_no_grad_nests_and_survives_exceptions():
    x = leaf(3)

    @no_grad()
    def silent(fail=False):
        if fail:
            raise KeyError("on purpose")
        return x * 2.0

    for _ in range(2):  # a decorated function can be called again
        assert not silent().requires_grad
        assert (x * 2.0).requires_grad
    with pytest.raises(KeyError):
        silent(fail=True)
    assert (x * 2.0).requires_grad
    with no_grad():
        with no_grad():
            assert not (x * 2.0).requires_grad
        assert not (x * 2.0).requires_grad
    assert (x * 2.0).requires_grad


def test_no_grad_is_per_thread():
    x, seen = leaf(3), []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2.0).requires_grad))
        thread.start()
        thread.join()
        assert seen == [True] and not (x * 2.0).requires_grad


def test_threads_record_independently():
    results, start = {}, threading.Barrier(2)

    def work(k):
        start.wait()
        x = Tensor(np.full(3, 1.0 + k), requires_grad=True)
        y = x
        for _ in range(300):
            y = y * x - y * 0.5 - x * (y.detach() - 1.0)  # = x - y / 2: stays near 2 x / 3
        y.sum().backward()
        results[k] = (y.data, x.grad)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = dict(results)
    start = threading.Barrier(1)
    for k in range(2):
        work(k)
        for a, b in zip(alone[k], results[k], strict=True):
            np.testing.assert_array_equal(a, b)


# --- messages ---------------------------------------------------------------------------------------------------------


def test_nan_check_names_the_op_of_a_forward():
    x = Tensor(np.array([1.0, -1.0]), requires_grad=True)
    with np.errstate(invalid="ignore"):
        assert np.isnan(ops.log(x).data[1])  # not asked, not told
        with nan_check(), pytest.raises(NonFiniteError, match=r"op 'log' gave NaN or infinity in a result of"):
            ops.log(x)
        with nan_check(), pytest.raises(NonFiniteError, match="op 'log'"):
            ops.log(x.data)


def test_nan_check_names_the_op_of_a_backward():
    x = Tensor(np.array([0.0, 1.0]), requires_grad=True)
    with nan_check(), np.errstate(divide="ignore"):
        y = ops.sqrt(x).sum()
        with pytest.raises(NonFiniteError, match=r"vjp of op 'sqrt' gave NaN or infinity in a gradient"):
            y.backward()
    with np.errstate(divide="ignore"):
        ops.sqrt(x).sum().backward()  # the switch is off again
    assert np.isinf(x.grad[0])


def test_an_op_without_a_backward_says_so():
    @op
    def half(x):
        return x * 0.5, ()

    with pytest.raises(TypeError, match="op 'half' has no backward yet"):
        half(leaf(2)).sum().backward()


@pytest.mark.parametrize("gradients", [lambda g: (), lambda g: (g, g)])
def test_a_backward_with_the_wrong_number_of_gradients(gradients):
    @op
    def same(x):
        return x * 1.0, ()

    same.vjp(gradients)
    with pytest.raises(TypeError, match=r"the vjp of op 'same' gave [02] gradients for 1 arguments"):
        same(leaf(2)).sum().backward()


def test_the_registry_knows_every_kind():
    def naive(x):
        return x * 1.0

    @fused(naive)
    def quick(x):
        return x * 1.0, ()

    assert OPS[f"{__name__}.quick"] is quick.op and quick.op.twin is naive
    assert OPS["tinyrec.ops.elementwise.bounded_sqrt"].surrogate.startswith("the slope")
    assert OPS["tinyrec.ops.elementwise.add"].selective and not OPS["tinyrec.ops.elementwise.exp"].selective
