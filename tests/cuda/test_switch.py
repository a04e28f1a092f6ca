"""The switch: off at first, for a while or for good, one sentence where there is no compiler; kernels without packs."""

import subprocess
import sys
import types

import numpy as np
import pytest

from tinyrec.cuda import host, launch
from tinyrec.cuda.switch import has_simd, kernels_wanted, use_host_kernels

CUPY = types.ModuleType("cupy")


@pytest.fixture(autouse=True)
def _as_before():
    yield
    use_host_kernels(False)


def test_off_at_first_and_nothing_is_compiled():
    code = "import sys, numpy; from tinyrec.cuda.switch import kernels_wanted as k; print(k(numpy, 'wkv'));"
    code += "print('tinyrec.cuda.host' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert kernels_wanted(CUPY, "wkv") and not kernels_wanted(np, "wkv")


def test_for_good_and_for_a_while(cpp):
    use_host_kernels()
    assert kernels_wanted(np, "scan") and kernels_wanted(CUPY, "scan")
    with use_host_kernels(False):
        assert not kernels_wanted(np, "scan")
    assert kernels_wanted(np, "scan")
    use_host_kernels(False)
    with pytest.raises(KeyError), use_host_kernels():
        assert kernels_wanted(np, "scan")
        raise KeyError
    assert not kernels_wanted(np, "scan")


def test_the_build_follows_the_switch(cpp):
    a, h = np.ones((3, 20)), np.empty((3, 20))
    for on, build in [(False, "loop"), (True, "simd"), (False, "loop")]:
        with use_host_kernels(on):
            h.fill(np.nan)
            launch.launch("scan", "scan_forward", a, a, a[0], h, 3, 20, threads=20)
            assert h[:, 0].tolist() == h[:, 19].tolist() == [2, 3, 4]
            assert launch._host_module("scan", "double", None).build == build


def test_a_kernel_without_packs_is_not_wanted(cpp, monkeypatch):
    head = 'extern "C" __global__ void k(const real* __restrict__ x, real* __restrict__ y)'
    texts = {"branch": f"{head} {{ if (x[0] > 0) y[0] = 1; }}", "waits": f"{head} {{ __syncthreads(); }}"}
    monkeypatch.setattr(launch, "kernel_text", texts.__getitem__)
    with use_host_kernels():
        for stem, build in (("branch", "loop"), ("waits", "fiber")):
            assert not kernels_wanted(np, stem) and kernels_wanted(CUPY, stem)
            assert launch._host_module(stem, "float", None).build == build  # and yet they run
    has_simd.cache_clear()


@pytest.mark.parametrize("stem", ["scan", "lstm"])
def test_a_build_that_is_named_runs_every_kernel(cpp, stem):
    with launch.host_build("fiber"):
        assert not kernels_wanted(np, stem)  # to name a build is not to switch on
        with use_host_kernels():
            assert kernels_wanted(np, stem)
    with use_host_kernels():
        assert kernels_wanted(np, stem) == (stem == "scan")


def test_no_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setattr(host.shutil, "which", lambda name: None)
    host.compiler.cache_clear()
    with pytest.raises(host.CompilerError, match=r"^running CUDA kernels on the CPU needs a C\+\+ compiler"):
        use_host_kernels()
    host.compiler.cache_clear()
    assert not kernels_wanted(np, "scan") and host.PREFERRED == "loop"


@pytest.mark.parametrize("stem", ["scan", "rglru", "wkv", "qrnn", "selective_scan"])
def test_these_have_packs(cpp, stem):
    assert has_simd(stem)
