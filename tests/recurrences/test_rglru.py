"""RG-LRU: fused equals naive equals plain NumPy; documents, extreme decays, the capped slope, what is kept."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.ops import concat, getitem
from tinyrec.recurrences.rglru import naive, rglru
from tinyrec.tape import SecondOrderError, Tensor
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.recurrences.rglru")
scan_module = importlib.import_module("tinyrec.recurrences.scan")


def draw(seed, batch, time, width, dtype="float64"):
    """u, zr, zi, lam, h_init; the decay exp(-8 softplus(lam) r) is between 0.1 and 0.99."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((batch, time, width)) for _ in range(3)]
    arrays += [rng.uniform(-5.0, -2.0, width), rng.standard_normal((batch, width))]
    return [x.astype(dtype) for x in arrays]


def draw_starts(seed, kind, batch, time):
    if kind == "none":
        return None
    if kind == "everywhere":
        return np.ones((batch, time), bool)
    starts = np.zeros((batch, time), bool)
    if kind == "at 0":
        starts[:, 0] = True
    if kind == "random":
        starts = np.random.default_rng([1, seed]).random((batch, time)) < 0.3
    return starts


def plain(u, zr, zi, lam, h_init, starts=None):
    """The formula of the paper and of the released code, step by step."""
    r, i = 1.0 / (1.0 + np.exp(-zr)), 1.0 / (1.0 + np.exp(-zi))
    log_a = -8.0 * r * np.log1p(np.exp(lam))
    a, m = np.exp(log_a), np.sqrt(-np.expm1(2.0 * log_a))
    h, states = h_init, []
    for t in range(u.shape[1]):
        new = (starts[:, t] if starts is not None else np.zeros(len(u), bool))[:, None]
        h = np.where(new, 0.0, a[:, t] * h) + np.where(new, 1.0, m[:, t]) * i[:, t] * u[:, t]
        states.append(h)
    return np.stack(states, axis=1), h


KINDS = ["none", "nowhere", "at 0", "everywhere", "random"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(2, 7, 5), (5, 2, 7), (3, 1, 4), (1, 300, 3)])
def test_equals_the_formula_in_plain_numpy(sizes, kind):
    args, starts = draw(0, *sizes), draw_starts(0, kind, *sizes[:2])
    for got, expected in zip(rglru(*args, starts=starts), plain(*args, starts), strict=True):
        assert_close(got, expected, 1e-13)


@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 5)),
    kind=st.sampled_from(KINDS),
    tile=st.sampled_from([1, 30, 24 * 1024]),
    two_level=st.booleans(),
    use=st.sampled_from([(0,), (1,), (0, 1)]),
    seed=st.integers(0, 99),
)
def test_fused_equals_naive(assert_same, sizes, kind, tile, two_level, use, seed):
    starts = draw_starts(seed, kind, *sizes[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        patch.setattr(scan_module, "SHORT_ROW", 10**9 if two_level else 0)
        patch.setattr(scan_module, "CHUNK", 3)
        assert_same(rglru, naive, *draw(seed, *sizes), starts=starts, use=use)


@pytest.mark.parametrize("sizes", [(2, 900, 33), (1, 2, 13000), (1, 1, 30000)])  # tiles of 372 steps, of one, of less
def test_fused_equals_naive_at_the_real_tile_size(assert_same, sizes):
    assert_same(rglru, naive, *draw(1, *sizes), starts=draw_starts(1, "random", *sizes[:2]))


def test_gradients_agree_with_finite_differences():
    for kind in KINDS:
        starts = draw_starts(2, kind, 2, 7)

        def fn(*args, starts=starts):
            return rglru(*args, starts=starts)

        assert gradcheck(fn, *draw(2, 2, 7, 5)).first < 1e-8


@pytest.mark.parametrize("cut", range(1, 9))
def test_cut_anywhere_and_chained(assert_same, cut):
    starts = draw_starts(3, "random", 2, 9)
    left, right = (slice(None), slice(0, cut)), (slice(None), slice(cut, None))

    def chained(u, zr, zi, lam, h_init):
        h1, middle = rglru(*(getitem(x, index=left) for x in (u, zr, zi)), lam, h_init, starts=starts[left])
        h2, last = rglru(*(getitem(x, index=right) for x in (u, zr, zi)), lam, middle, starts=starts[right])
        return concat(h1, h2, axis=1), last

    def whole(*args):
        return rglru(*args, starts=starts)

    for use in ((0,), (1,), (0, 1)):
        assert_same(chained, whole, *draw(3, 2, 9, 5), use=use, tol=1e-13)


def test_nothing_crosses_a_document_start(outputs_and_gradients):
    args, starts = draw(4, 2, 7, 5), np.zeros((2, 7), bool)
    starts[:, 3] = True
    h, *_ = rglru(*args, starts=starts)
    alone, *_ = rglru(*(x[:, 3:] for x in args[:3]), args[3], args[4] * 1e9, starts=starts[:, 3:])
    assert (h[:, 3:] == alone).all()
    _, _, du, dzr, dzi, _, dh_init = outputs_and_gradients(rglru, *args, starts=starts, use=(1,))
    for x in (du, dzr, dzi):
        assert (x[:, :3] == 0.0).all() and (x[:, 4:] != 0.0).all()
    assert (dzr[:, 3] == 0.0).all() and (du[:, 3] != 0.0).all()  # a and m are constants there
    assert (dh_init == 0.0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lam", [-40.0, 40.0], ids=["a -> 1", "a -> 0"])
@pytest.mark.parametrize("gate", [-60.0, 0.0, 60.0])
def test_extreme_decays_stay_finite_without_warnings(outputs_and_gradients, dtype, lam, gate):
    u, zr, zi, lams, h_init = draw(5, 2, 70, 5, dtype)
    lams[:], zr[:] = lam, gate
    h, h_last, *gradients = outputs_and_gradients(rglru, u, zr, zi, lams, h_init, starts=draw_starts(5, "at 0", 2, 70))
    assert all(np.isfinite(x).all() and x.dtype == dtype for x in (h, h_last, *gradients))
    i = 1.0 / (1.0 + np.exp(-zi))
    if lam < 0 or gate < 0:  # everything is remembered, later input hardly counts
        assert_close(h, np.broadcast_to((i * u)[:, :1], h.shape), 1e-3)
    else:  # nothing is remembered
        assert_close(h, i * u, 1e-6)


def test_the_input_scale_is_exact_for_the_slowest_decays():
    log_a = -np.logspace(-30, 1.5, 4000).astype("float32")
    a, m = module._decay(np.ones((1, 1, 4000), "float32"), log_a, None)
    exact = np.sqrt(-np.expm1(2.0 * log_a.astype("float64")))
    assert np.abs(m[0, 0] / exact - 1.0).max() <= 1e-6
    assert np.abs(a[0, 0] / np.exp(log_a.astype("float64")) - 1.0).max() <= 1e-6
    assert a.dtype == m.dtype == np.float32


@pytest.mark.parametrize("q", [1e-12, 1e-9, 2.4e-7, 2.6e-7, 1e-4])
def test_the_slope_of_the_root_is_capped_at_1000(q):
    """One step with r = 1/2, so log a = -4 softplus(lam) = log(1 - q) / 2; the gradient by equations (9) to (15)."""
    log_a = 0.5 * np.log1p(-q)
    a, m = np.exp(log_a), np.sqrt(q)
    lam = np.log(np.expm1(log_a / -4.0))
    u, i, h_init = 1.7, 0.5, 0.3
    leaves = [Tensor(np.full(shape, x), requires_grad=True)
              for shape, x in (((1, 1, 1), u), ((1, 1, 1), 0.0), ((1, 1, 1), 0.0), ((1,), lam), ((1, 1), h_init))]
    h, _ = rglru(*leaves)
    assert h.data.item() == pytest.approx(a * h_init + m * i * u, rel=1e-12)
    du, dzr, dzi, dlam, dh_init = (float(x.item()) for x in grad(h, leaves, np.ones((1, 1, 1))))

    slope = min(1.0 / (2.0 * m), 1000.0)
    dlog_a = a * (h_init - 2.0 * a * slope * i * u)
    assert dzr == pytest.approx(dlog_a * log_a * 0.5, rel=1e-6)
    assert dlam == pytest.approx(dlog_a * -4.0 / (1.0 + np.exp(-lam)), rel=1e-6)
    assert du == pytest.approx(m * i, rel=1e-6)
    assert dzi == pytest.approx(m * u * i * (1.0 - i), rel=1e-6)
    assert dh_init == pytest.approx(a, rel=1e-12)

    derivative = a * (h_init - a * i * u / m) * log_a * 0.5
    assert (abs(dzr / derivative - 1.0) > 0.01) == (q < 2.5e-7)  # so below the cap it is not the derivative


@pytest.mark.parametrize("sizes", [(1, 4, 3), (3, 1, 2), (1, 1, 2), (2, 40, 3)])
def test_inputs_and_cotangents_are_not_modified(sizes):
    args, starts = draw(6, *sizes), draw_starts(6, "random", *sizes[:2])
    gs = [draw(7, *sizes)[0], draw(7, *sizes)[4]]
    before = [x.copy() for x in (*args, starts, *gs)]
    (h, h_last), saved = rglru.op.forward(*args, starts=starts)
    outputs = h.copy(), h_last.copy()
    gradients = rglru.op.backward(tuple(gs), *saved)
    for x, y in zip((*args, starts, *gs, h, h_last), (*before, *outputs), strict=True):
        assert (x == y).all()
    for k, x in enumerate(gradients):
        assert not any(np.shares_memory(x, y) for y in (*args, *gs, h, h_last, *gradients[:k]))


def test_h_last_is_a_copy():
    h, h_last = rglru(*draw(8, 2, 7, 5))
    assert (h[:, -1] == h_last).all() and not np.shares_memory(h, h_last)
    assert h_last.base is None  # nor a view that keeps the buffer of a tile alive


def test_sixteen_bytes_per_element_are_kept():
    u, zr, zi, lam, h_init = (Tensor(x, requires_grad=True) for x in draw(9, 2, 70, 5, "float32"))
    h, _ = rglru(u, zr, zi, lam, h_init)
    large = [x for x in h.node.saved if getattr(x, "ndim", 0) == 3]
    assert sum(x.nbytes for x in large) == 16 * u.size
    r, i = (1.0 / (1.0 + np.exp(-z.data)) for z in (zr, zi))
    for x, expected in zip(large, (u.data, r, i, h.data), strict=True):
        assert_close(x, expected, 1e-6)


def test_float32_stays(outputs_and_gradients):
    results = outputs_and_gradients(rglru, *draw(10, 2, 7, 5, "float32"), starts=draw_starts(10, "random", 2, 7))
    assert {x.dtype for x in results} == {np.dtype("float32")}


WRONG = [(1, (2, 7, 4)), (2, (2, 6, 5)), (3, (4,)), (3, (1, 5)), (4, (5,)), (4, (3, 5))]


@pytest.mark.parametrize(("k", "shape"), WRONG)
def test_wrong_shapes_are_refused(k, shape):
    args = draw(11, 2, 7, 5)
    args[k] = np.zeros(shape)
    with pytest.raises(ValueError, match=r"rglru\(u \(2, 7, 5\).*expected zr and zi like u, lam \(5,\)"):
        rglru(*args)


def test_no_time_and_wrong_starts_are_refused():
    with pytest.raises(ValueError, match="expected T >= 1"):
        rglru(*draw(12, 2, 0, 5))
    with pytest.raises(ValueError, match=r"starts \(2, 7\)"):
        rglru(*draw(12, 2, 7, 5), starts=np.zeros((7, 2), bool))


def test_second_order_is_refused_and_names_the_naive_form():
    leaves = [Tensor(x, requires_grad=True) for x in draw(13, 2, 3, 5)]
    h, _ = rglru(*leaves)
    with pytest.raises(SecondOrderError, match=r"tinyrec\.recurrences\.rglru\.naive"):
        grad(h, leaves, np.ones(h.shape), create_graph=True)
