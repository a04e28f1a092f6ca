"""The kernels of tinyrec/cuda/ on the CPU, in the simd build, beside the NumPy form: one thread, float32.

The ratio is what the kernel gains: above 1, it is faster. Both sides are the same call, one of them inside of
`use_host_kernels`, checks of `launch` and all. Compiled before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Build, Case

SIZE = (8, 256, 128)  # B, T, C
SMALL = (4, 128, 256)
N = 16  # states of a channel in S6


def with_host_kernels(build: Build) -> Callable[[], object]:
    """The call of another side, with the switch on."""
    from tinyrec.cuda.switch import use_host_kernels

    use_host_kernels()  # for good: a side has a process of its own
    return build()


def inputs(stem: str, B: int, T: int, C: int) -> list:
    """The arguments of the op, and the cotangents of its first outputs."""
    import numpy as np

    from tinyrec.recurrences.wkv import fresh_state

    rng = np.random.default_rng(0)
    x, y, z, dy = (rng.standard_normal((B, T, C), np.float32) for _ in range(4))
    state, dstate, more = (rng.standard_normal((B, C), np.float32) for _ in range(3))
    ramp = np.linspace(-5, 2, C, dtype=np.float32)
    if stem == "scan":
        x, y, dy = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (x, y, dy))
        return [(1 / (1 + np.exp(-x)), y, state), (dy, dstate)]
    if stem == "rglru":
        return [(x, y, z, ramp, state), (dy, dstate)]
    if stem == "qrnn":
        return [(x, y, None, state), (dy, dstate)]
    if stem == "selective_scan":
        b, c = (rng.standard_normal((B, T, N), np.float32) for _ in range(2))
        dstate, h_init = (rng.standard_normal((B, C, N), np.float32) for _ in range(2))
        a = np.tile(-np.arange(1, N + 1, dtype=np.float32), (C, 1))
        return [(x, np.exp(y - 5), a, b, c, ramp, h_init), (dy, dstate)]
    return [(x, y, ramp, np.full(C, -1.2, np.float32), *fresh_state(B, C, x)), (dy, dstate, more, None)]


def side(stem: str, way: str, size: tuple[int, int, int]) -> Callable[[], object]:
    from importlib import import_module

    op = getattr(import_module(f"tinyrec.recurrences.{stem}"), stem).op
    args, gs = inputs(stem, *size)
    saved = op.forward(*args)[1]
    return {"forward": lambda: op.forward(*args), "backward": lambda: op.backward(gs, *saved)}[way]


def case(stem: str, way: str, size: tuple[int, int, int] = SIZE) -> Case:
    name = f"host_kernels/{stem}-{way}" + "@small" * (size == SMALL)
    build = partial(side, stem, way, size)
    return Case(name, {"tinyrec": build, "tinyrec-simd": partial(with_host_kernels, build)}, threads=1)


STEMS = ("wkv", "rglru", "selective_scan", "qrnn", "scan")
CASES = [case("wkv", "forward", SMALL)]
CASES += [case(stem, way) for stem in STEMS for way in ("forward", "backward")]
