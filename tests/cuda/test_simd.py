"""The simd build: exp to its last digits, every kernel as in the loop build and in NumPy, what makes a pack give up."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tinyrec.cuda.host import CompilerError, HostModule
from tinyrec.cuda.launch import host_build

SPEC = importlib.util.spec_from_file_location("kernels_of_tests", Path(__file__).with_name("test_kernels.py"))
of_kernels = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(of_kernels)
draw, fused, assert_same, FUNCTIONS = (getattr(of_kernels, x) for x in ("draw", "fused", "assert_same", "KERNELS"))

STEMS = ["scan", "rglru", "wkv"]
SIZES = [(1, 1, 1), (3, 1, 8), (2, 5, 16), (1, 3, 17), (2, 17, 31), (3, 9, 40), (2, 33, 131), (1, 8, 200)]  # B, T, C
WIDTHS = {"native": (), "AVX2": ("-mno-avx512f",), "SSE": ("-mno-avx",)}
MATH = """
extern "C" __global__ void math(const real* __restrict__ x, real* __restrict__ e, real* __restrict__ m,
                                real* __restrict__ s, real* __restrict__ l, real* __restrict__ t, long long n) {
    const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= n) return;
    e[c] = exp(x[c]), m[c] = expm1(x[c]), s[c] = sqrt(fabs(x[c])), l[c] = log1p(fabs(x[c])), t[c] = tanh(x[c]);
}
"""
ROWS = """
extern "C" __global__ void rows(const real* __restrict__ x, const real* __restrict__ shared, real* __restrict__ y,
                                real* __restrict__ reversed, const bool* __restrict__ keep, int batch, int width) {
    const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= (long long)batch * width) return;
    const long long row = c / width, place = c % width;
    y[c] = keep[row] ? max(x[c] + shared[row], real(0)) : min(x[place], real(row == 1));
    if (reversed) reversed[(long long)batch * width - 1 - c] = x[c];
}
"""


def built(text, real, flags=()):
    try:
        return HostModule(code=text, options=(f"-Dreal={real}",), build="simd", flags=flags)
    except CompilerError as error:
        if flags and "unrecognized" in str(error):
            pytest.skip("not an x86 processor")
        raise


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("real", "dtype", "exact"), [("float", "f4", np.float64), ("double", "f8", np.longdouble)])
def test_math_to_the_last_digits(cpp, real, dtype, exact, width):
    if np.finfo(exact).eps > np.finfo(dtype).eps / 16:
        pytest.skip("longdouble is no longer than double here")
    rng, (least, most) = np.random.default_rng(0), (-103.9, 88.72) if real == "float" else (-745.1, 709.78)
    x = np.concatenate([np.linspace(least, most, 100_000), rng.uniform(-2, 2, 100_000), rng.normal(size=999) * 1e-4])
    edges = [0.0, np.inf, -np.inf, np.nan, 89, -104, 710, -746, 1e30, -1e30, -1e38, 1e-40, least, most]
    x = np.concatenate([x, edges]).astype(dtype)
    outs = [np.full_like(x, np.nan) for _ in range(5)]
    blocks = -(-x.size // 128)
    built(MATH, real, WIDTHS[width]).get_function("math")((blocks,), (128,), (x, *outs, np.int64(x.size)))
    long = x.astype(exact)
    with np.errstate(all="ignore"):
        right = np.exp(long), np.expm1(long), np.sqrt(abs(long)), np.log1p(abs(long)), np.tanh(long)
        for got, expected, most in zip(outs, right, (2, 2, 2, 2, 3), strict=True):
            rounded = expected.astype(dtype)
            finite = np.isfinite(rounded)
            errors = abs(got - expected)[finite] / np.spacing(abs(rounded[finite])).astype(exact)
            assert errors.max() <= most
            np.testing.assert_array_equal(got[~finite], rounded[~finite])


def full_of_nan(*like):
    return [np.full(x.shape, np.nan, x.dtype) for x in like]


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_simd_is_loop_is_numpy(cpp, monkeypatch, stem, dtype):
    monkeypatch.setattr(of_kernels, "empty", full_of_nan)  # what is not written is seen
    for seed, sizes in enumerate(SIZES):
        args, static = draw(stem, seed, *sizes)
        args = [x.astype(dtype) for x in args]
        results = []
        for build in ("simd", "loop"):
            with host_build(build):
                results.append(FUNCTIONS[stem][0](*args, **static))
        assert all(x.dtype == dtype for x in results[0])
        expected = fused(stem, [x.astype(np.float64) for x in args], static)
        if stem == "wkv":
            results, expected = [in_one_gauge(x, expected) for x in results], in_one_gauge(expected, expected)
        tol = 1e-12 if dtype == np.float64 else 2e-6
        assert_same(results[0], expected, tol)
        assert_same(results[0], results[1], tol)


def in_one_gauge(outs, reference):
    """p and q of wkv in the gauge of the reference: each side rounds its own."""
    shift = np.exp(outs[3] - reference[3])
    return [outs[0], outs[1] * shift, outs[2] * shift, *outs[4:]]


def test_wkv_with_large_keys(cpp):
    for seed, sizes in enumerate(SIZES):
        single = [x.astype(np.float32) for x in draw("wkv", seed, *sizes, 60.0)[0]]
        with host_build("simd"):
            got = FUNCTIONS["wkv"][0](*single)
        expected = fused("wkv", [x.astype(np.float64) for x in single], {})
        assert_same(in_one_gauge(got, expected), in_one_gauge(expected, expected), 5e-5)


@pytest.mark.parametrize("real", ["float", "double"])
def test_lanes_that_part(cpp, real):
    """Rows of every length, a block that is no multiple of a pack, a slope of -1: each thread once, and rightly."""
    rows = built(ROWS, real).get_function("rows")
    dtype, rng = {"float": "f4", "double": "f8"}[real], np.random.default_rng(0)
    for batch, width, block in [(1, 1, 32), (3, 5, 32), (4, 16, 20), (3, 19, 50), (2, 67, 128), (5, 128, 128)]:
        x, shared = rng.normal(size=(batch, width)).astype(dtype), rng.normal(size=batch).astype(dtype)
        keep = np.arange(batch) % 3 == 0
        y, backwards = (np.full((batch, width), np.nan, dtype) for _ in range(2))
        sizes = np.int32(batch), np.int32(width)
        rows((-(-x.size // block),), (block,), (x, shared, y, backwards, keep, *sizes))
        one = (np.arange(batch) == 1)[:, None]
        expected = np.where(keep[:, None], np.maximum(x + shared[:, None], 0), np.minimum(x[0], one))
        np.testing.assert_array_equal(y, expected.astype(dtype))
        np.testing.assert_array_equal(backwards.ravel()[::-1], x.ravel())
        y.fill(np.nan)
        rows((-(-x.size // block),), (block,), (x, shared, y, np.uint64(0), keep, *sizes))
        np.testing.assert_array_equal(y, expected.astype(dtype))


EVERY = """
__device__ bool every(bool here) { return here; }
extern "C" __global__ void agree(const real* __restrict__ x, real* __restrict__ y) {
    const long long c = threadIdx.x;
    const bool positive = every(x[c] > 0);
    y[c] = positive ? real(1) : real(2);
}
"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("real", "dtype"), [("float", "f4"), ("double", "f8")])
def test_a_condition_that_holds_for_every_lane(cpp, real, dtype, width):
    """One lane that differs, at any place of a pack of up to 16, makes it false for its pack, and for no other."""
    agree, lanes = built(EVERY, real, WIDTHS[width]).get_function("agree"), {}
    for other in range(16):
        x, y = np.ones(32, dtype), np.full(32, np.nan, dtype)
        x[other] = -1.0
        agree((1,), (32,), (x, y))
        lanes[other] = set(np.flatnonzero(y == 2))
        assert other in lanes[other] and np.isin(y, [1, 2]).all()
    size = len(lanes[0])
    assert size in (2, 4, 8, 16) and lanes == {i: set(range(i - i % size, i - i % size + size)) for i in range(16)}


REFUSED = {
    "a branch on a number": "if (x[c] > 0) y[c] = 1;",
    "a choice by a number": "y[c] = x[c] > 0 ? x[c] : real(0);",
    "reading what is written": "y[c] += x[c];",
    "a number of one thread as an int": "int i = c; y[i] = x[i];",
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_for_packs_does_not_compile(cpp, why):
    head = "const real* __restrict__ x, real* __restrict__ y"
    text = f'extern "C" __global__ void k({head}) {{ const long long c = threadIdx.x; {REFUSED[why]} }}'
    with pytest.raises(CompilerError, match="refused the kernels"):
        HostModule(code=text, options=("-Dreal=float",), build="simd")


def test_no_barriers_and_only_restrict(cpp):
    with pytest.raises(CompilerError, match=r"^the simd build has no __syncthreads$"):
        HostModule(code='extern "C" __global__ void k() { __syncthreads(); }', options=("-Dreal=float",), build="simd")
    with pytest.raises(CompilerError, match=r"^k: y is not __restrict__, as the simd build needs it$"):
        HostModule(code='extern "C" __global__ void k(real* y) {}', options=("-Dreal=float",), build="simd")


@pytest.mark.parametrize("real", ["float", "double"])
def test_long_rows_are_done_by_packs_alone(cpp, real):
    """The plain text is told from packs by the size of its indices, and taken out: nothing is missing without it."""
    text = ROWS.replace("if (c >= ", "if (sizeof c == sizeof 1ll) return;\n    if (c >= ")
    dtype, width = {"float": "f4", "double": "f8"}[real], 67
    x, y = np.ones((1, width), dtype), np.full((1, width), np.nan, dtype)
    args = (x, x[0, :1].copy(), y, np.uint64(0), np.array([True]), np.int32(1), np.int32(width))
    built(text, real).get_function("rows")((1,), (128,), args)
    assert (y == 2).all()
