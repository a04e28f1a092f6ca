"""The scan: fused equals naive in both forms, with gradients of states; cut anywhere; differentiable twice."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.ops import concat, getitem
from tinyrec.recurrences.scan import adjoint_scan, naive, scan, times_previous
from tinyrec.tape import Tensor
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.recurrences.scan")
LOOP, TWO_LEVEL = 0, 10**9  # SHORT_ROW that forces one form


@pytest.fixture(params=[LOOP, TWO_LEVEL], ids=["loop", "two-level"])
def form(request, monkeypatch):
    monkeypatch.setattr(module, "SHORT_ROW", request.param)
    monkeypatch.setattr(module, "CHUNK", 3)  # so that 12 steps are enough for two levels
    return request.param


def draw(seed, time, *row, dtype="float64"):
    """a in (-1, 1), b, h_init."""
    rng = np.random.default_rng(seed)
    a = rng.uniform(-1.0, 1.0, (time, *row))
    return [x.astype(dtype) for x in (a, rng.standard_normal((time, *row)), rng.standard_normal(row))]


def test_the_numbers_of_the_page():  # docs/recurrences/scan.md, sections 1 and 2
    leaves = [Tensor(np.array(x), requires_grad=True) for x in ([0.5, 0.5, 0.25], [1.0, 3.0, 1.0], 2.0)]
    h, h_last = scan(*leaves)
    assert h.data.tolist() == [2.0, 4.0, 2.0] and h_last.item() == 2.0
    loss = getitem(h, index=0) + getitem(h, index=2) + h_last * 3.0
    da, db, dh_init = grad(loss, leaves)
    assert (da.tolist(), db.tolist(), float(dh_init)) == ([3.0, 2.0, 16.0], [1.5, 1.0, 4.0], 0.75)


@settings(max_examples=100)
@given(
    time=st.integers(1, 30),
    row=st.lists(st.integers(1, 4), max_size=3),
    short_row=st.sampled_from([LOOP, TWO_LEVEL]),
    chunk=st.integers(1, 5),
    seed=st.integers(0, 99),
    use=st.sampled_from([(0,), (1,), (0, 1)]),
)
def test_fused_equals_naive(assert_same, time, row, short_row, chunk, seed, use):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHORT_ROW", short_row)
        patch.setattr(module, "CHUNK", chunk)
        assert_same(scan, naive, *draw(seed, time, *row), use=use, tol=1e-12)


def test_the_form_depends_on_the_row_and_the_length(monkeypatch):
    lengths = []
    two_level = module._two_level
    monkeypatch.setattr(module, "_two_level", lambda a, *rest: (lengths.append(len(a)), two_level(a, *rest)))
    for time, width in [(128, 699), (127, 5), (128, 700), (300, 5)]:
        scan(*draw(0, time, width))
        adjoint_scan(*draw(0, time, width))
    assert lengths == [128, 128, 300, 300]


@pytest.mark.parametrize("sizes", [(1, 5), (129, 3), (131, 2, 7), (3, 1000)])
def test_fused_equals_naive_at_the_real_thresholds(assert_same, sizes):
    assert_same(scan, naive, *draw(1, *sizes), tol=1e-12)


@pytest.mark.parametrize("cut", [1, 2, 7, 12, 19])
def test_cut_anywhere_and_chained(assert_same, form, cut):
    def chained(a, b, h_init):
        left, right = slice(0, cut), slice(cut, None)
        h1, middle = scan(getitem(a, index=left), getitem(b, index=left), h_init)
        h2, last = scan(getitem(a, index=right), getitem(b, index=right), middle)
        return concat(h1, h2), last

    for use in ((0,), (1,), (0, 1)):
        assert_same(chained, scan, *draw(2, 20, 2, 5), use=use, tol=0.0 if form == LOOP else 1e-13)


@pytest.mark.parametrize("time", [1, 2, 13])
def test_second_order(form, time):
    a, b, h_init = draw(3, time, 2, 3)
    for op, args in (
        (scan, (a, b, h_init)),
        (adjoint_scan, (a, b, h_init)),
        (times_previous, (a, b, h_init)),
    ):
        report = gradcheck(op, *args, order=2)
        assert report.second is not None and report.second < 1e-7


def test_the_adjoint_is_the_transpose_of_the_scan(form):
    a, b, h_init = draw(4, 17, 2, 5)
    _, g, g_last = draw(5, 17, 2, 5)
    h, h_last = scan(a, b, h_init)
    delta, first = adjoint_scan(a, g, g_last)
    forwards, backwards = np.vdot(g, h) + np.vdot(g_last, h_last), np.vdot(delta, b) + np.vdot(first, h_init)
    assert forwards == pytest.approx(backwards, rel=1e-12)


def test_times_previous_by_hand():
    delta, h = np.array([[2.0], [3.0], [5.0]]), np.array([[7.0], [11.0], [13.0]])
    assert times_previous(delta, h, np.array([17.0])).tolist() == [[34.0], [21.0], [55.0]]


def test_the_adjoint_may_be_written_over_its_cotangent(form):
    a, g, g_last = draw(6, 17, 3)
    delta, first = adjoint_scan(a, g, g_last)
    kept = g_last.copy()
    again = module.adjoint_into(a, g, g_last, g)
    assert (g == delta).all() and (again == first).all() and (g_last == kept).all()


def test_a_decay_of_zero_forgets_and_never_divides(form):
    a, b, h_init = draw(7, 20, 3)
    a[[0, 9]] = 0.0
    h, _ = scan(a, b, np.full(3, 1e300))
    assert_close(h[9:], scan(a[9:], b[9:], h_init)[0], 1e-14)
    assert (h[0] == b[0]).all()


@pytest.mark.parametrize("short_row", [LOOP, TWO_LEVEL])
def test_products_that_underflow_are_harmless(monkeypatch, short_row):  # docs/recurrences/scan.md, section 4
    monkeypatch.setattr(module, "SHORT_ROW", short_row)
    h, _ = scan(np.full((512, 1), 0.66, "float32"), np.ones((512, 1), "float32"), np.zeros(1, "float32"))
    assert h[-1, 0] == pytest.approx(1.0 / (1.0 - 0.66), rel=1e-6) and h.dtype == np.float32


def test_float32_stays(form, outputs_and_gradients):
    assert {x.dtype for x in outputs_and_gradients(scan, *draw(8, 20, 3, dtype="float32"))} == {np.dtype("float32")}


def test_the_last_state_is_a_copy_and_only_inputs_and_outputs_are_saved():
    a, b, h_init = (Tensor(x, requires_grad=True) for x in draw(9, 5, 2))
    h, h_last = scan(a, b, h_init)
    assert not np.shares_memory(h.data, h_last.data)
    assert [x is y for x, y in zip(h.node.saved, (a.data, h.data, h_init.data), strict=True)] == [True] * 3


WRONG = [((0, 3), (0, 3), (3,)), ((5, 3), (5, 2), (3,)), ((5, 3), (5, 3), (5,)), ((), (), ())]


@pytest.mark.parametrize("shapes", WRONG)
@pytest.mark.parametrize("op", [scan, adjoint_scan])
def test_wrong_shapes_are_refused(op, shapes):
    with pytest.raises(ValueError, match=r"scan\(a .*expected two arrays \(T, ...\) of one shape with T >= 1"):
        op(*map(np.zeros, shapes))
