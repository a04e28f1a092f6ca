"""The kernels on a GPU: the bandwidth they reach beside that of a plain copy, and the time of PyTorch's form.

    python -m benchmarks.gpu
    python -m benchmarks.gpu wkv scan --size 8 4096 512 --json out.json

float32. Bytes are those of the arrays that an op is handed and gives back, each once, what it keeps for the backward
too: no kernel can move less. So GB/s is a lower bound, and "of copy" says how much of the copy's rate that is.
PyTorch's forms are eager and fair, with time unbound (benchmarks/torch_*.py); of the LSTM it is cuDNN's kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from datetime import date
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_forms import FORMS
from tinyrec.backend import NoGPUError, get_xp, import_cupy, to_gpu

STEMS = ("scan", "rglru", "wkv", "selective_scan", "qrnn", "lstm", "ttt_linear")
SIZE = (8, 1024, 1024)  # B, T, C; arrays of 32 MiB
STATES, HEAD, MINI_BATCH = 16, 64, 16  # of the selective scan; of TTT-Linear


class Measured(NamedTuple):
    """One kernel: seconds, and the bytes that it cannot avoid."""

    stem: str
    way: str
    seconds: float
    bytes: int


def inputs(stem: str, B: int, T: int, C: int) -> tuple[list, dict]:
    """The arguments of the op as NumPy arrays, float32, and what is static."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    x, y, z = (normal(B, T, C) for _ in range(3))
    state, ramp = normal(B, C), np.linspace(-5, 2, C, dtype=np.float32)
    if stem == "scan":
        return [1 / (1 + np.exp(-x.swapaxes(0, 1).copy())), y.swapaxes(0, 1).copy(), state], {}
    if stem == "rglru":
        return [x, y, z, ramp, state], {}
    if stem == "wkv":
        return [x, y, ramp, np.full(C, -1.2, np.float32), 0 * state, 0 * state, 0 * state - np.float32(1e38)], {}
    if stem == "qrnn":
        return [x, y, z, state], {}
    if stem == "lstm":
        return [normal(B, T, 4 * C), normal(C, 4 * C) / np.float32(C**0.5), state, 0 * state], {}
    if stem == "selective_scan":
        a = np.tile(-np.arange(1, STATES + 1, dtype=np.float32), (C, 1))
        dt, d = np.exp(rng.uniform(-7, -2, (B, T, C))).astype(np.float32), np.ones(C, np.float32)
        return [x, dt, a, normal(B, T, STATES), normal(B, T, STATES), d, normal(B, C, STATES)], {}
    heads = C // HEAD
    q, k, v = (x.reshape(B, T, heads, HEAD) for x in (x, y, z))
    lam, tau = np.full((B, T, heads), 0.5 / HEAD, np.float32), 1 / np.arange(1, MINI_BATCH + 1, dtype=np.float32)
    gain, w, b = np.ones((heads, HEAD), np.float32), 0.1 * normal(B, heads, HEAD, HEAD), 0 * normal(B, heads, HEAD)
    return [q, k, v, lam, tau, gain, 0 * gain, w, b, 0 * w, b], {"checkpoint": 4}


def arrays(*nested: Any) -> Iterator[Any]:
    """The arrays in tuples and lists of them."""
    for x in nested:
        if isinstance(x, tuple | list):
            yield from arrays(*x)
        elif hasattr(x, "nbytes") and hasattr(x, "data"):
            yield x


def distinct_bytes(*nested: Any) -> int:
    """Of the memory behind them: a view of an array that was counted costs nothing."""
    return sum({x.data.ptr: x.nbytes for x in sorted(arrays(*nested), key=lambda x: x.nbytes)}.values())


def on_gpu(nested: Any) -> Any:
    return [to_gpu(x) if isinstance(x, np.ndarray) else x for x in nested]


def measure(stem: str, size: tuple[int, int, int], seconds: Callable[[Callable], float]) -> list[Measured]:
    """Forward and backward of the op of this stem, on the current GPU."""
    op = getattr(import_module(f"tinyrec.recurrences.{stem}"), stem).op
    args, static = inputs(stem, *size)
    args = on_gpu(args)
    outs, saved = op.forward(*args, **static)
    xp = get_xp(args[0])
    gs = tuple(xp.ones_like(y) for y in outs)
    found = op.backward(gs, *saved)
    return [
        Measured(stem, "forward", seconds(lambda: op.forward(*args, **static)), distinct_bytes(args, outs, saved)),
        Measured(stem, "backward", seconds(lambda: op.backward(gs, *saved)), distinct_bytes(gs, saved, found)),
    ]


def gpu_seconds(call: Callable) -> float:
    """The median over calls, by the GPU's own clock."""
    from cupyx.profiler import benchmark

    return median(benchmark(call, n_warmup=3, n_repeat=30, max_duration=5).gpu_times.ravel().tolist())


def copy_rate(cupy: Any, size: tuple[int, int, int], seconds: Callable[[Callable], float]) -> float:
    """Bytes a second that a device copy reads and writes; of four arrays at once, more than a cache holds."""
    source = cupy.ones((4, *size), np.float32)
    target = cupy.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: cupy.copyto(target, source))


def torch_seconds(stem: str, size: tuple[int, int, int]) -> float | None:
    """Forward and backward of PyTorch's form; None if PyTorch is not there, or has no GPU, or not enough memory."""
    try:
        import torch
        from torch.utils.benchmark import Timer
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    leaves = [torch.from_numpy(x).to("cuda").requires_grad_() for x in inputs(stem, *size)[0]]
    form = FORMS[stem](leaves)

    def call() -> None:
        y = form()[0]
        torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)

    try:
        return Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=1).median  # it waits for the GPU
    except torch.cuda.OutOfMemoryError:  # a loop over time keeps every step
        print(f"{stem}: PyTorch's form needs more memory than there is", file=sys.stderr)
        return None


def show(title: str, copy: float, rows: list[Measured], torch: dict[str, float | None]) -> None:
    table = Table(title=title)
    for column in ("kernel", "ms", "GB/s", "of copy", "PyTorch, ms", "ratio"):
        table.add_column(column, justify="left" if column == "kernel" else "right", no_wrap=True)
    table.add_row("copy", "", f"{copy / 1e9:.0f}", "100 %", "", "")
    for row in rows:
        rate, other = row.bytes / row.seconds, ("", "")
        ours = sum(r.seconds for r in rows if r.stem == row.stem)
        if row.way == "backward" and (theirs := torch.get(row.stem)):
            other = f"{theirs * 1e3:.3g}", f"{ours / theirs:.3f}"
        shares = f"{rate / 1e9:.0f}", f"{100 * rate / copy:.0f} %"
        table.add_row(f"{row.stem} {row.way}", f"{row.seconds * 1e3:.3g}", *shares, *other)
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    print("ratio: forward and backward of tinyrec / those of PyTorch's form; below 1 tinyrec is faster")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("stems", nargs="*", metavar="STEM", help=f"{', '.join(STEMS)}; all by default")
    parser.add_argument("--size", type=int, nargs=3, default=SIZE, metavar=("B", "T", "C"), help="default 8 1024 1024")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    options = parser.parse_args(arguments)
    if unknown := [stem for stem in options.stems if stem not in STEMS]:
        raise SystemExit(f"no kernel is called {unknown[0]!r}; there are: {', '.join(STEMS)}")
    B, T, C = size = tuple(options.size)
    if min(size) < 1 or C % HEAD or T % MINI_BATCH:
        raise SystemExit(f"--size takes B, T a multiple of {MINI_BATCH} and C a multiple of {HEAD}, got {B} {T} {C}")
    try:
        cupy = import_cupy()
    except NoGPUError as error:
        raise SystemExit(str(error)) from None
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    copy, rows, torch = copy_rate(cupy, size, gpu_seconds), [], {}
    for stem in options.stems or STEMS:
        print(stem, file=sys.stderr)
        rows += measure(stem, size, gpu_seconds)
        cupy.get_default_memory_pool().free_all_blocks()  # PyTorch has a pool of its own
        torch[stem] = torch_seconds(stem, size)
        if options.json:  # after every kernel: a long run that is interrupted keeps what it has
            done = {"device": device, "size": size, "copy": copy, "torch": torch, "rows": [r._asdict() for r in rows]}
            options.json.write_text(json.dumps(done, indent=1) + "\n")
    show(f"{device}, CuPy {cupy.__version__}, {date.today()}, B {B} T {T} C {C}", copy, rows, torch)


if __name__ == "__main__":
    main()
