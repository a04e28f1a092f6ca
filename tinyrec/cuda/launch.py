"""The one way to start a kernel: it reads the kernel's own signature and checks every argument before the launch.

    launch("scan", "scan_forward", a, b, h_init, h, time, rows, threads=rows)

starts scan_forward of scan.cu for `rows` threads. A GPU takes whatever it is handed: a Python 2.0 for a `float`
arrives as 0, a transposed view is read as if it were contiguous, a short array is read beyond its end. Here each of
these is one sentence. CuPy arrays run on the GPU, on the current stream; the text is compiled at its first launch, once
for float and once for double. NumPy arrays run through the same text, translated by the C++ compiler (host.py).
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import Array, get_xp
from .signature import DTYPES, Parameter, parse

if TYPE_CHECKING:
    from .host import CheckReport, HostModule

HERE = Path(__file__).parent
BLOCK = 128  # threads in a block, where one thread has nothing to do with the others
SHARED_MEM = 48 * 1024  # bytes of shared memory that a block gets without asking
MOST_THREADS = 1024  # in a block, of any GPU
REAL = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}  # what `real` may be
_DTYPE = {word: np.dtype(name) for word, name in DTYPES.items() if word != "real"}
_RANGE = {t: (int(np.iinfo(t).min), int(np.iinfo(t).max)) for t in _DTYPE.values() if t.kind in "iu"}
_NOTHING = ctypes.c_char * 0
_TAKES = {"f": (int, float, np.integer, np.floating), "b": (bool, np.bool_)}  # the rest: (int, np.integer)


class _Mode(threading.local):
    synchronise = False
    build: str | None = None
    reports: list[CheckReport] | None = None


_mode = _Mode()


@contextmanager
def synchronised() -> Iterator[None]:
    """Wait for every kernel in here, so that an error names the kernel that made it and not a later one. Slow."""
    before, _mode.synchronise = _mode.synchronise, True
    try:
        yield
    finally:
        _mode.synchronise = before


@contextmanager
def host_build(build: str) -> Iterator[list[CheckReport]]:
    """Run NumPy arrays through this build of host.py; gives the list of the reports of "check".

    >>> with host_build("check") as reports:
    ...     launch("scan", "scan_forward", ...)
    >>> reports[0].findings
    """
    before, _mode.build, _mode.reports = (_mode.build, _mode.reports), build, []
    try:
        yield _mode.reports
    finally:
        _mode.build, _mode.reports = before


def named_build() -> str | None:
    """The build of the host_build that we are inside of, if any."""
    return _mode.build


@functools.cache
def kernel_text(stem: str) -> str:
    """The text of <stem>.cu, with its path for error messages and debuggers, and <stem>.h where it includes that."""
    path, header = HERE / f"{stem}.cu", HERE / f"{stem}.h"
    before, include, after = path.read_text("utf-8").partition(f'#include "{stem}.h"\n')
    text = f'#line 1 "{path.as_posix()}"\n{before}'
    if include:
        text += f'#line 1 "{header.as_posix()}"\n{header.read_text("utf-8")}'
        text += f'#line {before.count(chr(10)) + 2} "{path.as_posix()}"\n{after}'
    return text


@functools.cache
def kernels(stem: str) -> dict[str, tuple[Parameter, ...]]:
    """The kernels of <stem>.cu and their parameters."""
    return parse(kernel_text(stem))


@functools.cache
def _function(stem: str, name: str, real: str, xp: Any, build: str | None) -> Any:
    """The compiled kernel. xp is numpy, or cupy or what behaves like it."""
    module = _host_module(stem, real, build) if xp is np else _gpu_module(stem, real, xp)
    return module.get_function(name)


@functools.cache
def _host_module(stem: str, real: str, build: str | None) -> HostModule:
    from .host import HostModule  # and all that runs a compiler: only where a kernel runs on the CPU

    return HostModule(code=kernel_text(stem), options=(f"-Dreal={real}",), build=build)


@functools.cache
def _gpu_module(stem: str, real: str, xp: Any) -> Any:
    return xp.RawModule(code=kernel_text(stem), options=(f"-Dreal={real}",))


def contiguous(*arrays: Any) -> list[Any]:
    """The inputs of a launch, copied where they are not contiguous; None stays None."""
    return [x if x is None else get_xp(x).ascontiguousarray(x) for x in arrays]


def shared_limit(xp: Any) -> int:
    """Bytes of shared memory that a block can have: of the current GPU; without end on the CPU."""
    return sys.maxsize if xp is np else int(xp.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"])


def launch(
    stem: str,
    name: str,
    *args: Any,
    threads: int | None = None,
    grid: tuple[int, ...] = (),
    block: tuple[int, ...] = (BLOCK,),
    shared_mem: int = 0,
    build: str | None = None,
) -> None:
    """Start the kernel `name` of <stem>.cu: for `threads` threads in all, or on a grid of blocks, as CUDA has them.

    args: arrays for pointers (None where its comment says "or null"), numbers for values. shared_mem: bytes of
    `extern __shared__`. build: of host.py, for NumPy arrays, unless we are inside of `host_build`, which names another.
    Raises TypeError or ValueError, naming kernel and argument, before anything is started.
    """
    if name not in kernels(stem):
        raise ValueError(f"{stem}.cu has no kernel '{name}'; it has {', '.join(kernels(stem))}")
    if (threads is None) == (not grid):
        raise TypeError(f"{name}: expected either threads= or grid=, got {'neither' if threads is None else 'both'}")
    if threads is not None:
        grid = (-(-threads // math.prod(block)),)
    if not 1 <= math.prod(block) <= MOST_THREADS:
        raise ValueError(f"{name}: a block of {math.prod(block)} threads, expected 1 to {MOST_THREADS}")
    xp = get_xp(*args)
    real, ready = check_arguments(name, kernels(stem)[name], args)
    if math.prod(grid) == 0:
        return
    function = _function(stem, name, real, xp, _mode.build or build)
    if xp is not np and shared_mem > SHARED_MEM:
        if shared_mem > (limit := shared_limit(xp)):
            raise ValueError(f"{name}: {shared_mem} bytes of shared memory, a block of this GPU has {limit}")
        function.max_dynamic_shared_size_bytes = shared_mem
    report = function(grid, block, ready, shared_mem=shared_mem)
    if report is not None and _mode.reports is not None:
        _mode.reports.append(report)
    if _mode.synchronise and xp is not np:
        try:
            xp.cuda.get_current_stream().synchronize()
        except RuntimeError as error:  # CUDARuntimeError is one
            raise RuntimeError(f"kernel {name} of {stem}.cu failed: {error}") from error


def check_arguments(name: str, parameters: tuple[Parameter, ...], args: tuple) -> tuple[str, tuple]:
    """What `real` is, "float" or "double", and the arguments ready to be passed: arrays, and scalars of exact type."""
    if len(args) != len(parameters):
        names = ", ".join(p.name for p in parameters)
        raise TypeError(f"{name}: got {len(args)} arguments, expected {len(parameters)}: {names}")
    xp = get_xp(*args)
    pairs = list(zip(parameters, args, strict=True))
    reals = (x.dtype for p, x in pairs if p.pointer and p.type == "real" and hasattr(x, "dtype"))
    dtypes = _DTYPE | {"real": next(reals, _DTYPE["float"])}
    if dtypes["real"] not in REAL:
        raise TypeError(f"{name}: arrays of {dtypes['real']}, expected float32 or float64")
    ready = tuple([(_array if p.pointer else _number)(name, p, x, dtypes[p.type], xp) for p, x in pairs])
    numbers = {p.name: int(x) for p, x in zip(parameters, ready, strict=True) if not p.pointer}
    arrays = [(p, x) for p, x in pairs if p.pointer and x is not None]
    for p, x in arrays:
        if p.shape and x.size != math.prod(int(word) if word.isdecimal() else numbers[word] for word in p.shape):
            sizes = ", ".join(f"{word} = {numbers[word]}" for word in p.shape if word in numbers)
            expected = f"expected as many numbers as ({', '.join(p.shape)}), {sizes}"
            raise ValueError(f"{name}: {p.name} has shape {x.shape}, {expected}")
    _check_overlap(name, [(p, *_extent(x, xp)) for p, x in arrays if x.size])
    return REAL[dtypes["real"]], ready


def _array(kernel: str, parameter: Parameter, x: Any, expected: np.dtype, xp: Any) -> Any:
    """x if a kernel can read it as what the parameter says."""
    if x is None and parameter.optional:
        return np.uint64(0)  # the null pointer
    who = f"{kernel}: {parameter.name}"
    if not isinstance(x, xp.ndarray):
        raise TypeError(f"{who} is {_kind(x)}, expected {_kind(xp.ndarray)}")
    if x.dtype != expected:
        raise TypeError(f"{who} is {x.dtype}, expected {expected}")
    if not x.flags.c_contiguous:
        raise ValueError(f"{who} has shape {x.shape} and strides {x.strides}, expected a C-contiguous array")
    if not parameter.const and not getattr(x.flags, "writeable", True):
        raise ValueError(f"{who} is read-only, and the kernel writes to it")
    if xp is not np and x.device.id != xp.cuda.Device().id:
        raise ValueError(f"{who} lies on GPU {x.device.id}, expected the current one, {xp.cuda.Device().id}")
    return x


def _number(kernel: str, parameter: Parameter, x: Any, dtype: np.dtype, xp: Any) -> np.generic:
    """x as a NumPy scalar of the exact C type, which is what RawKernel passes on unchanged."""
    who = f"{kernel}: {parameter.name}"
    if not isinstance(x, _TAKES.get(dtype.kind, (int, np.integer))) or (isinstance(x, bool) and dtype.kind != "b"):
        raise TypeError(f"{who} is {_kind(x)}, expected a number for '{parameter.type}'")
    if dtype in _RANGE and not _RANGE[dtype][0] <= x <= _RANGE[dtype][1]:
        raise ValueError(f"{who} = {x} does not fit into '{parameter.type}'")
    return dtype.type(x)


def _kind(x: Any) -> str:
    """`a numpy.ndarray`, `a float`: what something is, for a message."""
    kind = x if isinstance(x, type) else type(x)
    return f"a {kind.__module__}.{kind.__name__}".replace("a builtins.", "a ")


def address(x: np.ndarray) -> int:
    """Where a contiguous NumPy array begins: x.ctypes.data, which takes twice as long and is asked twice a launch."""
    return ctypes.addressof(_NOTHING.from_buffer(x.data)) if x.flags.writeable else x.ctypes.data


def _extent(x: Array, xp: Any) -> tuple[int, int]:
    """First and last address of a contiguous array."""
    first = address(x) if xp is np else x.data.ptr
    return first, first + x.nbytes


def _check_overlap(name: str, extents: list[tuple[Parameter, int, int]]) -> None:
    """`__restrict__` promises that nothing else lies where a kernel writes."""
    for written, first, last in extents:
        if written.const or not written.alone:
            continue
        for other, begin, end in extents:
            if other is not written and begin < last and first < end:
                raise ValueError(f"{name}: {written.name} shares memory with {other.name}, expected one of its own")
