"""A whole warp as one in the simd build: shuffles and shared memory as in fibers, S6 as in NumPy, what is refused."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.cuda import host, launch
from tinyrec.cuda.host import CompilerError, HostModule
from tinyrec.cuda.launch import host_build
from tinyrec.cuda.switch import has_simd, use_host_kernels
from tinyrec.recurrences.selective_scan import selective_scan

OP = selective_scan.op
WIDTHS = {"native": (), "AVX2": ("-mno-avx512f",), "SSE": ("-mno-avx",)}
DTYPES = {"float": np.dtype("f4"), "double": np.dtype("f8")}
TEXT = """
#define LANES 32
__device__ real select(bool where, real a, real b) { return where ? a : b; }
extern "C" __global__ void lanes(
    const real* __restrict__ x,  // (blocks, 32)
    real* __restrict__ swapped,  // (blocks, 32)
    real* __restrict__ chosen,   // (blocks, 32)
    real* __restrict__ total,    // (blocks, 32): read and written
    int blocks, int bits) {
    __shared__ real kept[2][LANES];
    const long long lane = threadIdx.x, i = blockIdx.x * (long long)LANES + lane;
    kept[threadIdx.y][lane] = x[i];
    __syncthreads();
    swapped[i] = __shfl_xor_sync(0xffffffffu, x[i], bits);
    chosen[i] = select((3 * lane + blockIdx.x) & bits, kept[0][lane], real(7));
    total[i] = total[i] + kept[0][lane] * x[blockIdx.x * LANES];
}
"""

OPERATIONS = """
__device__ real select(bool where, real a, real b) { return where ? a : b; }
__device__ bool every(bool here) { return here; }
extern "C" __global__ void operations(const real* __restrict__ x, const real* __restrict__ y, real* __restrict__ z) {
    const long long i = (long long)blockIdx.x * 32 + threadIdx.x, n = 32 * gridDim.x;
    real u = x[i], v = y[i];
    z[i] = (u + v) * (u - v) / -v, z[i + n] = exp(u), z[i + 2 * n] = expm1(u), z[i + 3 * n] = tanh(u);
    z[i + 4 * n] = sqrt(fabs(u)), z[i + 5 * n] = log1p(fabs(v)), z[i + 6 * n] = fmax(u, v), z[i + 7 * n] = min(u, v);
    z[i + 8 * n] = select((u < v && u > 0) || !(v <= 1), u, v);
    z[i + 9 * n] = select(u >= 0 && u != v, u, log(fabs(v)));
    u += v, v *= u, u -= real(1), v /= u;
    z[i + 10 * n] = u, z[i + 11 * n] = v, z[i + 12 * n] = every(x[i] < 3) ? real(1) : real(0);
}
"""


def built(text, real, build="simd", flags=()):
    try:
        return HostModule(code=text, options=(f"-Dreal={real}",), build=build, flags=flags)
    except CompilerError as error:
        if flags and "unrecognized" in str(error):
            pytest.skip("not an x86 processor")
        raise


def draw(batch, time, width, states, dtype, seed=0):
    """The arguments of selective_scan, and cotangents of its outputs."""
    rng = np.random.default_rng(seed)
    wide, state = (batch, time, width), (batch, width, states)
    dt, a = np.exp(rng.uniform(-4.0, 0.5, wide)), -rng.uniform(0.3, 4.0, (width, states))
    b, c, d = rng.normal(size=(batch, time, states)), rng.normal(size=(batch, time, states)), rng.normal(size=width)
    args = rng.normal(size=wide), dt, a, b, c, d, rng.normal(size=state)
    gs = rng.normal(size=wide), rng.normal(size=state)
    return [x.astype(dtype) for x in args], [x.astype(dtype) for x in gs]


def results(args, gs):
    """The outputs and the gradients for all inputs."""
    outs, saved = OP.forward(*args)
    return [*outs, *OP.backward(tuple(gs), *saved)]


def assert_same(got, expected, tol):
    for k, (x, y) in enumerate(zip(got, expected, strict=True)):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=tol * max(1.0, np.abs(y).max()), err_msg=f"array {k}")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("real", DTYPES)
def test_the_lanes_of_a_warp_do_what_fibers_do(cpp, real, width):
    x = np.random.default_rng(0).normal(size=(3, 32)).astype(DTYPES[real])
    for bits in range(32):
        outs = []
        for build, flags in (("simd", WIDTHS[width]), ("fiber", ())):
            arrays = np.full_like(x, np.nan), np.full_like(x, np.nan), np.ones_like(x)
            lanes = built(TEXT, real, build, flags).get_function("lanes")
            lanes((3,), (32,), (x, *arrays, np.int32(3), np.int32(bits)))
            outs.append(arrays)
        for ours, theirs in zip(*outs, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # with fused multiply-add, or without
        lane = np.arange(32)
        np.testing.assert_array_equal(outs[0][0], x[:, lane ^ bits])
        np.testing.assert_array_equal(outs[0][1], np.where((3 * lane + np.arange(3)[:, None]) & bits, x, 7))


@pytest.mark.parametrize("real", DTYPES)
def test_a_warp_of_vectors_computes_what_one_vector_does(cpp, real):
    x, y = np.random.default_rng(0).normal(size=(2, 31, 32)).astype(DTYPES[real])
    x[np.arange(30), np.arange(30)] = 4  # every lane but two is once the one that differs
    y[:, 5] = x[30, 3] = np.nan
    outs = []
    for text in (OPERATIONS, "#define LANES 32\n" + OPERATIONS):
        outs.append(np.full((13, *x.shape), 7, x.dtype))
        built(text, real).get_function("operations")((31,), (32,), (x, y, outs[-1]))
    np.testing.assert_array_equal(outs[1][:12], outs[0][:12])
    np.testing.assert_array_equal(outs[1][6], np.fmax(x, y))
    np.testing.assert_array_equal(outs[1][7], np.fmin(x, y))
    np.testing.assert_array_equal(outs[1][12], np.broadcast_to((x < 3).all(axis=1, keepdims=True), x.shape))


sizes = st.tuples(st.integers(1, 3), st.integers(2, 36), st.integers(1, 70), st.integers(1, 40))


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, dtype=st.sampled_from(["f4", "f8"]), seed=st.integers(0, 99))
def test_the_selective_scan_is_that_of_numpy(cpp, sizes, dtype, seed):
    args, gs = draw(*sizes, dtype, seed)
    with use_host_kernels():
        got = results(args, gs)
        assert OP.forward(*args)[1][-1] == {"block": (32,), "build": "simd"}
    assert all(x.dtype == dtype for x in got)
    expected = results([x.astype("f8") for x in args], [g.astype("f8") for g in gs])
    assert_same(got, expected, 1e-12 if dtype == "f8" else 2e-6)


@pytest.mark.parametrize("width", ["AVX2", "SSE"])
def test_the_selective_scan_in_other_vectors(cpp, monkeypatch, width):
    built("", "float", flags=WIDTHS[width])  # or skip
    monkeypatch.setitem(host.OPTIMISE, "simd", [*host.OPTIMISE["simd"], *WIDTHS[width]])
    args, gs = draw(2, 33, 40, 5, "f4")
    with use_host_kernels():
        got = results(args, gs)
    launch._host_module.cache_clear()
    launch._function.cache_clear()
    assert_same(got, results([x.astype("f8") for x in args], [g.astype("f8") for g in gs]), 2e-6)


@pytest.mark.parametrize("missing", [0, 1])
def test_one_output_has_no_cotangent(cpp, missing):
    args, gs = draw(2, 19, 33, 3, "f8")
    zeros = [np.zeros_like(g) if k == missing else g for k, g in enumerate(gs)]
    gs[missing] = None
    with use_host_kernels():
        got = results(args, gs)
    assert_same(got, results(args, zeros), 1e-12)


def test_views_and_inputs_that_are_not_contiguous(cpp):
    args, gs = draw(2, 19, 64, 3, "f8")
    expected = results(args, gs)
    with use_host_kernels():
        assert_same(results([x.T.copy().T for x in args], [g.T.copy().T for g in gs]), expected, 1e-12)


def test_one_step_is_array_code(cpp):
    """Decoding: a launch would take longer than the step."""
    args, _ = draw(2, 1, 5, 3, "f8")
    with use_host_kernels():
        assert not isinstance(OP.forward(*args)[1][-1], dict)


def test_the_backward_runs_in_the_build_of_the_forward(cpp, monkeypatch):
    args, gs = draw(2, 9, 5, 3, "f8")
    builds, call = [], host.HostFunction.__call__

    def noted(function, *args, **more):
        builds.append(function.module.build)
        return call(function, *args, **more)

    monkeypatch.setattr(host.HostFunction, "__call__", noted)
    with use_host_kernels():
        outs, saved = OP.forward(*args)
    got = [*outs, *OP.backward(tuple(gs), *saved)]
    assert builds == ["simd", "simd"]
    assert_same(got, results(args, gs), 1e-12)


TAKES_LONG = """
#define LANES 32
extern "C" __global__ void total(const real* __restrict__ x, real* __restrict__ y, int rounds) {
    __shared__ real kept[3][LANES];
    const long long lane = threadIdx.x, i = blockIdx.x * (long long)LANES + lane;
    real sum = 0;
    for (int k = 0; k < rounds; k++) {
        kept[k % 3][lane] = x[i];
        if (k >= 2) sum += kept[(k + 1) % 3][lane];
    }
    y[i] = sum;
}
"""


def test_two_threads_at_once(cpp):
    """Each has indices and shared memory of its own; the lock of Python is free while a kernel runs."""
    total, start, rounds = built(TAKES_LONG, "double").get_function("total"), Barrier(2), 20_000

    def run(value):
        start.wait(timeout=60)
        x = value * np.ones((50, 32)) + np.arange(50)[:, None]
        y = np.empty_like(x)
        total((50,), (32,), (x, y, np.int32(rounds)))
        return np.array_equal(y, (rounds - 2) * x)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(run, (100, 1000)))


def test_the_recurrence_in_two_threads(cpp):
    shards = [draw(2, 64, 64, 16, "f4", seed) for seed in range(2)]
    with use_host_kernels():
        alone = [results(*shard) for shard in shards]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda shard: [results(*shard) for _ in range(10)], shards))
    for one, many in zip(alone, together, strict=True):
        for again in many:
            for x, y in zip(one, again, strict=True):
                np.testing.assert_array_equal(x, y)


def test_a_launch_with_the_blocks_of_a_gpu_runs_as_fibers(cpp):
    """The switch changes what the recurrence asks for, not what a launch means."""
    x, y, saved = np.ones((1, 3, 5)), np.full((1, 3, 5), np.nan), np.zeros((2, 1, 9, 5))
    inputs = x, x, -np.ones((9, 5)), np.ones((1, 3, 9)), np.ones((1, 3, 9)), np.ones(5)
    with use_host_kernels():
        args = (*inputs, y, saved, 1, 3, 5, 9, 2, 1)
        launch.launch("selective_scan", "selective_scan_forward", *args, grid=(1,), block=(32, 8))
    u, dt, a, b, c, d = inputs
    assert_same([y], [OP.forward(u, dt, a.T, b, c, d, np.zeros((1, 5, 9)))[0][0]], 1e-12)


WHOLE = "the simd build takes whole warps as one, in lanes$"


def test_a_warp_that_is_cut_or_a_block_of_two_is_an_error(cpp):
    x = np.ones((1, 32), "f4")
    args = (x, *(np.empty_like(x) for _ in range(3)), np.int32(1), np.int32(1))
    for block in [(64,), (32, 2), (31,), (16, 2)]:
        with pytest.raises(RuntimeError, match=f"^a block of more or less than one warp, 32 threads: {WHOLE}"):
            built(TEXT, "float").get_function("lanes")((1,), block, args)
    for guard in ("if (lane < 20) swapped[i] = 1;", "swapped[2 * lane] = 1;", "swapped[i / 20] = 1;"):
        cut = TEXT.replace("__syncthreads();", guard)
        with pytest.raises(RuntimeError, match=f"^the threads of a warp part: {WHOLE}"):
            built(cut, "float").get_function("lanes")((1,), (32,), args)


def test_a_text_that_waits_must_say_that_it_is_for_a_warp(cpp, monkeypatch):
    with pytest.raises(CompilerError, match=r"^the simd build has no __syncthreads$"):
        built(TEXT.replace("#define LANES 32", "const int LANES = 32;"), "float")
    with pytest.raises(CompilerError, match=r"^lanes: swapped is not __restrict__, as the simd build needs it$"):
        built(TEXT.replace("__restrict__ swapped", "swapped"), "float")
    has_simd.cache_clear()
    monkeypatch.setattr(host.subprocess, "run", lambda *args, **_: pytest.fail("ran the compiler"))
    assert not has_simd("lstm") and not has_simd("ttt_linear")
    has_simd.cache_clear()


@pytest.mark.parametrize("shuffle", ["__shfl_down_sync(0xffffffffu, x[i], 1)", "__shfl_sync(0xffffffffu, x[i], 0)"])
def test_other_shuffles_do_not_compile(cpp, shuffle):
    with pytest.raises(CompilerError, match="refused the kernels"):
        built(TEXT.replace("__shfl_xor_sync(0xffffffffu, x[i], bits)", shuffle), "float")


@pytest.mark.parametrize(("first", "second"), [("simd", "check"), ("check", "fiber")])
def test_another_build_goes_on_from_what_the_forward_kept(cpp, first, second):
    """From the simd build with channels of zeros behind the last one."""
    args, gs = draw(2, 9, 5, 3, "f8")
    expected = results(args, gs)
    with use_host_kernels(), host_build(first):
        outs, saved = OP.forward(*args)
    assert saved[-1]["block"] == {"simd": (32,), "check": (32, 3)}[first]
    with host_build(second) as reports:
        assert_same([*outs, *OP.backward(tuple(gs), *saved)], expected, 1e-12)
    assert len(reports) == (second == "check")
    assert [finding for report in reports for finding in report.findings] == []
