"""HostModule: the cache, the messages, three dimensions of blocks and threads, stacks of fibers, two Python threads."""

import threading

import numpy as np
import pytest

from tinyrec.cuda import host
from tinyrec.cuda.host import CompilerError, HostModule, build_library, cache_folder
from tinyrec.cuda.launch import HERE, kernel_text

PLACES = """
extern "C" __global__ void places(int* out, int n) {  // each thread writes where it stands
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int i = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
    if (i < n) out[i] = min(i, n - 1) + max(0, 0) + SHIFT;
}
"""
WAITS = """
extern "C" __global__ void rounds(real* x, int n) {
    real big[512];
    __shared__ real s[128];
    for (int k = 0; k < 512; k++) big[k] = k;
    for (int k = 0; k < n; k++) {
        s[threadIdx.x] = x[threadIdx.x] + big[k % 512] - k % 512;
        __syncthreads();
        x[threadIdx.x] = s[(threadIdx.x + 1) % blockDim.x];
        __syncthreads();
    }
}
"""


@pytest.mark.parametrize("build", ["loop", "fiber", "debug", "check"])
def test_three_dimensions(cpp, build):
    out = np.zeros(200, np.int32)
    place = HostModule(code=PLACES, options=("-DSHIFT=5",), build=build).get_function("places")
    report = place((2, 1, 4), (2, 3, 5), (out, np.int32(200)))
    assert out.tolist() == list(range(5, 205))
    assert report is None or (report.findings, report.asked, report.distinct) == ((), 800, 800)


def test_the_cache(cpp, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs = []
    run = host.subprocess.run
    monkeypatch.setattr(host.subprocess, "run", lambda *args, **keywords: runs.append(args) or run(*args, **keywords))
    for _ in range(2):
        HostModule(code=PLACES, options=("-DSHIFT=1",))
    assert len(runs) == 1
    HostModule(code=PLACES, options=("-DSHIFT=2",))  # other options
    HostModule(code=PLACES + "// other text\n", options=("-DSHIFT=1",))
    assert len(runs) == 3
    assert len(list(tmp_path.rglob("*"))) == 2 + 3 and cache_folder() == tmp_path / "tinyrec/kernels"


def test_no_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setattr(host.shutil, "which", lambda name: None)
    host.compiler.cache_clear()
    with pytest.raises(CompilerError, match=r"^running CUDA kernels on the CPU needs a C\+\+ compiler, and none of"):
        build_library("", ())
    host.compiler.cache_clear()


def test_a_compiler_error_names_file_and_line(cpp):
    code = '#line 1 "folder/wrong.cu"\n' + PLACES.replace("out[i] =", "out[i] = nonsense +")
    with pytest.raises(CompilerError, match=r"folder/wrong.cu:6:\d+: error: .*nonsense"):
        HostModule(code=code, options=("-DSHIFT=0",))


def test_an_unknown_build():
    with pytest.raises(ValueError, match=r"^build 'fast', expected one of loop, fiber, debug, check, simd$"):
        HostModule(code=PLACES, build="fast")


def test_unknown_kernel_and_wrong_count(cpp):
    module = HostModule(code=PLACES, options=("-DSHIFT=1",))
    with pytest.raises(ValueError, match=r"^kernel.cu has no kernel 'nothing'; it has places$"):
        module.get_function("nothing")
    with pytest.raises(TypeError, match=r"^places takes 2 arguments, got 1$"):
        module.get_function("places")((1,), (1,), (np.int32(3),))


def test_fibers_keep_their_own_stacks(cpp):
    x = np.arange(128.0)
    HostModule(code=WAITS, options=("-Dreal=double",)).get_function("rounds")((1,), (128,), (x, np.int32(1000)))
    assert x.tolist() == np.roll(np.arange(128.0), -1000).tolist()


def test_python_threads_do_not_share_a_block(cpp):
    rounds = HostModule(code=WAITS, options=("-Dreal=double",)).get_function("rounds")
    xs = [np.arange(128.0) for _ in range(4)]
    workers = [threading.Thread(target=rounds, args=((1,), (128,), (x, np.int32(500)))) for x in xs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(x.tolist() == np.roll(np.arange(128.0), -500).tolist() for x in xs)


@pytest.mark.parametrize("stem", sorted(path.stem for path in HERE.glob("*.cu")))
def test_no_float_kernel_computes_in_double(cpp, stem):
    HostModule(code=kernel_text(stem), options=("-Dreal=float",), flags=("-Werror=double-promotion",))
    in_double = 'extern "C" __global__ void half(real* x) { x[0] *= 0.5; }'
    with pytest.raises(CompilerError, match="double-promotion"):
        HostModule(code=in_double, options=("-Dreal=float",), flags=("-Werror=double-promotion",))
