"""The selective scan: fused equals naive equals plain NumPy; any step size; what it is for constant dt; its memory."""

import importlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.ops import concat, getitem
from tinyrec.recurrences.selective_scan import naive, selective_scan
from tinyrec.tape import SecondOrderError, Tensor
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.recurrences.selective_scan")
scan_module = importlib.import_module("tinyrec.recurrences.scan")


def draw(seed, batch, time, width, n, dtype="float64"):
    """u, dt, a, b, c, d, h_init; half-lives -log(2) / (dt a) between a tenth of a step and 140 steps."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    u, dt = normal((batch, time, width)), np.exp(rng.uniform(-4.0, 0.5, (batch, time, width)))
    a, b, c = -rng.uniform(0.3, 4.0, (width, n)), normal((batch, time, n)), normal((batch, time, n))
    return [x.astype(dtype) for x in (u, dt, a, b, c, normal(width), normal((batch, width, n)))]


def plain(u, dt, a, b, c, d, h):
    """(1) to (4) of the page, every number by itself in Python."""
    y, h = np.empty_like(u), h.copy()
    for i, t, j in np.ndindex(u.shape):
        for k in range(a.shape[1]):
            h[i, j, k] = np.exp(dt[i, t, j] * a[j, k]) * h[i, j, k] + dt[i, t, j] * b[i, t, k] * u[i, t, j]
        y[i, t, j] = np.dot(c[i, t], h[i, j]) + d[j] * u[i, t, j]
    return y, h


@pytest.mark.parametrize("sizes", [(2, 7, 5, 3), (3, 2, 4, 6), (4, 1, 3, 2), (1, 5, 2, 1), (1, 300, 2, 3)])
def test_equals_the_formulas_in_plain_numpy(sizes):
    args = draw(0, *sizes)
    for got, expected in zip(selective_scan(*args), plain(*args), strict=True):
        assert_close(got, expected, 1e-13)


def test_the_numbers_of_the_page():  # docs/recurrences/selective_scan.md, sections 1 and 2
    half = -np.log(2.0)
    numbers = ([[[2.0], [0.5]]], [[[1.0], [2.0]]], [[half, 2.0 * half]], [[[1.0, 1.0], [1.0, 2.0]]],
               [[[1.0, 0.0], [2.0, -1.0]]], [0.0], [[[0.0, 0.0]]])  # fmt: skip
    leaves = [Tensor(np.array(x), requires_grad=True) for x in numbers]
    y, h_last = selective_scan(*leaves)
    assert_close(y, [[[2.0], [0.875]]], 1e-15)
    assert_close(h_last, [[[1.5, 2.125]]], 1e-15)
    gradients = grad(getitem(y, index=(0, 1, 0)), leaves)
    expected = ([[[0.4375], [0.0]]], [[[0.875], [0.75 * half]]], [[2.0, -0.25]], [[[1.0, -0.125], [2.0, -1.0]]],
                [[[0.0, 0.0], [1.5, 2.125]]], [0.5], [[[0.25, -0.015625]]])  # fmt: skip
    for got, wanted in zip(gradients, expected, strict=True):
        assert_close(got, wanted, 1e-14)


@pytest.mark.parametrize("form", ["unbind", "steps", "indexed"])
def test_the_pytorch_twin_of_the_benchmark_computes_the_same(outputs_and_gradients, form):
    torch = pytest.importorskip("torch", reason="the PyTorch side of the benchmarks needs torch")
    from benchmarks.torch_selective_scan import SCANS

    args = draw(19, 2, 7, 5, 3)
    ours = outputs_and_gradients(selective_scan, *args)
    leaves = [torch.tensor(x, requires_grad=True) for x in args]
    outputs = SCANS[form](*leaves)
    cotangents = [torch.tensor(np.random.default_rng([11, k]).standard_normal(y.shape)) for k, y in enumerate(outputs)]
    torch.autograd.backward(outputs, cotangents)
    for x, y in zip(ours, (*outputs, *(leaf.grad for leaf in leaves)), strict=True):
        assert_close(x, y.detach().numpy(), 1e-13)


@settings(max_examples=100)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4)),
    tile=st.sampled_from([1, 40, 300, 256 * 1024]),
    spacing=st.sampled_from([1, 3, 16]),
    two_level=st.booleans(),
    use=st.sampled_from([(0,), (1,), (0, 1)]),
    seed=st.integers(0, 99),
)
def test_fused_equals_naive(assert_same, sizes, tile, spacing, two_level, use, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        patch.setattr(module, "SPACING", spacing)
        patch.setattr(scan_module, "SHORT_ROW", 10**9 if two_level else 0)
        patch.setattr(scan_module, "CHUNK", 2)
        assert_same(selective_scan, naive, *draw(seed, *sizes), use=use)


# Tiles of 16 steps of 1 sequence; of 16 steps of 2, then 1; of 32 steps of all; of 200, where two levels do the scan.
@pytest.mark.parametrize("sizes", [(2, 40, 150, 130), (3, 35, 70, 99), (5, 70, 32, 50), (2, 450, 13, 50)])
def test_fused_equals_naive_at_the_real_tile_size(assert_same, sizes):
    groups, tiles = module._tiles(*sizes[:2], sizes[2] * sizes[3])
    assert len(tiles) > 1 and (len(groups) > 1) == (sizes[0] in (2, 3) and sizes[1] < 450)
    assert_same(selective_scan, naive, *draw(1, *sizes), tol=1e-10)


def test_gradients_agree_with_finite_differences(monkeypatch):
    for tile in (256 * 1024, 60):
        monkeypatch.setattr(module, "TILE", tile)
        monkeypatch.setattr(module, "SPACING", 3)
        assert gradcheck(selective_scan, *draw(2, 2, 7, 5, 3)).first < 1e-8
        assert gradcheck(selective_scan, *draw(2, 3, 1, 2, 4)).first < 1e-8


@pytest.mark.parametrize("cut", range(1, 9))
def test_cut_anywhere_and_chained(assert_same, cut):
    def chained(u, dt, a, b, c, d, h_init):
        left, right = (slice(None), slice(0, cut)), (slice(None), slice(cut, None))
        (u1, dt1, b1, c1), (u2, dt2, b2, c2) = ([getitem(x, index=i) for x in (u, dt, b, c)] for i in (left, right))
        y1, middle = selective_scan(u1, dt1, a, b1, c1, d, h_init)
        y2, last = selective_scan(u2, dt2, a, b2, c2, d, middle)
        return concat(y1, y2, axis=1), last

    for use in ((0,), (1,), (0, 1)):
        assert_same(chained, selective_scan, *draw(3, 2, 9, 5, 3), use=use, tol=1e-13)


def test_constant_steps_make_it_a_convolution():
    """Without selection: y_t = sum_k K_k u_{t-k} + d u_t with K_k = sum_n c_n exp(dt a_n)^k dt b_n."""
    u, dt, a, b, c, d, h_init = draw(4, 2, 30, 5, 3)
    dt[:], b[:], c[:] = dt[0, 0], b[0, 0], c[0, 0]
    y, _ = selective_scan(u, dt, a, b, c, d, 0.0 * h_init)
    powers = np.exp(dt[0, 0][:, None] * a) ** np.arange(30)[:, None, None]  # (k, D, N)
    kernel = (powers * dt[0, 0][:, None] * b[0, 0] * c[0, 0]).sum(axis=2)  # (k, D)
    for i, j in np.ndindex(2, 5):
        assert_close(y[i, :, j], np.convolve(u[i, :, j], kernel[:, j])[:30] + d[j] * u[i, :, j], 1e-13)


def test_one_state_with_softplus_steps_is_a_forget_gate():
    """N = 1, a = -1, b = c = 1, dt = softplus(z): h_t = (1 - g_t) h_{t-1} + dt_t u_t with the gate g = sigmoid(z)."""
    u, z, *_, h_init = draw(5, 2, 9, 4, 1)
    z = np.log(z)
    g, dt = 1.0 / (1.0 + np.exp(-z)), np.log1p(np.exp(z))
    ones = np.ones((2, 9, 1))
    y, h_last = selective_scan(u, dt, -np.ones((4, 1)), ones, ones, np.zeros(4), h_init)
    h = h_init[..., 0]
    for t in range(9):
        h = (1.0 - g[:, t]) * h + dt[:, t] * u[:, t]
        assert_close(y[:, t], h, 1e-14)
    assert_close(h_last[..., 0], h, 1e-14)


def test_a_step_of_size_zero_changes_nothing(outputs_and_gradients):
    u, dt, a, b, c, d, h_init = draw(6, 2, 9, 5, 3)
    dt[:, 3:7] = 0.0
    y, h_last, du, *_ = outputs_and_gradients(selective_scan, u, dt, a, b, c, 0.0 * d, h_init)
    kept = [0, 1, 2, 7, 8]
    y_kept, h_kept = selective_scan(u[:, kept], dt[:, kept], a, b[:, kept], c[:, kept], 0.0 * d, h_init)
    assert (h_last == h_kept).all() and (y[:, kept] == y_kept).all()
    assert (du[:, 3:7] == 0.0).all() and (du[:, kept] != 0.0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step", [1e-8, 1.0, 100.0])
@pytest.mark.parametrize("rate", [-1e-6, -1.0, -1e3])
def test_extreme_steps_stay_finite_without_warnings(outputs_and_gradients, dtype, step, rate):
    u, dt, a, b, c, d, h_init = draw(7, 2, 40, 5, 3, dtype)
    dt[:], a[:] = step, rate
    results = outputs_and_gradients(selective_scan, u, dt, a, b, c, d, h_init)
    assert all(np.isfinite(x).all() and x.dtype == dtype for x in results)
    _, h_last, _, _, da, _, _, _, dh_init = results
    x = dt[..., None] * b[:, :, None] * u[..., None]
    if step * rate < -99.0:  # nothing is remembered
        assert_close(h_last, x[:, -1], 1e-6)
        assert max(np.abs(dh_init).max(), np.abs(da).max()) < 1e-38
    elif step * rate > -2e-4:  # nothing is forgotten
        assert_close(h_last, h_init + x.sum(axis=1), 40 * 2e-4 + 1e-6)


@pytest.mark.parametrize("sizes", [(2, 40, 5, 3), (2, 1, 5, 3)])
@pytest.mark.parametrize("low", [-18.0, -3.0], ids=["dt from 1e-8", "dt from 0.05"])
def test_float32_is_close_to_float64(outputs_and_gradients, sizes, low):
    args = draw(8, *sizes)
    args[1] = np.exp(np.random.default_rng(9).uniform(low, 4.6, args[1].shape))  # to 100
    exact = outputs_and_gradients(selective_scan, *args)
    close = outputs_and_gradients(selective_scan, *(x.astype("float32") for x in args))
    for x, y in zip(close, exact, strict=True):
        assert x.dtype == np.float32
        assert_close(x, y, 5e-6)


@pytest.mark.parametrize("sizes", [(1, 4, 3, 2), (3, 1, 2, 4), (2, 40, 3, 5)])
def test_inputs_and_cotangents_are_not_modified(monkeypatch, sizes):
    monkeypatch.setattr(module, "TILE", 100)
    args = draw(10, *sizes)
    gs = draw(11, *sizes)[0], draw(11, *sizes)[6]
    before = [x.copy() for x in (*args, *gs)]
    (y, h_last), saved = selective_scan.op.forward(*args)
    outputs, kept = (y.copy(), h_last.copy()), [x.copy() for x in saved]
    gradients = selective_scan.op.backward(gs, *saved)
    for x, old in zip((*args, *gs, y, h_last, *saved), (*before, *outputs, *kept), strict=True):
        assert (x == old).all()
    for k, x in enumerate(gradients):
        assert not any(np.shares_memory(x, other) for other in (*args, *gs, y, h_last, *gradients[:k]))


@pytest.mark.parametrize("time", [1, 7])
def test_h_last_is_an_array_of_its_own(time):
    args = draw(12, 2, time, 5, 3)
    (y, h_last), saved = selective_scan.op.forward(*args)
    assert h_last.base is None and not any(np.shares_memory(h_last, x) for x in (y, *saved))


def test_only_the_arguments_and_the_states_before_the_tiles_are_kept():
    batch, time, width, n = 2, 70, 64, 64  # tiles of 32 steps: three
    leaves = [Tensor(x, requires_grad=True) for x in draw(13, batch, time, width, n, "float32")]
    y, _ = selective_scan(*leaves)
    *arguments, states = y.node.saved
    assert all(x is leaf.data for x, leaf in zip(arguments, leaves[:6], strict=True))
    assert states.nbytes == 3 * batch * n * width * 4
    for before, stop in zip(states[1:], (32, 64), strict=True):
        cut = [x.data if i in (2, 5, 6) else x.data[:, :stop] for i, x in enumerate(leaves)]
        assert_close(before, selective_scan(*cut)[1].swapaxes(1, 2), 1e-6)


def test_memory_never_holds_an_array_of_all_states(monkeypatch):
    """Forward and backward need less than one (B, T, D, N) array, and with a small tile a few arrays (B, T, D)."""
    monkeypatch.setattr(module, "TILE", 16 * 1024)
    batch, time, width, n = 3, 1024, 64, 16
    leaves = [Tensor(x, requires_grad=True) for x in draw(14, batch, time, width, n, "float32")]
    dy = draw(15, batch, time, width, n, "float32")[0]
    tracemalloc.start()
    y, _ = selective_scan(*leaves)
    forward = tracemalloc.get_traced_memory()[1] / dy.nbytes
    grad(y, leaves, dy)
    both = tracemalloc.get_traced_memory()[1] / dy.nbytes
    tracemalloc.stop()
    assert forward < 3.0  # y, states (one array, N = SPACING), and the buffers
    assert both < 6.0 < n  # and du, ddt, one product


WRONG = [(1, (2, 7, 4)), (1, (2, 6, 5)), (2, (5,)), (2, (3, 5)), (3, (2, 7, 5)), (4, (2, 6, 3)), (5, (3,))]
WRONG += [(6, (2, 3, 5)), (6, (2, 5))]


@pytest.mark.parametrize(("k", "shape"), WRONG)
def test_wrong_shapes_are_refused(k, shape):
    args = draw(16, 2, 7, 5, 3)
    args[k] = np.zeros(shape)
    with pytest.raises(ValueError, match=r"selective_scan\(u \(2, 7, 5\).*expected T >= 1, dt like u, a \(5, "):
        selective_scan(*args)


def test_no_time_is_refused():
    with pytest.raises(ValueError, match="expected T >= 1"):
        selective_scan(*draw(17, 2, 0, 5, 3))


def test_second_order_is_refused_and_names_the_naive_form():
    leaves = [Tensor(x, requires_grad=True) for x in draw(18, 2, 3, 5, 2)]
    y, _ = selective_scan(*leaves)
    with pytest.raises(SecondOrderError, match=r"tinyrec\.recurrences\.selective_scan\.naive"):
        grad(y, leaves, np.ones(y.shape), create_graph=True)
