"""What the tape holds on to: deep graphs need no recursion, and memory returns by reference counts alone."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import numpy as np
import pytest

from tinyrec.tape import Node, Tensor
from tinyrec.walk import grad


def leaf(*shape):
    return Tensor(np.ones(shape), requires_grad=True)


@pytest.fixture
def no_garbage_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def chain(x, n):
    y = x
    for _ in range(n):
        y = y * 1.0001
    return y


def nodes_alive():
    return sum(type(thing) is Node for thing in gc.get_objects())


def test_deep_chains_need_no_recursion(no_garbage_collector):
    x, before = leaf(2), nodes_alive()
    y = chain(x, 20_000)
    assert nodes_alive() == before + 20_000
    y.sum().backward()
    np.testing.assert_allclose(x.grad, 1.0001**20_000)
    del y
    assert nodes_alive() == before
    unused = chain(x, 20_000)  # freed without ever being walked
    del unused
    assert nodes_alive() == before


def test_memory_returns_without_the_garbage_collector(no_garbage_collector):
    x = leaf(1000)
    chain(x, 10).sum().backward()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    y = chain(x, 100)
    assert tracemalloc.get_traced_memory()[0] - before > 90 * 8000  # each mul saves its input
    inner = weakref.ref(y)
    y.sum().backward()
    held = tracemalloc.get_traced_memory()[0] - before
    assert held < 20 * 8000 + 200_000  # y still there, but the saved arrays of its history are gone
    del y
    assert inner() is None
    x.grad = None
    assert tracemalloc.get_traced_memory()[0] - before < 40_000
    tracemalloc.stop()


def test_a_second_derivative_leaves_no_cycle(no_garbage_collector):
    x = leaf(3)
    y = (x * x * x).sum()
    (dx,) = grad(y, [x], create_graph=True)
    dx.sum().backward()
    refs = [weakref.ref(y), weakref.ref(dx), weakref.ref(x)]
    del y, dx, x
    assert [r() for r in refs] == [None, None, None]
