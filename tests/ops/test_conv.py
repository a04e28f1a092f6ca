"""The causal convolution: fused equals naive equals plain loops, cut anywhere, blind to other documents."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close
from tinyrec.ops import causal_conv, concat, getitem
from tinyrec.tape import SecondOrderError, Tensor
from tinyrec.walk import grad

naive = importlib.import_module("tinyrec.ops.conv").naive


def draw(seed, batch, time, width, taps, dtype="float64"):
    """x, w, b, state."""
    rng = np.random.default_rng(seed)
    shapes = (batch, time, width), (taps, width), (width,), (batch, taps - 1, width)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def document_positions(seed, batch, time):
    """Places in documents of random length; the first token of a row may be in the middle of a document."""
    rng = np.random.default_rng([1, seed])
    positions = np.zeros((batch, time), int)
    positions[:, 0] = rng.integers(0, 4, batch)
    for t in range(1, time):
        positions[:, t] = np.where(rng.random(batch) < 0.4, 0, positions[:, t - 1] + 1)
    return positions


def by_loops(x, w, b, state, positions=None):
    padded, taps = np.concatenate([state, x], axis=1), len(w)
    u = np.zeros_like(x)
    for n, t, e in np.ndindex(x.shape):
        reach = taps - 1 if positions is None else min(taps - 1, positions[n, t])
        u[n, t, e] = b[e] + sum(w[taps - 1 - j, e] * padded[n, taps - 1 + t - j, e] for j in range(reach + 1))
    return u, padded[:, x.shape[1] :]


SIZES = [(2, 7, 5, 4), (5, 2, 7, 4), (3, 1, 2, 4), (1, 6, 3, 1), (2, 3, 1, 2), (1, 1, 1, 1)]  # B, T, E, W


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_sum_written_with_loops(sizes, documents):
    args = draw(0, *sizes)
    positions = document_positions(0, *sizes[:2]) if documents else None
    for got, expected in zip(causal_conv(*args, positions=positions), by_loops(*args, positions), strict=True):
        assert_close(got, expected, 1e-14)


@settings(max_examples=60)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (4, 9, 6, 5))),
    seed=st.integers(0, 99),
    documents=st.booleans(),
    use=st.sampled_from([(0,), (1,), (0, 1)]),
)
def test_fused_equals_naive(assert_same, sizes, seed, documents, use):
    positions = document_positions(seed, *sizes[:2]) if documents else None
    assert_same(causal_conv, naive, *draw(seed, *sizes), positions=positions, use=use)


@pytest.mark.parametrize("cut", range(1, 7))
def test_cut_anywhere_and_chained(assert_same, cut):
    args, positions = draw(3, 2, 7, 5, 4), document_positions(3, 2, 7)

    def chained(x, w, b, state):
        left, right = (slice(None), slice(cut)), (slice(None), slice(cut, None))
        u1, middle = causal_conv(getitem(x, index=left), w, b, state, positions=positions[left])
        u2, last = causal_conv(getitem(x, index=right), w, b, middle, positions=positions[right])
        return concat(u1, u2, axis=1), last

    def whole(x, w, b, state):
        return causal_conv(x, w, b, state, positions=positions)

    assert_same(chained, whole, *args, tol=1e-13)


def test_other_documents_and_the_future_have_no_influence():
    x, w, b, state = draw(4, 1, 8, 5, 4)
    positions = np.array([[3, 4, 5, 0, 1, 2, 3, 4]])
    u, _ = causal_conv(x, w, b, state, positions=positions)
    x[:, :3], state[:] = 1e6, 1e6  # the document before
    x[:, 6:] = 1e6  # the future
    moved, _ = causal_conv(x, w, b, state, positions=positions)
    assert (moved[:, 3:6] == u[:, 3:6]).all()
    assert (np.abs(moved[:, :3] - u[:, :3]) > 1.0).all()


def test_float32_stays_and_large_numbers_do_not_warn(outputs_and_gradients):
    x, w, b, state = draw(5, 2, 7, 5, 4, "float32")
    results = outputs_and_gradients(causal_conv, x * 1e4, w, b, state * 1e4)
    assert {a.dtype for a in results} == {np.dtype("float32")}
    assert all(np.isfinite(a).all() for a in results)


def test_the_new_state_is_a_copy():
    x, w, b, state = draw(6, 2, 7, 5, 4)
    _, last = causal_conv(x, w, b, state)
    expected = last.copy()
    x[:] = 0.0
    assert (last == expected).all() and last.base is None


@pytest.mark.parametrize(("k", "shape"), [(1, (4, 6)), (2, (6,)), (3, (2, 4, 5)), (3, (3, 3, 5)), (3, (2, 3, 1))])
def test_wrong_shapes_are_refused(k, shape):
    args = draw(7, 2, 7, 5, 4)
    args[k] = np.zeros(shape)
    with pytest.raises(ValueError, match=r"causal_conv\(x \(2, 7, 5\).*expected w \(W, 5\)"):
        causal_conv(*args)


def test_second_order_is_refused_and_names_the_naive_form():
    leaves = [Tensor(a, requires_grad=True) for a in draw(8, 2, 7, 5, 4)]
    u, _ = causal_conv(*leaves)
    with pytest.raises(SecondOrderError, match=r"tinyrec\.ops\.conv\.naive"):
        grad(u, leaves, np.ones(u.shape), create_graph=True)
