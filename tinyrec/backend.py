"""Which array library an array belongs to. The array decides: there is no global device.

Only this file and tinyrec/cuda/ name CuPy. CuPy is imported when something is first moved to a GPU, never before, so
`import tinyrec` works and stays fast on a machine without one.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

errstate = np.errstate  # CuPy raises no floating point warnings, and needs none silenced
Array = Any  # a numpy.ndarray or a cupy.ndarray


class NoGPUError(RuntimeError):
    """A GPU was asked for and there is none, or CuPy is not installed."""


def get_xp(*arrays: Any) -> Any:
    """The module (numpy or cupy) that the arrays belong to; Python numbers belong to either."""
    cupy = sys.modules.get("cupy")  # a CuPy array can only exist if somebody has imported CuPy
    if cupy is not None:
        for array in arrays:
            if isinstance(array, cupy.ndarray):
                return cupy
    return np


def import_cupy() -> Any:
    """The cupy module, with a working device behind it. Raises NoGPUError, which says what to install."""
    try:
        import cupy
    except ImportError:
        raise NoGPUError(
            "a GPU was asked for but CuPy is not installed: pip install 'tinyrec[cuda12]' or 'tinyrec[cuda13]'"
        ) from None
    if not cupy.cuda.is_available():
        raise NoGPUError("a GPU was asked for but CuPy finds no usable NVIDIA GPU on this machine")
    return cupy


def on_gpu(x: Any) -> bool:
    """Is it an array on a GPU? Then to look at one of its numbers is to wait for all that the GPU has still to do."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def to_gpu(x: Array) -> Array:
    """Copy a NumPy array to the current GPU; a GPU array is returned as it is. Raises NoGPUError."""
    return import_cupy().asarray(x)


def keep_freed_memory() -> bool:
    """Tell the C library to keep the memory of freed arrays for the next ones; True if it understood (glibc does).

    Otherwise every array above a few megabytes is asked of the system, zeroed by it and given back, a good part of a
    training step. For the whole process, so the caller decides; `tinyrec train` does it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    m_trim_threshold, m_mmap_threshold, most = -1, -3, 2**31 - 1  # names and numbers of <malloc.h>
    return bool(mallopt(m_mmap_threshold, most // 2) and mallopt(m_trim_threshold, most))


def to_cpu(x: Array) -> np.ndarray:
    """Copy a GPU array to host memory; a NumPy array is returned as it is."""
    return x.get() if on_gpu(x) else x


def to_floats(numbers: Sequence[Any]) -> list[float]:
    """Arrays () or numbers as Python floats; those of a GPU come together, so that it is waited for once."""
    xp = get_xp(*numbers)
    return xp.stack([xp.asarray(x, dtype="float64") for x in numbers]).tolist()


# --- what NumPy and CuPy do not do alike ------------------------------------------------------------------------------


def row_dots(x: Array, y: Array) -> Array:
    """The sum of x y over the last axis: (..., D), (..., D) -> (...). CuPy has no vecdot."""
    return (x * y).sum(axis=-1) if on_gpu(x) else np.vecdot(x, y)


def fill_where(x: Array, mask: Array, value: float) -> None:
    """x[mask] = value, in place; mask (...) of the first axes of x. CuPy would wait, to know how many there are."""
    if on_gpu(x):
        get_xp(x).copyto(x, value, where=mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)))
    else:
        x[mask] = value
