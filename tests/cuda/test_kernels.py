"""Every kernel equals the fused NumPy form and the naive one, in all builds, and the checker has nothing to say."""

import importlib
import math
import types

import numpy as np
import pytest

from tinyrec.backend import get_xp, to_cpu, to_gpu
from tinyrec.check import assert_close
from tinyrec.cuda.launch import HERE, host_build, kernels, launch
from tinyrec.recurrences.rglru import naive as naive_rglru
from tinyrec.recurrences.rglru import rglru as rglru_op
from tinyrec.recurrences.scan import naive as naive_scan
from tinyrec.recurrences.scan import scan as scan_op
from tinyrec.recurrences.wkv import fresh_state
from tinyrec.recurrences.wkv import naive as naive_wkv
from tinyrec.recurrences.wkv import wkv as wkv_op

of_scan = importlib.import_module("tinyrec.recurrences.scan")  # the op of the same name hides it
CHUNK = 4  # steps of time, where scan is cut into chunks
STEPS = {4: 16, 8: 8}  # between two saved states of wkv.cu, by bytes of a number
SIZES = [(1, 1, 1), (2, 7, 5), (5, 2, 7), (3, 1, 4), (2, 8, 3), (1, 15, 3), (2, 16, 3), (1, 17, 40)]  # B, T, C
SIZES += [(2, 33, 131)]
BUILDS = ["loop", "fiber", "check"]


def normal(rng, *shape):
    return rng.standard_normal(shape)


def draw(stem, seed, batch, time, width, keys=None):
    """Arguments of the op, and static ones. keys: all keys of wkv are of this size, of either sign."""
    rng = np.random.default_rng(seed)
    wide, state = (batch, time, width), (batch, width)
    if stem == "scan":
        return [rng.uniform(-1, 1, (time, batch, width)), normal(rng, time, batch, width), normal(rng, *state)], {}
    if stem == "rglru":
        starts = rng.random((batch, time)) < 0.2 if seed % 2 else None
        return [*(normal(rng, *wide) for _ in range(3)), normal(rng, width), normal(rng, *state)], {"starts": starts}
    decay, bonus = rng.uniform(-5, 2, width), rng.normal(-1, 0.5, width)
    init = normal(rng, *state), rng.uniform(1, 3, state), normal(rng, *state)
    if seed % 2:
        init = fresh_state(*state, decay)
    k = normal(rng, *wide)
    return [k if keys is None else keys * np.sign(k), normal(rng, *wide), decay, bonus, *init], {}


def cotangents(outs):
    """As in outputs_and_gradients of the root's conftest."""
    gs = [np.random.default_rng([11, k]).standard_normal(y.shape).astype(y.dtype) for k, y in enumerate(outs)]
    return [get_xp(y).asarray(g) for y, g in zip(outs, gs, strict=True)]


def empty(*like):
    """Arrays like these. Under test they are full of NaN."""
    return [get_xp(x).empty_like(x) for x in like]


# Each returns the outputs, then the gradients, as the op of the same name does.


def scan(a, b, h_init):
    sizes, (h, da, delta, adjoint, dh_init, first) = (len(a), h_init.size), empty(a, a, a, a, h_init, h_init)
    launch("scan", "scan_forward", a, b, h_init, h, *sizes, threads=sizes[1])
    dh, dh_last = cotangents([h, h[-1]])
    launch("scan", "scan_backward", a, h, h_init, dh, dh_last, da, delta, dh_init, *sizes, threads=sizes[1])
    launch("scan", "scan_backward", a, None, None, dh, dh_last, None, adjoint, first, *sizes, threads=sizes[1])
    eps = np.finfo(a.dtype).eps
    assert_same([adjoint, first], [delta, dh_init], 10 * eps)
    for back, x, before, out, last in ((False, b, h_init, h, h[-1]), (True, dh, dh_last, delta, dh_init)):
        (again,) = empty(a)
        end = of_scan._by_chunks(a, x, before, out=again, steps=CHUNK, back=back)
        assert_same([again, end], [out, last.reshape(-1)], 20 * eps)
    return [h, h[-1], da, delta, dh_init]


def rglru(u, zr, zi, lam, h_init, *, starts):
    threads, (h,) = h_init.size, empty(u)
    launch("rglru", "rglru_forward", u, zr, zi, lam, h_init, starts, h, *u.shape, threads=threads)
    dh, dh_last = cotangents([h, h_init])
    grads = empty(u, u, u, h_init, h_init)
    inputs = (u, zr, zi, lam, h, h_init, starts, dh, dh_last)
    launch("rglru", "rglru_backward", *inputs, *grads, *u.shape, threads=threads)
    du, dzr, dzi, dlam, dh_init = grads
    return [h, h[:, -1], du, dzr, dzi, dlam.sum(axis=0), dh_init]


def wkv(k, v, time_decay, time_first, p, q, o):
    sizes = (*k.shape, -(-k.shape[1] // STEPS[k.itemsize]))
    outs, again, grads = empty(k, p, p, p), empty(k, p, p, p), empty(k, k, p, p, p, p)
    inputs, saved = (k, v, time_decay, time_first), get_xp(k).empty((sizes[3], 3, *p.shape), k.dtype)
    launch("wkv", "wkv_forward", *inputs, p, q, o, *outs, saved, *sizes, threads=p.size)
    launch("wkv", "wkv_forward", *inputs, p, q, o, *again, None, *sizes, threads=p.size)
    assert_same(again, outs, 10 * np.finfo(k.dtype).eps)
    launch("wkv", "wkv_backward", *inputs, saved, *cotangents(outs[:3]), *grads, *sizes, threads=p.size)
    dk, dv, ddecay, dfirst, dp, dq = grads
    return [*outs, dk, dv, ddecay.sum(axis=0), dfirst.sum(axis=0), dp, dq]


KERNELS = {"scan": (scan, scan_op, naive_scan), "rglru": (rglru, rglru_op, naive_rglru)}
KERNELS |= {"wkv": (wkv, wkv_op, naive_wkv)}


def fused(stem, args, static):
    """The NumPy form: outputs and gradients in the order of the functions above."""
    op = KERNELS[stem][1]
    outs, saved = op.op.forward(*args, **static)
    gs = cotangents(outs)
    return [*outs, *(g for g in op.op.backward((*gs[:3], None)[: len(outs)], *saved) if g is not None)]


def assert_same(got, expected, tol):
    assert len(got) == len(expected)
    for k, (x, y) in enumerate(zip(map(to_cpu, got), map(to_cpu, expected), strict=True)):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=tol * max(1.0, np.abs(y).max()), err_msg=f"array {k}")


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("stem", KERNELS)
def test_kernel_equals_fused(cpp, stem, build):
    for seed, sizes in enumerate(SIZES):
        args, static = draw(stem, seed, *sizes)
        with host_build(build) as reports:
            assert_same(KERNELS[stem][0](*args, **static), fused(stem, args, static), 1e-12)
        assert len(reports) == ({"scan": 9, "rglru": 2, "wkv": 3}[stem] if build == "check" else 0)
        assert [finding for report in reports for finding in report.findings] == []


@pytest.mark.gpu
@pytest.mark.parametrize("stem", KERNELS)
def test_kernel_on_a_gpu_equals_fused(stem):
    for seed, sizes in enumerate(SIZES):
        args, static = draw(stem, seed, *sizes)
        on_gpu = {name: x if x is None else to_gpu(x) for name, x in static.items()}
        assert_same(KERNELS[stem][0](*map(to_gpu, args), **on_gpu), fused(stem, args, static), 1e-12)


@pytest.mark.parametrize("stem", ["scan", "rglru"])
def test_kernel_equals_naive(cpp, outputs_and_gradients, stem):
    for seed, sizes in enumerate(SIZES[:8]):
        args, static = draw(stem, seed, *sizes)
        with np.errstate(invalid="ignore"):
            expected = outputs_and_gradients(KERNELS[stem][2], *args, **static)
        assert_same(KERNELS[stem][0](*args, **static), expected, 1e-11)


def test_wkv_equals_naive(cpp, outputs_and_gradients):
    for seed, sizes in enumerate(SIZES[:8]):
        args, _ = draw("wkv", seed, *sizes)
        *expected, _ = outputs_and_gradients(lambda *x: naive_wkv(*x)[:3], *args)
        got = wkv(*args)
        assert_same(got[:3] + got[4:], expected, 1e-11)  # without o, which is a gauge


FLOAT32 = [("scan", None, 2e-6), ("rglru", None, 2e-6), ("wkv", None, 2e-6), ("wkv", 60.0, 5e-5)]


@pytest.mark.parametrize(("stem", "keys", "tol"), FLOAT32)
def test_kernel_in_float32(cpp, stem, keys, tol):
    for seed, sizes in enumerate(SIZES):
        args, static = draw(stem, seed, *sizes, keys)
        single = [x.astype(np.float32) for x in args]
        got = KERNELS[stem][0](*single, **static)
        assert all(x.dtype == np.float32 for x in got)
        expected = fused(stem, [x.astype(np.float64) for x in single], static)
        if stem == "wkv":  # p and q, each side in a gauge of its own rounding
            shift = np.exp(got[3] - expected[3])
            got[1:4], expected[1:4] = [got[1] * shift, got[2] * shift], expected[1:3]
        assert_same(got, expected, tol)


@pytest.mark.parametrize("build", [*BUILDS, "simd"])
@pytest.mark.parametrize(("dtype", "largest", "tol"), [(np.float64, 600.0, 1e-12), (np.float32, 60.0, 2e-6)])
def test_wkv_on_both_sides_of_the_threshold(cpp, build, dtype, largest, tol):
    """u + lam far from it, at it and beyond, in neighbouring channels and in whole packs of them."""
    far = np.array([0, 1, -1, 0.99, -0.99, 1.0, -1.0, 1.01, -1.01, 3, -3]) * largest
    sums = np.concatenate([np.zeros(32), far, np.full(32, 2 * largest), np.full(32, -2 * largest)])
    k, v, decay, _, *state = draw("wkv", 0, 2, 19, len(sums))[0]
    single = [x.astype(dtype) for x in (k, v, decay, sums + np.exp(decay), *state)]
    with host_build(build):
        got = wkv(*single)
    expected = fused("wkv", [x.astype(np.float64) for x in single], {})
    shift = np.exp(got[3] - expected[3])
    assert all(np.isfinite(x).all() for x in got)
    assert_same([got[0], got[1] * shift, got[2] * shift, *got[4:]], [*expected[:3], *expected[4:]], tol)


def test_pieces_of_a_sequence_chain(cpp):
    k, v, decay, first, *state = draw("wkv", 0, 2, 50, 5)[0]
    whole = wkv(k, v, decay, first, *state)
    for cut in (1, 7, 8, 9, 16, 49):
        left = wkv(k[:, :cut].copy(), v[:, :cut].copy(), decay, first, *state)
        right = wkv(k[:, cut:].copy(), v[:, cut:].copy(), decay, first, *left[1:4])
        assert_close(np.concatenate([left[0], right[0]], axis=1), whole[0], 1e-13)
        for got, expected in zip(right[1:4], whole[1:4], strict=True):
            assert_close(got, expected, 1e-13)


# name of the kernel: arrays of (batch, time, width) that it must touch, per its head comment
TOUCHED = {"scan_forward": 3, "scan_backward": 5, "scan_ends": 2, "scan_chunks": 3}
TOUCHED |= {"rglru_forward": 4, "rglru_backward": 8, "wkv_forward": 3, "wkv_backward": 5}


@pytest.mark.parametrize("stem", KERNELS)
def test_the_bytes_of_the_head_comment(cpp, stem):
    batch, time, width = 2, 20, 64
    args, _ = draw(stem, 0, batch, time, width)
    with host_build("check") as reports:
        KERNELS[stem][0](*args, **({"starts": None} if stem == "rglru" else {}))
    for report in {r.kernel: r for r in reversed(reports)}.values():
        wide = batch * time * width * 8
        small = 12 * batch * width * 8 * math.ceil(time / STEPS[8])  # states, parameters, partial sums
        assert TOUCHED[report.kernel] * wide <= report.distinct <= TOUCHED[report.kernel] * wide + small
        assert report.moved == report.asked  # every sector that is moved is asked for to its last byte
    assert {report.kernel for report in reports} == set(kernels(stem))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("chunk", [1, 5])
def test_scan_in_chunks(cpp, dtype, chunk):
    """A time below, at and above every multiple of a chunk; one number in a row, and more than a block."""
    tol = 1e-12 if dtype == np.float64 else 2e-6
    for time in (1, 2, 4, 5, 6, 9, 10, 11, 34, 35, 36):
        for row in ((1, 1), (1, 131), (3, 43)):
            a, b, before = (x.astype(dtype) for x in draw("scan", time, row[0], time, row[1])[0])
            for back in (False, True):
                expected, (out,) = np.empty_like(a), empty(a)
                if back:
                    last = of_scan.adjoint_into(a, b, before, expected)
                else:
                    last = of_scan.scan_into(a, b, before, expected) or expected[-1]
                end = of_scan._by_chunks(a, b, before, out=out, steps=chunk, back=back)
                assert end.dtype == dtype
                assert_same([out, end], [expected, last.reshape(-1)], tol)


def test_the_bytes_of_scan_in_chunks(cpp):
    """20 bytes per element and 24 per number of a row and chunk in float32."""
    (a, b, before), _ = draw("scan", 0, 2, 20, 64)
    for back in (False, True):
        with host_build("check") as reports:
            of_scan._by_chunks(a, b, before, out=np.empty_like(a), steps=CHUNK, back=back)
        assert [report.kernel for report in reports] == ["scan_ends", "scan_forward", "scan_chunks"]
        assert sum(report.distinct for report in reports) == 8 * (5 * a.size + 6 * before.size * 5 + before.size)
        assert all(report.moved == report.asked == report.distinct for report in reports)


def test_the_scan_ops_in_chunks(cpp, outputs_and_gradients, monkeypatch):
    """scan and its vjp, and adjoint_scan and its own, by chunks; h_init without an axis too."""
    for row in ((), (1,), (3, 5)):
        rng = np.random.default_rng(0)
        a, b, first = (rng.uniform(-1, 1, shape) for shape in ((23, *row), (23, *row), row))
        for op in (scan_op, of_scan.adjoint_scan):
            expected = outputs_and_gradients(op, a, b, first)
            with monkeypatch.context() as patch, host_build("check") as reports:
                patch.setattr(of_scan, "kernels_wanted", lambda xp, stem: True)
                patch.setattr(of_scan, "_chunk_steps", lambda xp, time, rows: CHUNK)
                assert_same(outputs_and_gradients(op, a, b, first), expected, 1e-12)
            assert [report.kernel for report in reports] == 2 * ["scan_ends", "scan_forward", "scan_chunks"]
            assert [finding for report in reports for finding in report.findings] == []


def test_when_scan_takes_chunks():
    """On a GPU only, for a long time and few numbers in a row; threads enough and not many more."""
    gpu = types.ModuleType("cupy")
    for time, rows, steps in ((2048, 64, 64), (448, 64, 0), (449, 64, 64), (4096, 1024, 70), (512, 9000, 0)):
        assert of_scan._chunk_steps(gpu, time, rows) == steps and of_scan._chunk_steps(np, time, rows) == 0
    for time in (1, 100, 1000, 10**5, 2**31 - 1):
        for rows in (1, 100, 10**4, 10**6):
            steps = of_scan._chunk_steps(gpu, time, rows)
            if steps:
                chunks = -(-time // steps)
                assert 8 <= chunks < 65536 and chunks * rows <= 60_000 + rows  # CUDA has 65535 blocks along y


def test_every_kernel_is_tested_here():
    stems = set(KERNELS) | {"selective_scan", "lstm", "qrnn", "ttt_linear"}  # in files of their own
    assert {path.stem for path in HERE.glob("*.cu")} == stems
    assert all((HERE.parent / f"recurrences/{stem}.py").exists() for stem in stems)
