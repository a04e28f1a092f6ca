"""The kernels of tinyrec/cuda/ on the CPU, in the simd build, beside the NumPy form: one thread, float32.

The ratio is what the kernel gains: above 1, it is faster. Both sides allocate what they return; the kernel's side
includes the checks of `launch`. Compiled before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.cases import Case

SIZE = (8, 256, 128)  # B, T, C
SMALL = (4, 128, 256)


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
    return [(x, y, ramp, np.full(C, -1.2, np.float32), *fresh_state(B, C, x)), (dy, dstate, more, None)]


def numpy_side(stem: str, way: str, size: tuple[int, int, int]) -> Callable[[], object]:
    from importlib import import_module

    op = getattr(import_module(f"tinyrec.recurrences.{stem}"), stem).op
    args, gs = inputs(stem, *size)
    saved = op.forward(*args)[1]
    return {"forward": lambda: op.forward(*args), "backward": lambda: op.backward(gs, *saved)}[way]


def kernel_side(stem: str, way: str, size: tuple[int, int, int]) -> Callable[[], object]:
    import numpy as np

    from tinyrec.cuda.launch import host_build, launch

    args, gs = inputs(stem, *size)
    state, dstate = args[-1], gs[1]
    B, T, C = size
    sizes: dict[str, tuple] = {"scan": (T, B * C), "rglru": size, "wkv": (*size, -(-T // 16))}
    starts = (None,) if stem == "rglru" else ()
    saved_shape = (sizes["wkv"][3], 3, B, C)

    def run(name: str, *arrays: Any) -> tuple:
        with host_build("simd"):
            launch(stem, f"{stem}_{name}", *arrays, *sizes[stem], threads=B * C)
        return arrays

    def empty(*like: Any) -> list:
        return [np.empty_like(x) for x in like]

    def forward() -> tuple:
        outs = [*empty(args[0], state, state, state), np.empty(saved_shape, np.float32)]
        return run("forward", *args, *starts, *(outs if stem == "wkv" else outs[:1]))

    last = forward()[-1]  # h, or the saved states of wkv

    def backward() -> tuple:
        x = args[0]
        if stem == "wkv":
            return run("backward", *args[:4], last, *gs[:3], *empty(x, x, dstate, dstate, dstate, dstate))
        if stem == "scan":
            return run("backward", x, last, state, *gs, *empty(x, x, state))
        return run("backward", *args[:4], last, state, None, *gs, *empty(x, x, x, state, state))

    return {"forward": forward, "backward": backward}[way]


def case(stem: str, way: str, size: tuple[int, int, int] = SIZE) -> Case:
    name = f"host_kernels/{stem}-{way}" + "@small" * (size == SMALL)
    sides = {"tinyrec": partial(numpy_side, stem, way, size), "tinyrec-simd": partial(kernel_side, stem, way, size)}
    return Case(name, sides, threads=1)


CASES = [case("wkv", "forward", SMALL)]
CASES += [case(stem, way) for stem in ("wkv", "rglru", "scan") for way in ("forward", "backward")]
