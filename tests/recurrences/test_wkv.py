"""WKV: fused equals naive equals the official loop; both gauges, extreme keys and decays, states, what is kept."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.ops import concat, exp, getitem
from tinyrec.recurrences.wkv import EMPTY, fresh_state, naive, wkv
from tinyrec.tape import SecondOrderError, Tensor, array_of
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.recurrences.wkv")
scan_module = importlib.import_module("tinyrec.recurrences.scan")
NEVER = {4: 0.0, 8: 0.0}  # a LARGEST under which the single gauge (9) is never taken


def draw(seed, batch, time, width, dtype="float64", fresh=False):
    """k, v, time_decay, time_first, p, q, o; half-lives are between 0.1 and 100 steps."""
    rng = np.random.default_rng(seed)
    k, v, p, o = (rng.standard_normal(shape) for shape in [(batch, time, width)] * 2 + [(batch, width)] * 2)
    q = rng.uniform(1.0, 3.0, (batch, width))
    state = fresh_state(batch, width, q) if fresh else (p, q, o)
    return [x.astype(dtype) for x in (k, v, rng.uniform(-5.0, 2.0, width), rng.normal(-1.0, 0.5, width), *state)]


def sums(fn):
    """fn with y, A = p e^o and B = q e^o as its outputs: what does not depend on the choice of the gauge o."""

    def in_no_gauge(*args):
        y, p, q, o = fn(*args)
        scale = exp(array_of(o))
        return y, p * scale, q * scale

    return in_no_gauge


def official(k, v, time_decay, time_first, p, q, o):
    """The loop of the released code, which looks for a largest exponent twice a step."""
    lam, u, ys = -np.exp(time_decay), time_first, []
    for t in range(k.shape[1]):
        kt, vt = k[:, t], v[:, t]
        m = np.maximum(o, u + kt)
        e1, e2 = np.exp(o - m), np.exp(u + kt - m)
        ys.append((e1 * p + e2 * vt) / (e1 * q + e2))
        m = np.maximum(o + lam, kt)
        e1, e2 = np.exp(o + lam - m), np.exp(kt - m)
        p, q, o = e1 * p + e2 * vt, e1 * q + e2, m
    return np.stack(ys, axis=1), p, q, o


@pytest.mark.parametrize("limits", [module.LARGEST, NEVER], ids=["single gauge", "two gauges"])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("sizes", [(2, 7, 5), (5, 2, 7), (3, 1, 4), (1, 300, 3)])
def test_both_equal_the_official_loop(monkeypatch, sizes, fresh, limits):
    monkeypatch.setattr(module, "LARGEST", limits)
    args = draw(0, *sizes, fresh=fresh)
    for ours in (wkv(*args), naive(*args)):
        for got, expected in zip(ours, official(*args), strict=True):  # the state too: the gauge is the official one
            assert_close(got, expected, 1e-13)


@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 5)),
    tile=st.sampled_from([(1, 1), (30, 1), (1, 4), (64 * 1024, 16)]),
    two_level=st.booleans(),
    limits=st.sampled_from([module.LARGEST, NEVER]),
    fresh=st.booleans(),
    use=st.sampled_from([(0,), (1,), (2,), (0, 1, 2)]),
    seed=st.integers(0, 99),
)
def test_fused_equals_naive(assert_same, sizes, tile, two_level, limits, fresh, use, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile[0])
        patch.setattr(module, "LEAST_STEPS", tile[1])
        patch.setattr(module, "LARGEST", limits)
        patch.setattr(scan_module, "SHORT_ROW", 10**9 if two_level else 0)
        patch.setattr(scan_module, "CHUNK", 3)
        assert_same(sums(wkv), sums(naive), *draw(seed, *sizes, fresh=fresh), use=use)


@pytest.mark.parametrize("sizes", [(2, 60, 600), (1, 20, 4200), (1, 1, 30000)])  # tiles of 54 steps, 16 steps, one
def test_fused_equals_naive_at_the_real_tile_size(assert_same, sizes):
    assert_same(sums(wkv), sums(naive), *draw(1, *sizes))


@pytest.mark.parametrize("fresh", [False, True])
def test_gradients_agree_with_finite_differences(fresh):
    args = draw(2, 2, 7, 5, fresh=fresh)
    assert gradcheck(sums(wkv), *args, constants=[6]).first < 1e-8
    report = gradcheck(sums(naive), *draw(2, 2, 3, 4, fresh=fresh), constants=[6], order=2)
    assert report.first < 1e-8 and report.second < 1e-8


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("cut", range(1, 9))
def test_cut_anywhere_and_chained(assert_same, cut, fresh):
    left, right = ((slice(None), slice(*ends)) for ends in ((0, cut), (cut, None)))

    def chained(k, v, time_decay, time_first, p, q, o):
        y1, *middle = wkv(*(getitem(x, index=left) for x in (k, v)), time_decay, time_first, p, q, o)
        y2, *last = wkv(*(getitem(x, index=right) for x in (k, v)), time_decay, time_first, *middle)
        return concat(y1, y2, axis=1), *last

    for use in ((0,), (1,), (2,), (0, 1, 2)):
        assert_same(sums(chained), sums(wkv), *draw(3, 2, 9, 5, fresh=fresh), use=use, tol=1e-13)


def test_one_step_takes_the_short_way(monkeypatch):
    args = draw(4, 3, 9, 5)
    whole = wkv(*args)
    monkeypatch.setattr(module, "_run", None)  # what the tiles call
    state, ys = args[4:], []
    for t in range(9):
        y, *state = wkv(args[0][:, t : t + 1], args[1][:, t : t + 1], *args[2:4], *state)
        ys.append(y)
    for got, expected in zip((np.concatenate(ys, axis=1), *state), whole, strict=True):
        assert_close(got, expected, 1e-14)


def test_the_gauge_of_the_first_state_is_free(outputs_and_gradients):
    args = draw(5, 2, 7, 5)
    shifted = [*args[:4], args[4] * np.exp(3.0), args[5] * np.exp(3.0), args[6] - 3.0]
    ours, same = (outputs_and_gradients(sums(wkv), *x) for x in (args, shifted))
    scale = [1.0] * 7 + [np.exp(3.0)] * 2 + [1.0]  # dp and dq are gradients of numbers e^3 times smaller
    for a, b, factor in zip(ours, same, scale, strict=True):
        assert_close(a, b * factor, 1e-12)


def test_the_gauge_has_no_gradient_and_gives_none(outputs_and_gradients):
    *_, do = outputs_and_gradients(wkv, *draw(6, 2, 7, 5))
    assert (do == 0.0).all()
    gradients = outputs_and_gradients(wkv, *draw(6, 2, 7, 5), use=(3,))[4:]
    assert all((x == 0.0).all() for x in gradients)


# --- what is true of the definition -----------------------------------------------------------------------------------


def test_the_first_output_is_the_first_value_and_no_output_is_larger_than_the_values():
    args = draw(7, 3, 50, 4, fresh=True)
    y, *_ = wkv(*args)
    assert_close(y[:, 0], args[1][:, 0], 1e-15)
    assert (np.abs(y) <= np.maximum.accumulate(np.abs(args[1]), axis=1) * (1.0 + 1e-14)).all()


def test_without_decay_and_bonus_it_is_a_running_softmax_average(outputs_and_gradients):
    """AFT-simple: time_decay = -inf gives lam = 0, and the two states are cumulative sums."""
    k, v, time_decay, time_first, *state = draw(8, 2, 40, 5, fresh=True)
    time_decay[:], time_first[:] = -np.inf, 0.0
    y, a, b, _, _, dtime_decay, *_ = outputs_and_gradients(sums(wkv), k, v, time_decay, time_first, *state)
    num, den = np.cumsum(np.exp(k) * v, axis=1), np.cumsum(np.exp(k), axis=1)
    for got, expected in ((y, num / den), (a, num[:, -1]), (b, den[:, -1])):
        assert_close(got, expected, 1e-13)
    assert (dtime_decay == 0.0).all()


def test_two_shifts_that_change_nothing(outputs_and_gradients):
    """y stays when every k rises by a constant; and when k_t rises by t, while lam rises by 1 and u falls by 1."""
    args = draw(9, 2, 40, 5, fresh=True)
    *_, dk, _, dtime_decay, du, _, _, _ = outputs_and_gradients(wkv, *args, use=(0,))
    assert np.abs(dk.sum(axis=1)).max() <= 1e-13 * np.abs(dk).max()
    dlam = dtime_decay / -np.exp(args[2])
    assert_close((dk * np.arange(40)[:, None]).sum(axis=(0, 1)) + dlam, du, 1e-12)


# --- extremes ---------------------------------------------------------------------------------------------------------


def reference(k, v, time_decay, time_first, dy):
    """y and the gradients of k, v, time_decay, time_first from a fresh state, by the T x T softmax, in long double.

    Each comes with the sum of the sizes of the terms it is made of: rounding is to be measured against that, since
    where one token outweighs all others the terms cancel.
    """
    k, v, time_decay, time_first, dy = (np.asarray(x, np.longdouble) for x in (k, v, time_decay, time_first, dy))
    batch, time, width = k.shape
    t, lam = np.arange(time), -np.exp(time_decay)
    age = np.maximum(t[:, None] - 1 - t, 0)
    shapes = k.shape, k.shape, k.shape, width, width
    results, sizes = ([np.zeros(shape, np.longdouble) for shape in shapes] for _ in range(2))
    for b, c in np.ndindex(batch, width):
        kc, vc, g = k[b, :, c], v[b, :, c], dy[b, :, c, None]
        z = np.where(t > t[:, None], -np.inf, age * lam[c] + kc + np.eye(time) * time_first[c])
        w = np.exp(z - z.max(axis=1, keepdims=True))
        w /= w.sum(axis=1, keepdims=True)
        yc = (w @ vc)[:, None]
        dz, size = g * w * (vc - yc), np.abs(g) * w * (np.abs(vc) + np.abs(yc))
        for kept, dzc, x, dx in ((results, dz, vc, g), (sizes, size, np.abs(vc), np.abs(g))):
            y, dk, dv, dtime_decay, du = kept
            y[b, :, c] = w @ x
            dk[b, :, c] = dzc.sum(axis=0)
            dv[b, :, c] = (w * dx).sum(axis=0)
            dtime_decay[c] += (dzc * age).sum() * lam[c]
            du[c] += np.diag(dzc).sum()
    return results, sizes


def ramp(z):
    return np.zeros_like(z) + np.linspace(0.0, -1e4, z.shape[1])[:, None]


KEYS = {
    "normal": lambda z: z,
    "60 normal": lambda z: 60.0 * z,
    "+-60": lambda z: 60.0 * np.sign(z),
    "+-1e4": lambda z: 1e4 * np.sign(z),
    "normal - 1e4": lambda z: z - 1e4,
    "ramp down": ramp,
    "ramp up": lambda z: ramp(z)[:, ::-1],
}
# Measured: at most 3e-15 and 9e-7. The spacing of float32 at 1e4 is 1e-3, and a loop that rounds its exponents there
# errs by as much; here only differences of exponents are rounded.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("limits", [module.LARGEST, NEVER], ids=["single gauge", "two gauges"])
@pytest.mark.parametrize(("keys", "time"), [*((name, 150) for name in KEYS), ("normal", 1500), ("normal - 1e4", 1500)])
def test_extreme_keys(monkeypatch, outputs_and_gradients, keys, time, limits, dtype):
    check_against_reference(monkeypatch, outputs_and_gradients, keys, time, limits, dtype, None, None)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("time_decay", "time_first"), [(8.0, None), (4.0, None), (None, 100.0), (None, -100.0), (-9.0, None), (8.0, 700.0)]
)
@pytest.mark.parametrize("keys", ["normal", "60 normal", "normal - 1e4"])
def test_extreme_parameters(monkeypatch, outputs_and_gradients, keys, dtype, time_decay, time_first):
    args = monkeypatch, outputs_and_gradients, keys, 150, module.LARGEST, dtype
    check_against_reference(*args, time_decay, time_first)


def check_against_reference(monkeypatch, outputs_and_gradients, keys, time, limits, dtype, time_decay, time_first):
    monkeypatch.setattr(module, "LARGEST", limits)
    args = draw(10, *((1, time, 1) if time > 1000 else (2, time, 3)), fresh=True)
    args[0] = KEYS[keys](args[0])
    for i, value in ((2, time_decay), (3, time_first)):
        args[i] = args[i] if value is None else np.full_like(args[i], value)
    args = [x.astype(dtype) for x in args]
    y, p, q, o, *gradients = outputs_and_gradients(wkv, *args, use=(0,))
    assert all(np.isfinite(x).all() and x.dtype == dtype for x in (y, p, q, o, *gradients))
    assert all(np.isfinite(x).all() for x in outputs_and_gradients(wkv, *args))  # gradients arrive at the state too
    cotangent = np.random.default_rng([11, 0]).standard_normal(y.shape).astype(dtype)
    for got, expected, size in zip((y, *gradients[:4]), *reference(*args[:4], cotangent), strict=True):
        error, scale = np.abs(got - expected).max(), max(np.abs(size).max(), 1e-30)  # less may underflow to 0
        assert error <= TOLERANCE[dtype] * scale


def test_the_single_gauge_is_left_where_its_ratio_is_too_large():
    lam, u = np.array([-3.0, -55.0], "float32"), np.array([-1.0, -1.0], "float32")
    assert_close(module.single_gauge(lam, u), np.exp(-lam - u), 1e-5)
    for extreme in ((lam - 10.0, u), (lam, u - 10.0), (lam, u + 120.0)):
        assert module.single_gauge(*extreme) is None
        assert module.single_gauge(*(x.astype("float64") for x in extreme)) is not None
    assert module.single_gauge(lam.astype("float64") - 600.0, u.astype("float64")) is None


# --- memory, kinds, refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("sizes", [(1, 4, 3), (3, 1, 2), (1, 1, 2), (2, 40, 3)])
def test_inputs_and_cotangents_are_not_modified(monkeypatch, sizes, fresh):
    monkeypatch.setattr(module, "TILE", 1)
    args = draw(12, *sizes, fresh=fresh)
    gs = [draw(13, *sizes)[i] for i in (0, 4, 5, 6)]
    before = [x.copy() for x in (*args, *gs)]
    outputs, saved = wkv.op.forward(*args)
    copies = [x.copy() for x in outputs]
    gradients = wkv.op.backward(tuple(gs), *saved)
    for x, y in zip((*args, *gs, *outputs), (*before, *copies), strict=True):
        assert (x == y).all()
    assert gradients[6] is None
    results = [*outputs, *gradients[:6]]
    for i, x in enumerate(results):
        assert not any(np.shares_memory(x, y) for y in (*args, *gs, *results[:i]))


def test_last_states_are_copies():
    _, *state = wkv(*draw(14, 2, 7, 5))
    assert all(x.base is None for x in state)  # not views that keep the buffers of a tile alive


def test_three_numbers_a_channel_are_kept_for_every_tile(monkeypatch):
    monkeypatch.setattr(module, "TILE", 1)
    args = [Tensor(x, requires_grad=True) for x in draw(15, 2, 70, 5, "float32")]
    y, *_ = wkv(*args)
    k, v, lam, time_first, ratio, starts = y.node.saved
    assert k is args[0].data and v is args[1].data
    assert lam.shape == time_first.shape == ratio.shape == (5,)
    assert len(starts) == 5  # before steps 0, 16, 32, 48, 64
    assert {x.shape for state in starts for x in state} == {(2, 5)}
    assert all(x.base is None for state in starts[1:] for x in state)


def test_float32_stays(monkeypatch, outputs_and_gradients):
    for limits in (module.LARGEST, NEVER):
        monkeypatch.setattr(module, "LARGEST", limits)
        for sizes in ((2, 7, 5), (2, 1, 5)):
            results = outputs_and_gradients(wkv, *draw(16, *sizes, "float32"))
            assert {x.dtype for x in results} == {np.dtype("float32")}


def test_a_fresh_state_is_empty():
    for like in (np.ones(3, "float32"), Tensor(np.ones((2, 2)))):
        p, q, o = fresh_state(2, 5, like)
        assert {x.shape for x in (p, q, o)} == {(2, 5)} and {x.dtype for x in (p, q, o)} == {like.dtype}
        assert not p.any() and not q.any() and (o == np.asarray(EMPTY, like.dtype)).all()
        assert not np.shares_memory(p, q)


WRONG = [(1, (2, 7, 4)), (2, (4,)), (2, (1, 5)), (3, (4,)), (4, (5,)), (5, (3, 5)), (6, (2, 4))]


@pytest.mark.parametrize(("i", "shape"), WRONG)
def test_wrong_shapes_are_refused(i, shape):
    args = draw(17, 2, 7, 5)
    args[i] = np.zeros(shape)
    expected = r"time_first \(5,\)" if i < 4 else r"T >= 1 and p, q, o \(2, 5\)"
    with pytest.raises(ValueError, match=rf"wkv\(k \(2, 7, 5\).*expected .*{expected}"):
        wkv(*args)


def test_no_time_is_refused():
    with pytest.raises(ValueError, match="expected T >= 1"):
        wkv(*draw(18, 2, 0, 5))


def test_second_order_is_refused_and_names_the_naive_form():
    leaves = [Tensor(x, requires_grad=True) for x in draw(19, 2, 3, 5)]
    y, *_ = wkv(*leaves)
    with pytest.raises(SecondOrderError, match=r"tinyrec\.recurrences\.wkv\.naive"):
        grad(y, leaves, np.ones(y.shape), create_graph=True)
