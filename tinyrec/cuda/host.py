"""The text of a kernel on a CPU: HostModule has the call signature of cupy.RawModule, and NumPy arrays for arguments.

The system's C++ compiler translates the very same .cu text behind a few small headers, in one of five builds:
- loop: threads one after the other, in plain loops; for kernels without barriers;
- fiber: threads that wait for each other at barriers and shuffles (host_fiber.h); slower;
- debug: the same, for gdb: `break scan_forward if threadIdx.x == 5` stops in one CUDA thread of the kernel's own text;
- check: fibers, and pointers and arrays that watch (host_check.h); each launch returns a CheckReport. Slow;
- simd: as loop, but neighbouring threads as one, in the vectors of the processor (host_simd.h). Fast.

Compiled files are kept in the user's cache folder, named by a hash of all that went into them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .launch import address
from .signature import DTYPES, parse

HERE = Path(__file__).parent
HEADERS = {
    "loop": ("host.h", "host_launch.h"),
    "fiber": ("host.h", "host_fiber.h", "host_launch.h"),
    "debug": ("host.h", "host_fiber.h", "host_launch.h"),
    "check": ("host.h", "host_fiber.h", "host_watch.h", "host_check.h", "host_launch.h"),
    "simd": ("host.h",),
}
PREFERRED = "loop"  # of kernels without barriers, where nobody names a build; switch.py can make it simd
# -ffp-contract: a CPU with fused multiply-add gives the same numbers as one without. -U: fibers jump between stacks.
FLAGS = "-x c++ -std=c++17 -shared -fPIC -pthread -ffp-contract=off -fno-strict-aliasing -U_FORTIFY_SOURCE".split()
OPTIMISE = {"loop": ["-O2"], "fiber": ["-O2"], "check": ["-O1"], "debug": ["-O0", "-g"]}
OPTIMISE["simd"] = "-O3 -march=native -ffp-contract=fast -fno-math-errno -fno-trapping-math".split()
_WAITS = re.compile(r"__syncthreads|__syncwarp|__shfl_\w*sync")
_DYNAMIC = re.compile(r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")
_SHARED = re.compile(r"__shared__\s+([\w ]+?)\s+(\w+)((?:\s*\[[^]]*\])*)\s*;")
_ARRAYS = re.compile(rf"\b({'|'.join(DTYPES)})\s+(\w+\s*\[[^;()=]*\])\s*;")  # `real x[N], y[N];`
_ARRAY = re.compile(r"(\w+)((?:\s*\[[^]]*\])+)")
_LONG = re.compile(r"\blong long\b(?!>)")  # but not in ptr<const long long>
_LANES = re.compile(r"^#define LANES 32\b.*\n", re.MULTILINE)  # so a text asks for host_warp.h: it may wait
_ENTRY = re.compile(r'extern\s+"C"\s+__global__')
_SIZE = re.compile(r"\bsizeof\s*\(\s*real\s*\)")
_POINTER = re.compile(rf"\b((?:const\s+)?(?:{'|'.join(DTYPES)}))\s*\*")


class CompilerError(RuntimeError):
    """There is no C++ compiler, or it refused the text."""


class CheckReport(NamedTuple):
    """What a launch of the check build saw. findings: one sentence per kind of mistake and line, with file and thread.

    Bytes of the pointer arguments, which on a GPU lie in its main memory:
    asked, what the threads read and wrote; moved, in sectors of 32 bytes, when the 32 threads of a warp go step by step
    together; distinct, of the elements touched at all: a kernel that moves no more than this reads nothing twice.
    """

    kernel: str
    findings: tuple[str, ...]
    asked: int
    moved: int
    distinct: int


class _Array(ctypes.Structure):  # host::Array
    _fields_ = [
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_longlong),
        ("item", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("watched", ctypes.c_void_p),
    ]


class _Report(ctypes.Structure):  # host::Report
    _fields_ = [(name, ctypes.c_longlong) for name in ("asked", "moved", "distinct", "findings")]
    _fields_.append(("text", ctypes.c_char * (1 << 16)))


@functools.cache
def compiler() -> str:
    """The path of the system's C++ compiler. Raises CompilerError, which says what to install."""
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    raise CompilerError("running CUDA kernels on the CPU needs a C++ compiler, and none of c++, g++, clang++ was found")


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME or ~/.cache, then tinyrec/kernels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyrec" / "kernels"


def translate(code: str, options: Sequence[str], build: str) -> str:
    """The C++ text of a build: headers, a `#define` for each -D option, the kernels, and one entry point for each."""
    entries = "".join(f"\nHOST_ENTRY({name})" for name in parse(code))
    modes = "#define HOST_FIBERS\n" * (build != "loop") + "#define HOST_CHECK\n" * (build == "check")
    headers = _read(HEADERS[build])
    # Behind the headers, where a macro named `real` can no longer hurt the standard library.
    macros = "".join(f"#define {o[2:].replace('=', ' ', 1)}\n" for o in options if o.startswith("-D"))
    code = _DYNAMIC.sub(r"SHARED_DYNAMIC(\1, \2);", code)
    if build == "check":
        code = _SHARED.sub(r"SHARED(\1\3, \2);", code)
        code = _ARRAYS.sub(lambda m: " ".join(f"LOCAL({m[1]}{size}, {x});" for x, size in _ARRAY.findall(m[2])), code)
        code = _POINTER.sub(r"ptr<\1> ", code)
    if build == "simd":
        lanes = "".join(_LANES.findall(code))
        macros += lanes + _read(("host_math.h", "host_simd.h", "host_warp.h" if lanes else "host_packs.h"))
        code = _for_packs(code, whole_warps=bool(lanes))
    return f'{modes}{headers}{macros}#line 1 "kernel.cu"\n{code}{entries}\n'


def _read(names: Sequence[str]) -> str:
    return "".join(f'#line 1 "{HERE / name}"\n{(HERE / name).read_text("utf-8")}\n' for name in names)


def _for_packs(code: str, whole_warps: bool) -> str:
    """The text for packs of threads, see host_simd.h, and before it, unless a pack is a warp, the text as it stands."""
    if not whole_warps and (waits := _WAITS.search(code)):
        raise CompilerError(f"the simd build has no {waits[0]}")
    for name, parameters in parse(code).items():
        if shared := [p.name for p in parameters if p.pointer and not p.alone]:
            raise CompilerError(f"{name}: {shared[0]} is not __restrict__, as the simd build needs it")
    plain = _ENTRY.sub("static", _SIZE.sub("sizeof(host::number)", code))
    packs = _LONG.sub("Index", _POINTER.sub(r"ptr<\1> ", plain.replace("__restrict__", "")))
    if whole_warps:
        plain, packs = "", _SHARED.sub(r"SHARED(\1\3, \2);", packs)
    names = "using real = host::Pack;\nusing host::Index;\nusing host::ptr;\nstatic const host::Thread threadIdx;\n"
    return f"namespace plain {{\n{plain}\n}}\n#undef real\nnamespace packs {{\n{names}{packs}\n}}\n"


def build_library(text: str, flags: Sequence[str]) -> Path:
    """Compile C++ text to a shared library in the cache, unless it lies there already."""
    path = Path(compiler()).resolve()
    command = [str(path), *FLAGS, *flags]
    made_of = "\0".join([text, *command, str(path.stat().st_mtime_ns), _processor()])
    target = cache_folder() / f"{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Written under another name and then renamed: a second process never loads half a file.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source, made = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        source.write_text(text, "utf-8")
        done = subprocess.run([*command, str(source), "-o", str(made)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerError(f"{path.name} refused the kernels:\n{done.stderr[:4000]}")
        made.replace(target)
    return target


@functools.cache
def _processor() -> str:
    """What -march=native depends on, as far as the system tells: a cache folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    return "\n".join([platform.machine(), *sorted({x for x in lines if x.startswith(("flags", "model name"))})])


class HostModule:
    """The kernels of a CUDA text, compiled for the CPU. build: see above; None: loop or, if switched on, simd, where
    it will do.

    Of the options only -D is taken over; flags are for the C++ compiler.

    >>> add = HostModule(code=text, options=("-Dreal=float",)).get_function("add")
    >>> add((blocks,), (threads,), (x, y, np.int32(n)), shared_mem=0)
    """

    def __init__(
        self, *, code: str, options: Sequence[str] = (), build: str | None = None, flags: Sequence[str] = ()
    ):
        self.build = build or ("fiber" if _WAITS.search(code) else PREFERRED)
        if self.build not in HEADERS:
            raise ValueError(f"build '{build}', expected one of {', '.join(HEADERS)}")
        self.parameters = parse(code)
        named = re.match(r'#line 1 "([^"]*)"', code)
        self.file = Path(named[1]).name if named else "kernel.cu"
        try:
            library = self._compiled(code, options, flags)
        except CompilerError:
            if build or self.build != "simd":
                raise
            self.build = "loop"  # not every text can be read for packs
            library = self._compiled(code, options, flags)
        self.library = ctypes.CDLL(str(library))

    def _compiled(self, code: str, options: Sequence[str], flags: Sequence[str]) -> Path:
        return build_library(translate(code, options, self.build), (*OPTIMISE[self.build], *flags))

    def get_function(self, name: str) -> HostFunction:
        if name not in self.parameters:
            raise ValueError(f"{self.file} has no kernel '{name}'; it has {', '.join(self.parameters) or 'none'}")
        return HostFunction(self, name)


class HostFunction:
    """One kernel: call it as a cupy.RawKernel, with NumPy arrays and NumPy scalars of the exact C types."""

    def __init__(self, module: HostModule, name: str):
        self.module, self.name = module, name
        self.entry = getattr(module.library, f"launch_{name}")
        self.entry.restype = None
        pointers = [parameter.pointer for parameter in module.parameters[name]]
        self.pointers = (ctypes.c_bool * len(pointers))(*pointers)

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> CheckReport | None:
        """Runs the kernel to its end. The check build returns a CheckReport, the others None."""
        parameters = self.module.parameters[self.name]
        if len(args) != len(parameters):
            raise TypeError(f"{self.name} takes {len(parameters)} arguments, got {len(args)}")
        slots: list[Any] = []
        for parameter, x in zip(parameters, args, strict=True):
            if parameter.pointer:  # a NumPy integer 0 is the null pointer
                base = address(x) if isinstance(x, np.ndarray) else None
                if self.module.build != "check":
                    slots.append(ctypes.c_void_p(base))
                else:
                    size, item = (x.nbytes, x.itemsize) if base else (0, 1)
                    slots.append(_Array(base, size, item, parameter.name.encode(), None))
            else:
                slots.append(ctypes.create_string_buffer(x.tobytes(), x.nbytes))
        report = _Report()
        self.entry(
            (ctypes.c_void_p * len(slots))(*map(ctypes.addressof, slots)),
            self.pointers,
            (ctypes.c_uint * 6)(*grid, *(1,) * (3 - len(grid)), *block, *(1,) * (3 - len(block))),
            ctypes.c_longlong(shared_mem),
            ctypes.byref(report),
        )
        findings = tuple(f"{line}, in {self.name}" for line in report.text.decode().splitlines())
        if self.module.build == "check":
            return CheckReport(self.name, findings, report.asked, report.moved, report.distinct)
        if findings:
            raise RuntimeError(findings[0])
        return None
