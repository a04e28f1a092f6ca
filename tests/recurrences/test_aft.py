"""AFT: fused equals naive equals plain NumPy in logarithms; cuts, extreme keys and biases, both forms, what is kept."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.ops import concat, exp
from tinyrec.recurrences.aft import aft_full, aft_local, aft_simple, naive_full, naive_local
from tinyrec.recurrences.wkv import EMPTY, fresh_state, wkv
from tinyrec.tape import SecondOrderError, Tensor, array_of
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.recurrences.aft")
FORMS = {"two products": 0.5, "one query at a time": -1.0}  # SHARE: no spread is below -1


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def form(request, monkeypatch):
    monkeypatch.setattr(module, "SHARE", request.param)


def draw_full(seed, batch, time, keys, width, dtype="float64"):
    """k, v, w."""
    rng = np.random.default_rng(seed)
    shapes = (batch, keys, width), (batch, keys, width), (time, keys)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def draw_local(seed, batch, time, window, recent, width, dtype="float64", fresh=False):
    """k, v, w, p, q, o, recent_k, recent_v."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, time, width)] * 2 + [(time, window)] + [(batch, width)] * 2 + [(batch, recent, width)] * 2
    k, v, w, p, o, recent_k, recent_v = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    q = rng.uniform(1.0, 3.0, (batch, width)).astype(dtype)
    return [k, v, w, *(fresh_state(batch, width, k) if fresh else (p, q, o)), recent_k, recent_v]


def sums(fn):
    """fn with n, p e^o and q e^o as its outputs: what does not depend on the choice of the gauge o."""

    def in_no_gauge(*args):
        n, p, q, o = fn(*args)
        scale = exp(array_of(o))
        return n, p * scale, q * scale

    return in_no_gauge


def band(w, before):
    """The bias matrix (T, before + T) of a window w (T, s): w by steps back, 0 beyond it, nothing in the future."""
    bias = np.full((len(w), before + len(w)), -np.inf)
    for t in range(len(w)):
        for i in range(before + t + 1):
            back = before + t - i
            bias[t, i] = w[t, back] if back < w.shape[1] else 0.0
    return bias


def causal(w):
    return np.where(np.tri(*w.shape, w.shape[1] - w.shape[0], dtype=bool), w, -np.inf)


def plain(k, v, bias, g, p, q, o):
    """n, dk, dv, dbias, dp, dq in float64, query by query: the state is one more key, log q + o with the value p / q.

    The gradients are those of a softmax: dv_i = P g, dk_i = P g (v_i - n).
    """
    k, v, bias, g, p, q, o = (np.asarray(x, np.float64) for x in (k, v, bias, g, p, q, o))
    empty = q == 0.0
    first = np.where(empty, EMPTY, o + np.log(np.where(empty, 1.0, q)))[:, None]
    values = np.concatenate([(p / np.where(empty, 1.0, q))[:, None], v], axis=1)
    n, dk, dv, dbias = np.empty_like(g), np.zeros_like(k), np.zeros_like(v), np.zeros_like(bias)
    dp, dq = np.zeros_like(p), np.zeros_like(q)
    for t in range(len(bias)):
        z = np.concatenate([first, k + bias[t, :, None]], axis=1)
        z = z - z.max(axis=1, keepdims=True)
        weights = np.exp(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))
        n[:, t] = (weights * values).sum(axis=1)
        flow = weights * g[:, t, None]
        dv += flow[:, 1:]
        dk += (flow * (values - n[:, t, None]))[:, 1:]
        dbias[t] = (flow * (values - n[:, t, None]))[:, 1:].sum(axis=(0, 2))
        dp += np.where(empty, 0.0, flow[:, 0] / np.where(empty, 1.0, q))
        dq -= np.where(empty, 0.0, flow[:, 0] * n[:, t] / np.where(empty, 1.0, q))
    return n, dk, dv, dbias, dp, dq


def cotangent(shape):
    """What the fixture outputs_and_gradients multiplies output 0 with."""
    return np.random.default_rng([11, 0]).standard_normal(shape)


def plain_full(k, v, w):
    """n, dk, dv, dw for that cotangent."""
    g = cotangent((len(k), len(w), k.shape[2])).astype(k.dtype)
    return plain(k, v, causal(w), g, *fresh_state(len(k), k.shape[2], k))[:4]


def plain_local(k, v, w, p, q, o, recent_k, recent_v):
    """n, dk, dv, dw, dp, dq, drecent_k, drecent_v for that cotangent."""
    before, g = recent_k.shape[1], cotangent(k.shape).astype(k.dtype)
    joined = np.concatenate([recent_k, k], axis=1), np.concatenate([recent_v, v], axis=1)
    n, dk, dv, dbias, dp, dq = plain(*joined, band(w, before), g, p, q, o)
    dw = np.zeros(w.shape)
    for t in range(len(w)):
        for j in range(min(w.shape[1], before + t + 1)):
            dw[t, j] = dbias[t, before + t - j]
    return n, dk[:, before:], dv[:, before:], dw, dp, dq, dk[:, :before], dv[:, :before]


def test_the_examples_by_hand(outputs_and_gradients):
    """Sections 1, 2 and 4 of docs/recurrences/aft.md."""
    k, v = np.log([1.0, 2.0, 1.0]).reshape(1, 3, 1), np.array([4.0, 8.0, 2.0]).reshape(1, 3, 1)
    w = np.log([[1.0, 0.5, 2.0]])
    n, dk, dv, dw = outputs_and_gradients(lambda k, v, w: aft_full(k, v, w)[0, 0, 0], k, v, w)
    g = np.random.default_rng([11, 0]).standard_normal()
    assert n == pytest.approx(4.0)
    assert (dv / g).ravel() == pytest.approx([0.25, 0.25, 0.5])
    assert (dk / g).ravel() == pytest.approx([0.0, 1.0, -1.0]) == (dw / g).ravel()
    assert aft_simple(k, v, *fresh_state(1, 1, k))[0][0, 2, 0] == pytest.approx(5.5)
    none = np.zeros((1, 0, 1))
    n, *_ = aft_local(k, v, np.log([[1.0], [1.0], [2.0]]), *fresh_state(1, 1, k), none, none)
    assert n[0, 2, 0] == pytest.approx(4.8)
    _, p, q, o = aft_local(k[:, :2], v[:, :2], np.zeros((2, 1)), *fresh_state(1, 1, k), none, none)
    assert (p.item(), q.item(), o.item()) == pytest.approx((10.0, 1.5, np.log(2.0)))


SIZES_FULL = [(2, 7, 7, 5), (5, 2, 9, 3), (3, 1, 1, 4), (2, 1, 6, 3), (1, 150, 200, 3)]  # B, T, S, C
SIZES_LOCAL = [(2, 7, 3, 2, 5), (5, 2, 4, 3, 3), (3, 1, 5, 1, 4), (2, 9, 4, 1, 3), (3, 5, 1, 0, 2), (2, 4, 9, 6, 3),
               (1, 290, 20, 19, 3)]  # B, T, s, R, C  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES_FULL)
def test_full_equals_the_formulas_in_plain_numpy(form, outputs_and_gradients, sizes):
    args = draw_full(0, *sizes)
    for got, expected in zip(outputs_and_gradients(aft_full, *args), plain_full(*args), strict=True):
        assert_close(got, expected, 1e-12)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("sizes", SIZES_LOCAL)
def test_local_equals_the_formulas_in_plain_numpy(form, outputs_and_gradients, sizes, fresh):
    args = draw_local(0, *sizes, fresh=fresh)
    n, *_, dk, dv, dw, dp, dq, do, drecent_k, drecent_v = outputs_and_gradients(aft_local, *args, use=(0,))
    got = n, dk, dv, dw, dp, dq, drecent_k, drecent_v
    for ours, expected in zip(got, plain_local(*args), strict=True):
        assert_close(ours, expected, 1e-12)
    assert (do == 0.0).all()


BLOCKS = {"rows": st.sampled_from([1, 3, 128]), "tile": st.sampled_from([1, 40, 10**6]),
          "share": st.sampled_from([0.5, -1.0]), "seed": st.integers(0, 99)}  # fmt: skip


@settings(max_examples=50)
@given(sizes=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 5), st.integers(1, 4)), **BLOCKS)
def test_full_equals_naive(assert_same, sizes, rows, tile, share, seed):
    batch, time, before, width = sizes
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ROWS", rows), ("TILE", tile), ("SHARE", share)):
            patch.setattr(module, name, value)
        assert_same(aft_full, naive_full, *draw_full(seed, batch, time, before + time, width))


@settings(max_examples=100)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 7), st.integers(0, 6), st.integers(1, 4)),
    fresh=st.booleans(),
    use=st.sampled_from([(0,), (1,), (2,), (0, 1), (0, 1, 2)]),
    **BLOCKS,
)
def test_local_equals_naive(assert_same, sizes, fresh, use, rows, tile, share, seed):
    batch, time, window, recent, width = sizes
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ROWS", rows), ("TILE", tile), ("SHARE", share)):
            patch.setattr(module, name, value)
        args = draw_local(seed, batch, time, window, min(recent, window - 1), width, fresh=fresh)
        assert_same(sums(aft_local), sums(naive_local), *args, use=use)
        for got, expected in zip(aft_local(*args)[1:], naive_local(*args)[1:], strict=True):
            assert_close(got, expected, 1e-12)  # the gauge is the same too


def test_gradients_agree_with_finite_differences(form):
    for sizes in ((2, 7, 9, 5), (5, 2, 2, 7)):
        assert gradcheck(aft_full, *draw_full(1, *sizes)).first < 1e-8
    for sizes in ((2, 7, 4, 3, 5), (5, 2, 6, 3, 7)):
        assert gradcheck(sums(aft_local), *draw_local(1, *sizes), constants=(5,)).first < 1e-8
    k, v, _, p, q, o, *_ = draw_local(1, 2, 7, 1, 0, 5)
    assert gradcheck(sums(aft_simple), k, v, p, q, o, constants=(4,)).first < 1e-8


@pytest.mark.parametrize("cut", range(1, 9))
def test_full_cut_anywhere(form, assert_same, cut):
    """The second part asks all keys with the rest of w."""

    def chained(k, v, w):
        return concat(aft_full(k[:, :cut], v[:, :cut], w[:cut, :cut]), aft_full(k, v, w[cut:]), axis=1)

    assert_same(chained, aft_full, *draw_full(2, 2, 9, 9, 5), tol=1e-13)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("window", [1, 3, 12])
@pytest.mark.parametrize("cut", range(1, 9))
def test_local_cut_anywhere_and_chained(form, assert_same, cut, window, fresh):
    recent = 0 if fresh else window - 1

    def chained(k, v, w, p, q, o, recent_k, recent_v):
        n1, *state = aft_local(k[:, :cut], v[:, :cut], w[:cut], p, q, o, recent_k, recent_v)
        seen = recent + cut
        last = slice(max(0, seen - window + 1), seen)  # the last s - 1
        kept = [concat(a, b[:, :cut], axis=1)[:, last] for a, b in ((recent_k, k), (recent_v, v))]
        n2, *state = aft_local(k[:, cut:], v[:, cut:], w[cut:], *state, *kept)
        return concat(n1, n2, axis=1), *state

    args = draw_local(3, 2, 9, window, recent, 5, fresh=fresh)
    for use in ((0,), (1,), (0, 1, 2)):
        assert_same(sums(chained), sums(aft_local), *args, use=use, tol=1e-13)


@pytest.mark.parametrize("cut", range(1, 9))
def test_simple_cut_anywhere_and_chained(assert_same, cut):
    def chained(k, v, *state):
        n1, *state = aft_simple(k[:, :cut], v[:, :cut], *state)
        n2, *state = aft_simple(k[:, cut:], v[:, cut:], *state)
        return concat(n1, n2, axis=1), *state

    k, v, _, p, q, o, *_ = draw_local(4, 2, 9, 1, 0, 5)
    assert_same(sums(chained), sums(aft_simple), k, v, p, q, o, tol=1e-13)


@pytest.mark.parametrize("sizes", [(2, 7, 5), (5, 2, 7), (1, 1, 3)])
def test_simple_is_full_and_local_without_biases(assert_same, sizes):
    batch, time, width = sizes
    k, v, _ = draw_full(5, batch, time, time, width)
    state = fresh_state(batch, width, k)
    zeros, no_recent = np.zeros((time, time)), np.zeros((batch, 0, width))

    def simple(k, v):
        return aft_simple(k, v, *state)

    def local(k, v):  # s = 1, so that the state holds all tokens in the end
        return aft_local(k, v, zeros[:, :1], *state, no_recent, no_recent)

    for full in (aft_full, naive_full):
        assert_same(lambda k, v: simple(k, v)[0], lambda k, v, f=full: f(k, v, zeros), k, v)
    assert_same(sums(simple), sums(local), k, v)


@pytest.mark.parametrize("window", [1, 3, 9, 14])
def test_local_is_full_with_a_band_of_biases(form, outputs_and_gradients, window):
    k, v, w, *state = draw_local(6, 2, 9, window, 0, 5, fresh=True)
    n, *_, dk, dv, dw, _, _, _, _, _ = outputs_and_gradients(aft_local, k, v, w, *state, use=(0,))
    bias = np.where(np.isinf(band(w, 0)), 7.0, band(w, 0))  # what stands in the future does not matter
    n_full, dk_full, dv_full, dw_full = outputs_and_gradients(aft_full, k, v, bias)
    for got, expected in ((n, n_full), (dk, dk_full), (dv, dv_full)):
        assert_close(got, expected, 1e-13)
    for t in range(9):
        for j in range(window):
            expected = dw_full[t, t - j] if j <= t else 0.0
            assert dw[t, j] == pytest.approx(expected, abs=1e-13)


def test_full_with_a_fading_bias_is_wkv():
    """w_ti = -(t - 1 - i) r for i < t, u at i = t; r and u differ from channel to channel, so one call for each."""
    k, v, _ = draw_full(8, 2, 9, 9, 3)
    decay, bonus = np.array([-2.0, 0.0, 1.0]), np.array([0.5, -1.0, 2.0])
    y, *_ = wkv(k, v, decay, bonus, *fresh_state(2, 3, k))
    t, i = np.arange(9)[:, None], np.arange(9)
    for c in range(3):
        w = np.where(i == t, bonus[c], -(t - 1 - i) * np.exp(decay[c]))
        assert_close(aft_full(k[..., c : c + 1], v[..., c : c + 1], w), y[..., c : c + 1], 1e-13)


def test_only_the_allowed_biases_have_a_gradient(form, outputs_and_gradients):
    n, *_, dw = outputs_and_gradients(aft_full, *draw_full(9, 2, 7, 9, 5))
    future = np.isinf(causal(np.zeros((7, 9))))
    assert (dw[future] == 0.0).all() and (dw[~future] != 0.0).all()
    dw = outputs_and_gradients(aft_local, *draw_local(9, 2, 7, 4, 1, 5, fresh=True), use=(0,))[6]
    missing = np.arange(4) > 1 + np.arange(7)[:, None]  # further back than the first token
    assert (dw[missing] == 0.0).all() and (dw[~missing] != 0.0).all()


def test_what_the_future_holds_does_not_matter(form):
    k, v, w = draw_full(10, 2, 7, 7, 5)
    before = aft_full(k, v, w)
    k[:, 4:], v[:, 4:] = 3.0, -2.0
    w[np.triu_indices(7, 1)] = np.nan
    assert_close(aft_full(k, v, w)[:, :4], before[:, :4], 1e-14)


@pytest.mark.parametrize("shift", [-2000.0, 2000.0])
def test_the_same_number_added_to_all_biases_of_a_query_changes_nothing(form, shift):
    k, v, w = draw_full(24, 2, 7, 9, 5)
    assert_close(aft_full(k, v, w + shift * np.arange(7)[:, None]), aft_full(k, v, w), 1e-10)
    k, v, w, *rest = draw_local(24, 2, 7, 8, 0, 5, fresh=True)  # nothing is older than the window
    assert_close(aft_local(k, v, w + shift, *rest)[0], aft_local(k, v, w, *rest)[0], 1e-10)


EXTREMES = {  # k of shape (2, 40, 5) from a standard normal draw of it, and the factor of w
    "k +-60": (lambda x: 60.0 * np.sign(x), 1.0),
    "k +-1e4": (lambda x: 1e4 * np.sign(x), 1.0),
    "k ~ 60 N": (lambda x: 60.0 * x, 1.0),
    "k falling": (lambda x: x - 250.0 * np.arange(40)[:, None], 1.0),
    "k rising": (lambda x: x + 250.0 * np.arange(40)[:, None], 1.0),
    "k = -1e4 + N": (lambda x: x - 1e4, 1.0),
    "w +-50": (lambda x: x, 50.0),
    "k +-60, w +-50": (lambda x: 60.0 * np.sign(x), 50.0),
    "k +-1e4, w +-1e4": (lambda x: 1e4 * np.sign(x), 1e4),
}


def extreme(kind, fn, fresh):
    """The arguments of fn, and its outputs and gradients by the plain form."""
    shape, factor = EXTREMES[kind]
    if fn is aft_full:
        args, reference = draw_full(11, 2, 40, 40, 5), plain_full
    else:
        args, reference = draw_local(11, 2, 40, 6, 0 if fresh else 5, 5, fresh=fresh), plain_local
        args[6] = args[6] + shape(args[0])[:, :1]  # the recent keys are about as large as the first
    args[0] = shape(args[0])
    args[2] = args[2] if factor == 1.0 else factor * np.sign(args[2])
    return args, reference(*args)


CASES = [(aft_full, True), (aft_local, True), (aft_local, False)]  # the op, with an empty state


@pytest.mark.parametrize(("fn", "fresh"), CASES)
@pytest.mark.parametrize("kind", EXTREMES)
def test_extreme_keys_and_biases(outputs_and_gradients, kind, fn, fresh):
    """Right in float64; in float32 finite, without a warning, and within the range of v."""
    args, expected = extreme(kind, fn, fresh)
    ours = outputs_and_gradients(fn, *args, use=(0,))
    if fn is aft_local:
        del ours[9], ours[1:4]  # the gradient of o, the last state
    for got, right in zip(ours, expected, strict=True):
        assert np.abs(got - right).max(initial=0.0) <= 1e-10 * max(1.0, np.abs(right).max(initial=0.0))
    narrow = [x.astype("float32") for x in args]
    if fn is aft_local:
        narrow[3] = 0.5 * narrow[4]  # the mean of what the state holds
    n, *rest = outputs_and_gradients(fn, *narrow)
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in (n, *rest))
    values = narrow[1] if fn is aft_full else np.concatenate([narrow[7], narrow[1]], axis=1)
    assert np.abs(n).max() <= (1.0 + 1e-5) * max(0.5, np.abs(values).max())


@pytest.mark.parametrize("share", [0.99, 1.01])
@pytest.mark.parametrize("fn", [aft_full, aft_local])
def test_float32_is_right_on_both_sides_of_the_limit(monkeypatch, outputs_and_gradients, fn, share):
    """Keys that spread just as far as two products allow, or a little further, and biases that work against them."""
    spread = share * 0.5 * np.log(np.finfo("float32").max)
    rng = np.random.default_rng(12)
    args = draw_full(12, 2, 20, 20, 5) if fn is aft_full else draw_local(12, 2, 20, 6, 0, 5, fresh=True)
    args[0] = rng.uniform(0.0, spread, args[0].shape)
    args[0][0, :2, 0] = 0.0, spread
    args[2] *= 20.0
    args = [x.astype("float32") for x in args]
    chosen = []
    decide = module._fits
    monkeypatch.setattr(module, "_fits", lambda *a: chosen.append(decide(*a)) or chosen[-1])
    ours, expected = outputs_and_gradients(fn, *args, use=(0,)), (plain_full if fn is aft_full else plain_local)(*args)
    if fn is aft_local:
        del ours[9], ours[1:4]
    assert chosen == [share <= 1.0]  # once: the backward takes what the forward chose
    for got, right in zip(ours, expected, strict=True):
        assert np.abs(got - right).max(initial=0.0) <= 1e-5 * max(1.0, np.abs(right).max(initial=0.0))


def test_the_state_counts_as_a_key_when_the_form_is_chosen():
    k, _, w, _, _, o, *_ = draw_local(13, 2, 7, 3, 0, 5)
    assert module._fits(k, np.full_like(o, EMPTY))
    assert module._fits(k, o)
    for far in (400.0, -400.0, EMPTY):  # the limit in float64 is 354.9
        o[1, 3] = far
        assert not module._fits(k, o)


def test_a_dominant_token_with_a_low_bias_costs_no_digits():
    """Old state plus true weights: (everything with bias 0) + (e^w - 1) would cancel to nothing here."""
    k, v, w, *state = draw_local(13, 2, 9, 3, 0, 5, "float32", fresh=True)
    k[:, 4] += 30.0
    w[:, :] = -30.0
    expected = plain_local(k, v, w, *state)[0]
    assert_close(aft_local(k, v, w, *state)[0], expected, 1e-6)
    e = np.exp(k[:, :6].astype("float32"))  # the window of query 5 holds all but tokens 0, 1, 2
    corrected = e.sum(axis=1) + (np.expm1(np.float32(-30.0)) * e[:, 3:]).sum(axis=1)
    assert np.abs(corrected / e[:, :3].sum(axis=1) - 1.0).max() > 0.5  # what the subtraction leaves of the denominator


def test_the_mean_lies_in_the_hull_of_the_values(form):
    k, v, w = draw_full(14, 2, 7, 9, 5)
    n = aft_full(3.0 * k, v, 3.0 * w)
    for t in range(7):
        seen = v[:, : 3 + t]
        assert (n[:, t] <= seen.max(axis=1) + 1e-14).all() and (n[:, t] >= seen.min(axis=1) - 1e-14).all()
    assert_close(aft_full(k, np.ones_like(v), w), np.ones((2, 7, 5)), 1e-15)  # the weights sum to one
    k, v, w, *rest = draw_local(14, 2, 7, 3, 2, 5, fresh=True)
    n, *_ = aft_local(k, np.ones_like(v), w, *rest[:4], np.ones_like(rest[4]))
    assert_close(n, np.ones((2, 7, 5)), 1e-15)


@pytest.mark.parametrize("sizes", [(1, 4, 3, 2, 3), (3, 1, 2, 1, 2), (1, 1, 1, 0, 2), (2, 140, 3, 2, 3)])
def test_inputs_and_cotangents_are_not_modified(form, sizes):
    local, full = draw_local(15, *sizes), draw_full(15, sizes[0], sizes[1], sizes[1] + 2, sizes[4])
    for fn, args in ((aft_local, local), (aft_full, full)):
        before = [x.copy() for x in args]
        outs, saved = fn.op.forward(*args)
        outs = outs if isinstance(outs, tuple) else (outs,)
        gs = [np.random.default_rng(16).standard_normal(y.shape) for y in outs]
        kept = [x.copy() for x in (*outs, *gs)]
        gradients = fn.op.backward(tuple(gs) if fn is aft_local else gs[0], *saved)
        for x, y in zip((*args, *outs, *gs), (*before, *kept), strict=True):
            assert (x == y).all()
        results = [*outs, *(dx for dx in gradients if dx is not None)]
        for k, x in enumerate(results):
            assert not any(np.shares_memory(x, y) for y in (*args, *gs, *results[:k]))


def test_the_last_state_is_a_copy_also_when_nothing_has_left_the_window():
    args = draw_local(17, 2, 3, 9, 4, 5)
    for ours, first in zip(aft_local(*args)[1:], args[3:6], strict=True):
        assert (ours == first).all() and not np.shares_memory(ours, first) and ours.base is None


def test_what_is_saved():
    """The inputs, n, and one number more for each element of n."""
    for fn, args in ((aft_full, draw_full(18, 2, 7, 9, 5, "float32")), (aft_local, draw_local(18, 2, 7, 3, 2, 5))):
        leaves = [Tensor(x, requires_grad=True) for x in args]
        out = fn(*leaves)
        n = out[0] if isinstance(out, tuple) else out
        known = [x.data for x in (*leaves, n)]
        *arrays, exact = n.node.saved
        others = [x for x in arrays if not any(x is y for y in known)]
        assert exact is False
        assert [x.shape for x in others] == [n.shape] and others[0].dtype == n.dtype


def test_float32_stays(form, outputs_and_gradients):
    results = outputs_and_gradients(aft_full, *draw_full(19, 2, 7, 9, 5, "float32"))
    results += outputs_and_gradients(aft_local, *draw_local(19, 2, 7, 3, 2, 5, "float32"))
    k, v, _, p, q, o, *_ = draw_local(19, 2, 7, 3, 2, 5, "float32")
    results += outputs_and_gradients(aft_simple, k, v, p, q, o)
    assert {x.dtype for x in results} == {np.dtype("float32")}


WRONG_FULL = [(0, (2, 9)), (1, (2, 9, 4)), (1, (2, 7, 5)), (2, (7, 8)), (2, (10, 9)), (2, (0, 9)), (2, (9,))]
WRONG_LOCAL = [
    (0, (7, 5), "expected k and v of one shape"), (1, (2, 6, 5), "expected k and v of one shape"),
    (2, (6, 3), r"w \(T, s\)"), (2, (7, 0), r"s >= 1"), (2, (7,), r"w \(T, s\)"),
    (2, (7, 2), r"\(2, R, 5\) with R < s = 2"), (3, (2, 4), r"p, q, o \(2, 5\)"), (4, (5,), r"p, q, o \(2, 5\)"),
    (5, (3, 5), r"p, q, o \(2, 5\)"), (6, (2, 1, 5), "recent_k and recent_v"), (7, (2, 2, 4), "recent_k and recent_v"),
    (6, (2, 5), "recent_k and recent_v"),
]  # fmt: skip


@pytest.mark.parametrize(("k", "shape"), WRONG_FULL)
def test_full_refuses_wrong_shapes(k, shape):
    args = draw_full(20, 2, 7, 9, 5)
    args[k] = np.zeros(shape)
    with pytest.raises(ValueError, match=r"aft_full\(k .* w \(T, S\) with 1 <= T <= S"):
        aft_full(*args)


@pytest.mark.parametrize(("k", "shape", "words"), WRONG_LOCAL)
def test_local_refuses_wrong_shapes(k, shape, words):
    args = draw_local(20, 2, 7, 3, 2, 5)
    args[k] = np.zeros(shape)
    with pytest.raises(ValueError, match=rf"aft_local\(k .*{words}"):
        aft_local(*args)


def test_no_time_is_refused():
    with pytest.raises(ValueError, match="T >= 1"):
        aft_local(*draw_local(21, 2, 0, 3, 2, 5))


@pytest.mark.parametrize("fn", [aft_full, aft_local])
def test_second_order_is_refused_and_names_the_naive_form(fn):
    args = draw_full(22, 2, 3, 4, 5) if fn is aft_full else draw_local(22, 2, 3, 3, 2, 5)
    leaves = [Tensor(x, requires_grad=True) for x in args]
    out = fn(*leaves)
    n = out[0] if isinstance(out, tuple) else out
    with pytest.raises(SecondOrderError, match=rf"tinyrec\.recurrences\.aft\.naive_{fn.__name__[4:]}"):
        grad(n, leaves, np.ones(n.shape), create_graph=True)


def test_the_naive_forms_have_second_derivatives():
    assert gradcheck(naive_full, *draw_full(23, 2, 3, 4, 2), order=2).second < 1e-6
    report = gradcheck(sums(naive_local), *draw_local(23, 2, 4, 2, 1, 3), order=2, constants=(5,))
    assert report.second < 1e-6
