"""Shapes, axes and indices that nobody would think of, drawn by hypothesis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

from tinyrec import ops
from tinyrec.check import assert_close, gradcheck
from tinyrec.tape import Tensor
from tinyrec.walk import grad

seeds = st.integers(0, 2**32 - 1)
shapes = array_shapes(max_dims=4, max_side=4)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)) for shape in shapes]


@given(mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4), seeds)
def test_add_and_mul_broadcast(drawn, seed):
    x, y = normal(seed, *drawn.input_shapes)
    assert ops.add(x, y).shape == drawn.result_shape
    gradcheck(ops.add, x, y)
    gradcheck(ops.mul, x, y, order=2)


@given(st.data(), shapes, seeds, st.booleans())
def test_reductions_over_any_axes(data, shape, seed, keepdims):
    axes = st.lists(st.integers(-len(shape), len(shape) - 1), unique_by=lambda a: a % len(shape), min_size=1)
    axis = data.draw(st.one_of(st.none(), st.integers(-len(shape), len(shape) - 1), axes.map(tuple)))
    (x,) = normal(seed, shape)
    for op in (ops.sum, ops.mean, ops.logsumexp):
        gradcheck(lambda x, op=op: op(x, axis=axis, keepdims=keepdims), x)
    assert_close(ops.sum(x, axis=axis, keepdims=keepdims), x.sum(axis, keepdims=keepdims), 1e-14)
    # max without ties: its gradient is one-hot in every reduced slice
    leaf = Tensor(x, True)
    (dx,) = grad(ops.max(leaf, axis=axis, keepdims=True), [leaf], np.ones(x.max(axis, keepdims=True).shape))
    np.testing.assert_array_equal(dx, x == x.max(axis, keepdims=True))


@given(st.data(), array_shapes(max_dims=3, max_side=4), seeds)
def test_getitem_with_repeated_integers(data, shape, seed):
    rows = st.lists(st.integers(-shape[0], shape[0] - 1), max_size=6)
    index = np.array(data.draw(rows), dtype=int)
    x, g = normal(seed, shape, (len(index), *shape[1:]))
    leaf = Tensor(x, True)
    (dx,) = grad(leaf[index], [leaf], g)
    expected = np.zeros(shape)
    for row, at in zip(g, index, strict=True):
        expected[at] += row
    assert_close(dx, expected, 1e-14)
    if len(index):
        gradcheck(lambda x: ops.getitem(x, index=index), x, order=2)


@given(st.data(), shapes, seeds)
def test_split_undoes_concat(data, shape, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any))
    at = axis % len(shape)
    parts = normal(seed, *((*shape[:at], n, *shape[at + 1 :]) for n in sizes))
    whole = ops.concat(*parts, axis=axis)
    pieces = ops.split(whole, sizes=tuple(sizes), axis=axis)
    for part, piece in zip(parts, pieces, strict=True):
        np.testing.assert_array_equal(part, piece)
    gradcheck(lambda x: ops.split(x, sizes=tuple(sizes), axis=axis), whole)
    gradcheck(lambda *xs: ops.concat(*xs, axis=axis), *parts)


@given(st.data(), shapes, seeds)
def test_transpose_undoes_its_inverse(data, shape, seed):
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    (x,) = normal(seed, shape)
    inverse = tuple(np.argsort(axes))
    np.testing.assert_array_equal(ops.transpose(ops.transpose(x, axes=axes), axes=inverse), x)
    gradcheck(lambda x: ops.transpose(x, axes=axes), x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: ops.add(x, np.ones((3, 5))), ["add", "x (2, 7)", "y (3, 5)"]),
        (lambda x: x @ np.ones((6, 5)), ["matmul", "a (2, 7)", "b (6, 5)"]),
        (lambda x: ops.linear(x, np.ones((7, 5)), np.ones(4)), ["linear", "w (7, 5)", "b (4,)"]),
        (lambda x: ops.linear(x, np.ones((7, 5)), np.ones(1)), ["linear", "b (1,)"]),  # NumPy would broadcast it
        (lambda x: ops.concat(x, np.ones((3, 5))), ["concat", "xs (2, 7), xs (3, 5)"]),
        (lambda x: ops.split(x, sizes=(3, 3)), ["split", "x (2, 7)", "(3, 3) add up to 6, axis -1 of x has 7"]),
        (lambda x: x.reshape(3, 5), ["reshape", "x (2, 7)", "(3,5)"]),
        (lambda x: x[5], ["getitem", "x (2, 7)", "index 5"]),
        (lambda x: ops.sum(x, axis=2), ["sum", "x (2, 7)", "axis 2"]),
        (lambda x: ops.where(np.ones(3, bool), x, 0.0), ["where", "mask (3,)", "x (2, 7)", "y 0.0"]),
    ],
)
def test_a_mismatch_names_the_op_the_arguments_and_their_shapes(call, words):
    with pytest.raises((ValueError, IndexError, TypeError)) as caught:
        call(Tensor(np.ones((2, 7)), True))
    for word in words:
        assert word in str(caught.value)
