"""A finding names the file as well as the line: a kernel's text may come from two files, scan.cu and scan.h, say."""

import numpy as np
import pytest

from tinyrec.cuda import launch
from tinyrec.cuda.host import HostModule
from tinyrec.inspect.kernels import check_kernels

HEADER = """\
__device__ real get(const real* x, int i) {
    return x[i];
}
__device__ void wait() {
    __syncthreads();
}
__device__ void fill(real* y) {
    __shared__ real s[64];
    s[63 - threadIdx.x] = y[threadIdx.x];
}
"""
KERNELS = """\
extern "C" __global__ void reads(const real* x, real* y) {
    y[threadIdx.x] = threadIdx.x % 2 ? get(x, threadIdx.x + START) : x[threadIdx.x + START];
}
extern "C" __global__ void waits(real* y) {
    if (threadIdx.x % 2) wait(); else __syncthreads();
}
extern "C" __global__ void fills(real* y) {
    __shared__ real s[64];
    fill(y), s[threadIdx.x] = y[threadIdx.x];
}
"""
TEXT = f'#line 1 "some folder/two.h"\n{HEADER}#line 1 "some folder/two.cu"\n{KERNELS}'


def run(name, start=0, build="check"):
    """The report of one of the kernels on 64 threads, and 64 numbers."""
    module = HostModule(code=TEXT, options=("-Dreal=float", f"-DSTART={start}"), build=build)
    x, y = np.zeros(64, np.float32), np.zeros(64, np.float32)
    return module.get_function(name)((1,), (64,), (x, y) if name == "reads" else (y,))


def test_the_same_line_of_two_files_is_two_lines(cpp):
    findings = run("reads", start=64).findings
    assert findings == (
        "two.cu:2: thread 0 of block 0 reads x[64] of 64: out of bounds, in reads",
        "two.h:2: thread 1 of block 0 reads x[65] of 64: out of bounds, in reads",
    )
    report = run("reads")
    assert report.findings == () and report.moved == 3 * 64 * 4  # all sectors of x at each of the two lines, and y


def test_barriers_at_the_same_line_of_two_files_are_two_barriers(cpp):
    (finding,) = run("waits").findings
    assert finding.startswith("two.cu:5: thread 0 of block 0 waits at a barrier that thread 1 never reaches: ")
    assert finding.endswith(" it waits at two.h:5; a divergent barrier, in waits")
    with pytest.raises(RuntimeError, match=r"^two.cu:5: thread 0 .* waits at two.h:5; a divergent barrier, in waits$"):
        run("waits", build="fiber")


def test_shared_arrays_of_one_name_at_the_same_line_of_two_files_are_two_arrays(cpp):
    assert "real s[64]" in HEADER.splitlines()[7] and "real s[64]" in KERNELS.splitlines()[7]
    assert run("fills").findings == ()


def findings_with(monkeypatch, stem, right, wrong):
    """What the check of a stem's kernels finds when its text has another piece."""
    text = launch.kernel_text(stem)
    assert right in text
    monkeypatch.setattr(launch, "kernel_text", lambda stem: text.replace(right, wrong))
    return [finding for row in check_kernels(stem) for finding in row.findings]


MUTANTS = [
    ("scan", "if (c >= rows) return;", "", "out of bounds"),
    ("rglru", "max(t - 1, 0)", "t - 1", "out of bounds"),
    ("wkv", "q_last[c] = q", "q_last[c / 2] = q", "a race"),
    ("lstm", "__syncthreads();", "", "a race"),
]


@pytest.mark.parametrize(("stem", "right", "wrong", "words"), MUTANTS)
def test_a_mistake_planted_into_a_kernel_is_found(cpp, monkeypatch, stem, right, wrong, words):
    findings = findings_with(monkeypatch, stem, right, wrong)
    assert any(finding.startswith(f"{stem}.cu:") and words in finding for finding in findings), findings


IN_HEADER = [
    ("if (g) g[c] = G;", "if (g) g[c - d] = G;", "thread 0 of block 0 writes g[-4] of 24: out of bounds"),
    ("__shfl_xor_sync(0xffffffffu", "__shfl_xor_sync(0xfffffffeu", "thread 0 of block 0 is not in the mask that it"),
    ("    return rho;", "    if (threadIdx.x < 7) __syncthreads(); return rho;", "barrier that thread 7 never reaches"),
]


@pytest.mark.parametrize(("right", "wrong", "words"), IN_HEADER, ids=["bounds", "shuffle", "barrier"])
def test_a_mistake_in_the_header_of_ttt_linear_is_found_there(cpp, monkeypatch, right, wrong, words):
    header = (launch.HERE / "ttt_linear.h").read_text("utf-8")
    assert header.count(right) == 1
    line = header[: header.index(right)].count("\n") + 1
    findings = findings_with(monkeypatch, "ttt_linear", right, wrong)
    assert any(finding.startswith(f"ttt_linear.h:{line}: ") and words in finding for finding in findings), findings
