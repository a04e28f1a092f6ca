"""As test_kernels.py, for S6, LSTM and QRNN: every kernel equals the fused form and the naive one, in all builds."""

import math

import numpy as np
import pytest

from tinyrec.backend import get_xp, to_cpu, to_gpu
from tinyrec.check import assert_close
from tinyrec.cuda import selective_scan as of_selective_scan
from tinyrec.cuda.host import HostModule
from tinyrec.cuda.launch import host_build, kernel_text, kernels, launch
from tinyrec.recurrences.lstm import lstm as lstm_op
from tinyrec.recurrences.lstm import naive as naive_lstm
from tinyrec.recurrences.qrnn import naive as naive_qrnn
from tinyrec.recurrences.qrnn import qrnn as qrnn_op
from tinyrec.recurrences.selective_scan import naive as naive_selective_scan
from tinyrec.recurrences.selective_scan import selective_scan as selective_scan_op

# batch, time, width; the fourth is the states of S6, and whether QRNN has an i. Around the tiles, warps and blocks.
SIZES = [(1, 1, 1, 1), (2, 7, 5, 3), (5, 2, 7, 16), (3, 1, 4, 2), (2, 8, 3, 9), (1, 15, 3, 4), (2, 16, 33, 1)]
SIZES += [(1, 17, 40, 7), (2, 33, 131, 18)]


def draw(stem, seed, batch, time, width, states):
    rng = np.random.default_rng(seed)
    normal, wide, state = rng.standard_normal, (batch, time, width), (batch, width)
    if stem == "lstm":
        return [normal((batch, time, 4 * width)), normal((width, 4 * width)) / math.sqrt(width), *normal((2, *state))]
    if stem == "qrnn":
        return [*normal((2, *wide)), normal(wide) if states % 2 else None, normal(state)]
    u, dt, a = normal(wide), np.exp(rng.uniform(-4.0, 0.5, wide)), -rng.uniform(0.3, 4.0, (width, states))
    return [u, dt, a, *normal((2, batch, time, states)), normal(width), normal((*state, states))]


def cotangents(*outs):
    """As in outputs_and_gradients of the root's conftest."""
    gs = [np.random.default_rng([11, k]).standard_normal(y.shape).astype(y.dtype) for k, y in enumerate(outs)]
    return [get_xp(y).asarray(g) for y, g in zip(outs, gs, strict=True)]


def empty(like, *shapes):
    """Fresh arrays. Under test they are full of NaN."""
    return [get_xp(like).empty(shape, like.dtype) for shape in shapes]


# Each returns the outputs, then the gradients, as the op of the same name does.


def selective_scan(*args):
    outs, saved = of_selective_scan.forward(*args)
    return [*outs, *of_selective_scan.backward(tuple(cotangents(*outs)), *saved)]


def lstm(z, w_h, h_init, c_init):
    batch, time, width = z.shape[0], z.shape[1], len(w_h)
    sizes, state = (batch, time, width), h_init.shape
    shape = {"grid": (batch,), "block": (min(512, -(-width // 32) * 32),)}
    gates, c, h = empty(z, z.shape, sizes, sizes)
    launch("lstm", "lstm_forward", z, w_h, h_init, c_init, gates, c, h, *sizes, **shape)
    dh, dh_last, dc_last = cotangents(h, h_init, c_init)
    dz, dh_init, dc_init = empty(z, z.shape, state, state)
    inputs = (gates, c, c_init, w_h.T.copy(), dh, dh_last, dc_last)
    launch("lstm", "lstm_backward", *inputs, dz, dh_init, dc_init, *sizes, **shape)
    before = get_xp(z).concatenate([h_init[:, None], h[:, :-1]], axis=1)
    dw_h = before.reshape(-1, width).T @ dz.reshape(-1, 4 * width)  # (11)
    return [h, h[:, -1], c[:, -1], dz, dw_h, dh_init, dc_init]


def qrnn(z, f, i, c_init):
    (c,) = empty(z, z.shape)
    launch("qrnn", "qrnn_forward", z, f, i, c_init, c, *z.shape, threads=c_init.size)
    dz, df, di, dc_init = empty(z, z.shape, z.shape, z.shape, c_init.shape)
    di = None if i is None else di
    inputs = (z, f, i, c, c_init, *cotangents(c, c_init))
    launch("qrnn", "qrnn_backward", *inputs, dz, df, di, dc_init, *z.shape, threads=c_init.size)
    return [c, c[:, -1], dz, df, *([] if i is None else [di]), dc_init]


KERNELS = {
    "selective_scan": (selective_scan, selective_scan_op, naive_selective_scan),
    "lstm": (lstm, lstm_op, naive_lstm),
    "qrnn": (qrnn, qrnn_op, naive_qrnn),
}
BUILDS = [(stem, build) for stem in KERNELS for build in ("fiber", "check")]
BUILDS += [("qrnn", "loop"), ("qrnn", "simd"), ("selective_scan", "simd")]


def fused(stem, args):
    """The NumPy form: outputs and gradients in the order of the functions above."""
    outs, saved = KERNELS[stem][1].op.forward(*args)
    return [*outs, *(g for g in KERNELS[stem][1].op.backward(tuple(cotangents(*outs)), *saved) if g is not None)]


def assert_same(got, expected, tol):
    assert len(got) == len(expected)
    for k, (x, y) in enumerate(zip(map(to_cpu, got), map(to_cpu, expected), strict=True)):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=tol * max(1.0, np.abs(y).max()), err_msg=f"array {k}")


@pytest.mark.parametrize(("stem", "build"), BUILDS)
def test_kernel_equals_fused(cpp, stem, build):
    for seed, sizes in enumerate(SIZES[: -1 if build == "check" else None]):
        args = draw(stem, seed, *sizes)
        with host_build(build) as reports:
            assert_same(KERNELS[stem][0](*args), fused(stem, args), 1e-12)
        assert len(reports) == (2 if build == "check" else 0)
        assert [finding for report in reports for finding in report.findings] == []


@pytest.mark.gpu
@pytest.mark.parametrize("stem", KERNELS)
def test_kernel_on_a_gpu_equals_fused(stem):
    for seed, sizes in enumerate(SIZES):
        args = draw(stem, seed, *sizes)
        on_gpu = [None if x is None else to_gpu(x) for x in args]
        assert_same(KERNELS[stem][0](*on_gpu), fused(stem, args), 1e-12)


@pytest.mark.parametrize("stem", KERNELS)
def test_kernel_equals_naive(cpp, outputs_and_gradients, stem):
    for seed, sizes in enumerate(SIZES[:8]):
        args = draw(stem, seed, *sizes)
        assert_same(KERNELS[stem][0](*args), outputs_and_gradients(KERNELS[stem][2], *args), 1e-12)


@pytest.mark.parametrize(("stem", "build"), BUILDS)
def test_kernel_in_float32(cpp, stem, build):
    for seed, sizes in enumerate(SIZES):
        single = [None if x is None else x.astype(np.float32) for x in draw(stem, seed, *sizes)]
        with host_build(build):
            got = KERNELS[stem][0](*single)
        assert all(x.dtype == np.float32 for x in got)
        assert_same(got, fused(stem, [None if x is None else x.astype(np.float64) for x in single]), 2e-6)


def test_gates_that_are_shut_or_open(cpp):
    z, f, i, c_init = draw("qrnn", 0, 2, 20, 21, 1)
    for gates in ((z, 200 * f, None, c_init), (200 * z, 200 * f, 200 * i, c_init)):
        for build in ("loop", "simd"):
            with host_build(build):
                assert_same(qrnn(*gates), fused("qrnn", gates), 1e-12)
    z, *rest = draw("lstm", 0, 2, 20, 5, 1)
    assert_same(lstm(200 * z, *rest), fused("lstm", (200 * z, *rest)), 1e-12)


def test_a_wide_lstm_has_several_units_per_thread(cpp):
    args = draw("lstm", 0, 1, 3, 515, 1)
    assert_same(lstm(*args), fused("lstm", args), 1e-12)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 16, 49])
def test_pieces_of_a_sequence_chain(cpp, cut):
    *wide, state = draw("qrnn", 0, 2, 50, 5, 1)
    halves = [[x[:, part].copy() for x in wide] for part in (slice(cut), slice(cut, None))]
    left = qrnn(*halves[0], state)
    assert_close(qrnn(*halves[1], left[1].copy())[0], qrnn(*wide, state)[0][:, cut:], 1e-13)
    z, w_h, *state = draw("lstm", 0, 2, 50, 5, 1)
    left = lstm(z[:, :cut].copy(), w_h, *state)
    right = lstm(z[:, cut:].copy(), w_h, left[1].copy(), left[2].copy())
    assert_close(right[0], lstm(z, w_h, *state)[0][:, cut:], 1e-13)
    u, dt, a, b, c, d, state = draw("selective_scan", 0, 2, 50, 5, 3)
    pieces = [[x[:, part].copy() for x in (u, dt, b, c)] for part in (slice(cut), slice(cut, None))]
    (u1, dt1, b1, c1), (u2, dt2, b2, c2) = pieces
    left = selective_scan(u1, dt1, a, b1, c1, d, state)
    right = selective_scan(u2, dt2, a, b2, c2, d, left[1])
    assert_close(right[0], selective_scan(u, dt, a, b, c, d, state)[0][:, cut:], 1e-13)


def test_the_bytes_of_the_head_comment(cpp):
    batch, time, width, n = 2, 24, 64, 9
    wide, state, saves, groups = batch * time * width, batch * width, 4, 2  # tiles of 8 steps
    small = 2 * batch * time * n + (n + 1) * width  # b, c, a, d
    partial = 32 * groups * batch * (saves - 1) * n + state  # db and dc, in double twice; dd
    numbers = {
        "selective_scan_forward": 3 * wide + saves * n * state + small,
        "selective_scan_backward": 5 * wide + (saves - 1 + 3) * n * state + small + partial,
        "lstm_forward": 10 * wide + 4 * width**2 + 2 * state,
        "lstm_backward": 10 * wide + 4 * width**2 + 5 * state,
        "qrnn_forward": 4 * wide + state,
        "qrnn_backward": 8 * wide + 2 * state,  # the last c is not read
    }
    for stem, (kernel, *_) in KERNELS.items():
        with host_build("check") as reports:
            kernel(*draw(stem, 0, batch, time, width, n))
        assert {report.kernel: report.distinct for report in reports} == {k: 8 * numbers[k] for k in kernels(stem)}
        assert all(report.moved <= report.asked for report in reports)  # no lane skips a part of a sector


SIZE = {"batch": 2, "time": 17, "width": 40, "states": 9, "saves": 3, "tiles": 2, "groups": 2}
SHAPES = {"lstm": ((2,), (64,)), "selective_scan": ((4,), (32, 8)), "qrnn": ((1,), (128,))}
MUTANTS = [("lstm", "__syncthreads();", n, "", "a race") for n in range(2)]
MUTANTS += [("selective_scan", "__syncthreads();", n, "", "a race") for n in range(4)]
MUTANTS += [("selective_scan", "channel < width", n, "true", "out of bounds") for n in range(2)]
MUTANTS += [("qrnn", "max(t - 1, 0)", 0, "t - 1", "out of bounds")]


@pytest.mark.parametrize(("stem", "right", "n", "wrong", "words"), MUTANTS)
def test_a_mistake_planted_into_a_kernel_is_found(cpp, stem, right, n, wrong, words):
    """The n-th place of `right` becomes `wrong`: each barrier is needed, and each guard."""
    pieces = kernel_text(stem).split(right)
    assert len(pieces) == 1 + sum(mutant[:2] == (stem, right) for mutant in MUTANTS)
    text = right.join(pieces[: n + 1]) + wrong + right.join(pieces[n + 1 :])
    module, findings = HostModule(code=text, options=("-Dreal=float",), build="check"), []
    for name, parameters in module.parameters.items():
        args = []
        for p in parameters:
            size = math.prod(int(word) if word.isdecimal() else SIZE[word] for word in p.shape)
            args.append(np.ones(size, np.float32) if p.pointer else np.int32(SIZE[p.name]))
        findings += module.get_function(name)(*SHAPES[stem], tuple(args)).findings
    assert any(words in finding for finding in findings)
