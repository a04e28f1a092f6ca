"""May a recurrence run its kernel? On a GPU always; on NumPy arrays only after `use_host_kernels()`. Off by default.

    use_host_kernels()        # from here on, until use_host_kernels(False)
    with use_host_kernels():  # only in here
        ...

NumPy is the reference. The kernels give the same numbers up to rounding, several times faster where exponentials are
many (docs/cuda.md), in the simd build of host.py; that takes a C++ compiler and, once for each kernel, a few seconds.

    with use_host_kernels(), host_build("check") as reports:  # every kernel there is, in the build that is named
        ...
"""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Any

import numpy as np

from . import launch


class use_host_kernels:  # named like a function, which it is for who does not write `with`
    """Let the recurrences run their kernels on NumPy arrays, or no longer (on=False), in all threads of this process.

    Raises CompilerError, one sentence, if there is no C++ compiler.
    """

    _on = False

    def __init__(self, on: bool = True):
        self.before = use_host_kernels._on
        self._switch(on)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._switch(self.before)

    @staticmethod
    def _switch(on: bool) -> None:
        from . import host  # and all that runs a compiler: only when it is asked for

        if on:
            host.compiler()
        use_host_kernels._on, host.PREFERRED = on, "simd" if on else "loop"
        launch._host_module.cache_clear()  # they chose their build by what was preferred
        launch._function.cache_clear()


def kernels_wanted(xp: Any, stem: str) -> bool:
    """Should <stem>.cu run for arrays of this module, numpy or cupy? On a CPU only if it has a simd build, or inside of
    host_build, which names another."""
    return xp is not np or (use_host_kernels._on and (launch.named_build() is not None or has_simd(stem)))


def whole_warps(xp: Any) -> bool:
    """Will a kernel that is wanted run in the simd build? Where threads wait for each other a block then has one warp,
    and no warp may be cut (host_warp.h)."""
    return xp is np and launch.named_build() in (None, "simd")


@functools.cache
def has_simd(stem: str) -> bool:
    """Can the text be read for packs of threads? Those that wait and cannot are slower, as fibers, than NumPy."""
    from .host import CompilerError

    try:
        for real in launch.REAL.values():
            launch._host_module(stem, real, "simd")
    except CompilerError:
        return False
    return True
