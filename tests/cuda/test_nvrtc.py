"""NVIDIA's own compiler takes every kernel for every generation of GPUs, in registers alone. It needs no GPU.

NVRTC is one library file, of the PyPI package nvidia-cuda-nvrtc; its log tells what its assembler made of a kernel.
"""

import ctypes
import importlib.util
import os
import re
from pathlib import Path

import pytest

from tinyrec.cuda.launch import HERE, kernel_text, kernels

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
STEMS = sorted(path.stem for path in HERE.glob("*.cu"))
PARTS = r"entry function '(\w+)'", r"(\d+) bytes stack frame, (\d+) bytes spill stores", r"Used (\d+) registers"
ENTRY = re.compile(".*?".join(PARTS), re.DOTALL)


def stated_registers(stem):
    """What the head comment promises: "Registers in float, at most: scan_forward 48, scan_backward 64." """
    (words,) = re.findall(r"^// Registers in float, at most: ([^.]+)\.", kernel_text(stem), re.MULTILINE)
    return {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", words)}


@pytest.mark.parametrize("stem", STEMS)
def test_every_kernel_states_its_registers(stem):
    assert set(stated_registers(stem)) == set(kernels(stem))


def test_the_page_states_the_same():
    page = (HERE.parents[1] / "docs/cuda.md").read_text("utf-8")
    rows = re.findall(r"^\| (\w+_\w+, \w+_\w+)[^|]*\|[^|]*\| (\d+, \d+) \|$", page, re.MULTILINE)
    table = {name: int(n) for names, ns in rows for name, n in zip(names.split(", "), ns.split(", "), strict=True)}
    assert table == {name: number for stem in STEMS for name, number in stated_registers(stem).items()}


@pytest.fixture(scope="module")
def nvrtc():
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    files = [file for folder in folders for file in folder.glob("*/lib/libnvrtc.so.*")]
    if not files:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs the PyPI package nvidia-cuda-nvrtc")
    return ctypes.CDLL(str(files[0]))


def compiled(nvrtc, text, architecture, real):
    """Return code, log and PTX."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), None, 0, None, None) == 0
    options = [f"--gpu-architecture={architecture}", f"-Dreal={real}", "--ptxas-options=-v"]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    code, texts = nvrtc.nvrtcCompileProgram(program, len(options), array), []
    for what in ("ProgramLog", "PTX"):
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value + 1)
        getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
        texts.append(buffer.value.decode())
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code, *texts


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize(("architecture", "real"), [(a, "float") for a in ARCHITECTURES] + [("sm_90", "double")])
def test_compiles_without_local_memory(nvrtc, stem, architecture, real):
    code, log, ptx = compiled(nvrtc, kernel_text(stem), architecture, real)
    if code == 5 and "gpu-architecture" in log:  # NVRTC_ERROR_INVALID_OPTION
        pytest.skip(f"this NVRTC does not know {architecture}")
    assert code == 0, log
    assert "warning" not in log
    entries = {name: tuple(map(int, numbers)) for name, *numbers in ENTRY.findall(log)}
    assert set(entries) == set(kernels(stem))
    for name, most in stated_registers(stem).items():
        frame, spilled, registers = entries[name]
        assert (frame, spilled) == (0, 0), f"{name} keeps {frame} bytes in local memory"
        assert registers <= (most if real == "float" else 2 * most), f"{name} uses {registers} registers"
    assert ".local" not in ptx
    assert real == "double" or not re.search(r"\.f64\b", ptx), "a float kernel computes in double"


def test_a_local_array_and_a_double_are_seen(nvrtc):
    text = """extern "C" __global__ void local(real* x, int n) {
        real kept[64];
        for (int i = 0; i < 64; i++) kept[(i * n) % 64] = x[i];
        for (int i = 0; i < 64; i++) x[i] = 0.1 * kept[i];
    }"""
    code, log, ptx = compiled(nvrtc, text, "sm_90", "float")
    assert code == 0 and int(ENTRY.findall(log)[0][1]) >= 256
    assert ".local" in ptx and re.search(r"\.f64\b", ptx)
