"""The checker finds every planted mistake, says where it is, and keeps silent where there is none."""

import numpy as np
import pytest

from tinyrec.cuda.host import HostModule

RIGHT = """
__device__ real twice(const real* x, long long i) { return 2 * x[i]; }

// A sum over a block of any size: by shuffles inside of a warp, then by shared memory.
extern "C" __global__ void block_sum(const real* x, real* y, int n) {
    __shared__ real of_warp[32];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    real sum = i < n ? twice(x, i) : real(0);
    for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(0xffffffffu, sum, by);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < (blockDim.x + 31) / 32; w++) sum += of_warp[w];
        y[blockIdx.x] = sum;
    }
}

// y = x^T in tiles; the padded column would keep the banks apart.
extern "C" __global__ void transpose(const real* x, real* y, int rows, int columns) {
    __shared__ real tile[8][8 + 1];
    int row = blockIdx.y * 8 + threadIdx.y, column = blockIdx.x * 8 + threadIdx.x;
    if (row < rows && column < columns) tile[threadIdx.y][threadIdx.x] = x[row * columns + column];
    __syncthreads();
    row = blockIdx.x * 8 + threadIdx.y, column = blockIdx.y * 8 + threadIdx.x;
    if (row < columns && column < rows) y[row * rows + column] = tile[threadIdx.x][threadIdx.y];
}

extern "C" __global__ void reverse_warp(real* x) {
    extern __shared__ real line[];
    line[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    x[threadIdx.x] = line[threadIdx.x / 32 * 32 + 31 - threadIdx.x % 32];
    __syncwarp();
    line[threadIdx.x] = 0;  // nobody of this warp reads it any more
}
"""

PLANTED = """
extern "C" __global__ void reads_beyond(const real* x, real* y, int n) {
    const int i = threadIdx.x;
    if (i < n) y[i] = x[i + 1];
}
extern "C" __global__ void writes_before(real* y, int n) {
    y[(int)threadIdx.x - 1] = 1;
}
extern "C" __global__ void no_barrier(const real* x, real* y) {
    __shared__ real s[64];
    s[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = s[threadIdx.x > 0 ? threadIdx.x - 1 : 0];  // just written, in this schedule: the values are right
}
extern "C" __global__ void no_second_barrier(const real* x, real* y) {
    __shared__ real s[64];
    for (int k = 0; k < 2; k++) {
        s[threadIdx.x] = x[threadIdx.x] + k;
        __syncthreads();
        y[threadIdx.x] = s[63 - threadIdx.x];
    }
}
extern "C" __global__ void all_write_one(real* y) {
    y[0] = threadIdx.x;
}
extern "C" __global__ void blocks_share(real* y) {
    if (threadIdx.x == 0) y[0] += 1;
}
extern "C" __global__ void block_reads_block(real* y) {
    if (threadIdx.x == 0) y[blockIdx.x] = blockIdx.x ? y[blockIdx.x - 1] : real(0);
}
extern "C" __global__ void divergent(real* y) {
    if (threadIdx.x < 7) __syncthreads();
    y[threadIdx.x] = 0;
}
extern "C" __global__ void two_barriers(real* y) {
    if (threadIdx.x % 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
extern "C" __global__ void unset(real* y) {
    __shared__ real s[64];
    if (threadIdx.x < 60) s[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void tile_edge(real* y) {
    __shared__ real s[4][16];
    s[threadIdx.x / 16][threadIdx.x % 16] = 0;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x % 4][threadIdx.x / 4 + 1];  // inside of the array, outside of its row
}
extern "C" __global__ void local_end(const real* x, real* y, int n) {
    real first[2], kept[4];
    for (int i = 0; i < n; i++) kept[i] = x[i];
    first[1] = kept[0], y[threadIdx.x] = first[1];
}
extern "C" __global__ void local_unset(real* y) {
    real kept[2][3];
    kept[1][1] = 1;
    y[threadIdx.x] = kept[1][2];
}
extern "C" __global__ void uses_null(const real* x, real* y) {
    y[threadIdx.x] = 1 + x[threadIdx.x];
}
extern "C" __global__ void not_in_mask(real* y) {
    real x = threadIdx.x;
    x = __shfl_xor_sync(0x7fffffffu, x, 0);
    y[threadIdx.x] = x;
}
extern "C" __global__ void absent_lane(real* y) {
    real x = threadIdx.x;
    if (threadIdx.x < 16) x = __shfl_down_sync(0x0000ffffu, x, 1);
    y[threadIdx.x] = x;
}
extern "C" __global__ void warps_race(real* y) {
    __shared__ real s[64];
    s[threadIdx.x] = 1;
    __syncwarp();
    y[threadIdx.x] = s[(threadIdx.x + 1) % 64];  // lane 31 reads what another warp writes
}
extern "C" __global__ void rows_first(const real* x, real* y, int time, int rows) {  // x (rows, time): a warp strides
    real sum = 0;
    for (int t = 0; t < time; t++) sum += x[threadIdx.x * time + t];
    y[threadIdx.x] = sum;
}
extern "C" __global__ void time_first(const real* x, real* y, int time, int rows) {  // x (time, rows)
    real sum = 0;
    for (int t = 0; t < time; t++) sum += x[t * rows + threadIdx.x];
    y[threadIdx.x] = sum;
}
"""
SILENT = [("fiber", "float", "float32"), ("check", "double", "float64")]


@pytest.fixture(scope="module")
def planted(cpp):
    return HostModule(code=PLANTED, options=("-Dreal=float",), build="check")


@pytest.fixture(scope="module", params=SILENT, ids=["fiber", "check"])
def right(cpp, request):
    build, real, dtype = request.param
    return HostModule(code=RIGHT, options=(f"-Dreal={real}",), build=build), np.dtype(dtype)


X, Y = np.arange(64.0, dtype="float32"), np.zeros(64, np.float32)

CASES = {  # kernel -> blocks, arguments, a piece of the line with the mistake, words of the finding
    "reads_beyond": (1, (X, Y, np.int32(64)), "x[i + 1]", "thread 63 of block 0 reads x[64] of 64"),
    "writes_before": (1, (Y, np.int32(64)), "- 1] = 1", "thread 0 of block 0 writes y[-1] of 64: out"),
    "no_barrier": (1, (X, Y), "= s[threadIdx.x > 0", "thread 1 of block 0 reads s[0], which thread 0 wrote with"),
    "no_second_barrier": (1, (X, Y), "+ k", "thread 32 of block 0 writes s[32], which thread 31 read"),
    "all_write_one": (1, (Y,), "y[0] = threadIdx", "thread 1 of block 0 writes y[0], which thread 0 wrote"),
    "blocks_share": (2, (Y,), "y[0] += 1", "block 1 reads y[0], which block 0 wrote: a race"),
    "block_reads_block": (2, (Y,), "y[blockIdx.x - 1]", "block 1 reads y[0], which block 0 wrote: a race"),
    "divergent": (1, (Y,), "< 7", "waits at a barrier that thread 7 never reaches: it has ended"),
    "two_barriers": (1, (Y,), "} else {\n", "barrier that thread 1 never reaches: it waits at kernel.cu:"),
    "unset": (1, (Y,), "= s[threadIdx.x];", "thread 60 of block 0 reads s[60], which nobody has wri"),
    "tile_edge": (1, (Y,), "/ 4 + 1]", "takes [16] of 16 in s: out of bounds"),
    "local_end": (1, (X, Y, np.int32(5)), "kept[i] = x[i]", "thread 0 of block 0 takes [4] of 4"),
    "local_unset": (1, (Y,), "= kept[1][2]", "thread 0 of block 0 reads kept[5], which nobody has"),
    "uses_null": (1, (np.uint64(0), Y), "+ x[threadIdx.x]", "thread 0 of block 0 uses a null pointer"),
    "not_in_mask": (1, (Y,), "0x7fffffffu", "thread 31 of block 0 is not in the mask that it names"),
    "absent_lane": (1, (Y,), "0x0000ffffu", "shuffles from lane 16, which does not take part"),
    "warps_race": (1, (Y,), "(threadIdx.x + 1) % 64", "reads s[32], which thread 32 wrote"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_planted_mistake_is_found(planted, name):
    blocks, args, mistake, words = CASES[name]
    args = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    report = planted.get_function(name)((blocks,), (64,), tuple(args))
    line = PLANTED[: PLANTED.index(mistake)].count("\n") + 1 + mistake.endswith("\n")
    assert any(finding.startswith(f"kernel.cu:{line}: ") and words in finding for finding in report.findings), report
    kinds = {finding.split(": ")[0] for finding in report.findings}
    assert len(kinds) == len(report.findings) == (2 if name == "no_second_barrier" else 1)
    assert all(finding.endswith(f", in {name}") for finding in report.findings)


def test_the_values_are_right_although_a_barrier_is_missing(planted):
    y = np.zeros(64, np.float32)
    planted.get_function("no_barrier")((1,), (64,), (X, y))
    assert y.tolist() == [0.0, *range(63)]


def test_a_bad_layout_moves_more_bytes(planted):
    x, y = np.ones((64, 40), np.float32), np.zeros(64, np.float32)
    args = (x, y, np.int32(40), np.int32(64))
    good, bad = (planted.get_function(name)((1,), (64,), args) for name in ("time_first", "rows_first"))
    assert good.findings == bad.findings == ()
    assert good.asked == bad.asked == good.distinct == bad.distinct == (64 * 40 + 64) * 4
    assert good.moved == good.asked
    assert bad.moved == 8 * x.nbytes + y.nbytes  # a sector of 32 bytes for each float


@pytest.mark.parametrize(("n", "threads"), [(1, 32), (64, 64), (100, 64), (130, 128), (77, 96)])
def test_block_sum(right, n, threads):
    module, dtype = right
    blocks = -(-n // threads)
    x, y = np.arange(1, n + 1, dtype=dtype), np.full(blocks, np.nan, dtype)
    report = module.get_function("block_sum")((blocks,), (threads,), (x, y, np.int32(n)))
    assert y.tolist() == [2 * x[b * threads : (b + 1) * threads].sum() for b in range(blocks)]
    assert report is None or report.findings == ()


def test_transpose(right):
    module, dtype = right
    x = np.arange(11 * 19, dtype=dtype).reshape(11, 19)
    y = np.full((19, 11), np.nan, dtype)
    report = module.get_function("transpose")((3, 2), (8, 8), (x, y, np.int32(11), np.int32(19)))
    assert (y == x.T).all()
    assert report is None or report.findings == ()


def test_dynamic_shared_memory_and_syncwarp(right):
    module, dtype = right
    x = np.arange(64, dtype=dtype)
    report = module.get_function("reverse_warp")((1,), (64,), (x,), shared_mem=64 * dtype.itemsize)
    assert x.tolist() == [*range(31, -1, -1), *range(63, 31, -1)]
    assert report is None or report.findings == ()


def test_too_little_dynamic_shared_memory_is_found(cpp):
    module = HostModule(code=RIGHT, options=("-Dreal=double",), build="check")
    report = module.get_function("reverse_warp")((1,), (64,), (np.zeros(64),), shared_mem=63 * 8)
    assert "writes line[63] of 63: out of bounds" in report.findings[0]


def test_arguments_that_overlap_share_their_history(planted):
    x = np.zeros(65, np.float32)
    report = planted.get_function("reads_beyond")((1,), (64,), (x, x[:64], np.int32(64)))  # y[i] = x[i + 1], y is x
    assert len(report.findings) == 1 and "a race" in report.findings[0]
    assert report.distinct == 65 * 4


def test_the_plain_builds_raise_at_a_divergent_barrier(cpp):
    start = PLANTED.index('extern "C" __global__ void divergent')
    code = PLANTED[start : PLANTED.index('extern "C" __global__ void two_barriers')]
    module = HostModule(code=code, options=("-Dreal=float",))
    assert module.build == "fiber"
    with pytest.raises(RuntimeError, match=r"^kernel.cu:2: .* never reaches: it has ended"):
        module.get_function("divergent")((1,), (64,), (Y.copy(),))
