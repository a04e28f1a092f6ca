"""Measure one side of one case in a process of its own and print what was seen as JSON.

    python -m benchmarks.worker CASE SIDE --threads 2
"""

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.cases import all_cases

PROC, CPU = Path("/proc"), Path("/proc/stat")
WARM_UP_CALLS, WARM_UP_SECONDS = 2, 0.3
LEAST_CALLS, LEAST_SECONDS = 3, 0.5  # however slow, however fast: /proc counts other programs in steps of 10 ms


def children() -> list[str]:
    """The processes that help this one, by number; none off Linux."""
    try:
        return [pid for task in (PROC / "self/task").iterdir() for pid in (task / "children").read_text().split()]
    except OSError:
        return []


def memory_mb(field: str, pid: str = "self") -> float | None:
    """VmRSS, the memory in use, or VmHWM, its peak since the last reset; None where Linux does not tell."""
    try:
        lines = (PROC / pid / "status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def reset_peak_memory(pid: str = "self") -> None:
    with contextlib.suppress(OSError):  # then the peak includes the warm-up: never less than the truth
        (PROC / pid / "clear_refs").write_text("5")


def foreign_cpu_seconds() -> float | None:
    """CPU seconds that all but this process and its helpers have used since the machine started; None off Linux."""
    hertz, own = os.sysconf("SC_CLK_TCK"), os.times()
    try:
        user, nice, system, _, _, irq, softirq, steal = map(int, CPU.read_text().split("\n", 1)[0].split()[1:9])
        helpers = [(PROC / pid / "stat").read_text().rpartition(")")[2].split()[11:13] for pid in children()]
    except (OSError, ValueError):
        return None
    ticks = user + nice + system + irq + softirq + steal - sum(int(t) for times in helpers for t in times)
    return ticks / hertz - own.user - own.system


def load(library: str, threads: int) -> str:
    """Import the library and run one product, so that neither counts as memory of the step; return its version."""
    if library == "torch":
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        torch.ones(64, 64) @ torch.ones(64, 64)
        return f"torch {torch.__version__}"
    import numpy as np

    np.ones((64, 64), np.float32) @ np.ones((64, 64), np.float32)
    if library == "tinyrec":
        from tinyrec.backend import keep_freed_memory

        keep_freed_memory()  # as `tinyrec train` does
    return f"numpy {np.__version__}"


def time_calls(call: Callable[[], object], calls: int, seconds: float) -> list[float]:
    """Seconds of each of `calls` calls; more of them while half a second has not passed, fewer once `seconds` have."""
    times: list[float] = []
    total = 0.0
    while len(times) < LEAST_CALLS or (total < seconds and (len(times) < calls or total < LEAST_SECONDS)):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        total += times[-1]
    return times


def warm_up(call: Callable[[], object], enough: float) -> None:
    """At least two calls and 0.3 s; a call longer than `enough` seconds needs no second one."""
    start, calls, passed = time.perf_counter(), 0, 0.0
    while passed < WARM_UP_SECONDS or (calls < WARM_UP_CALLS and passed < enough):
        call()
        calls, passed = calls + 1, time.perf_counter() - start


def measure(case_name: str, side: str, threads: int, calls: int, seconds: float) -> dict:
    case = all_cases()[case_name]
    version = load(side.partition("-")[0], threads)
    before = memory_mb("VmRSS")
    try:
        call = case.sides[side]()
    except NotImplementedError as missing:
        return {"missing": str(missing), "version": version}
    helpers = {pid: memory_mb("VmRSS", pid) or 0.0 for pid in children()}  # a fork begins with pages that it shares
    warm_up(call, seconds / 4)
    for pid in ("self", *helpers):
        reset_peak_memory(pid)
    foreign = foreign_cpu_seconds()
    times = time_calls(call, calls, seconds)
    after = foreign_cpu_seconds()
    peak = memory_mb("VmHWM")
    more = sum((memory_mb("VmHWM", pid) or 0.0) - at_first for pid, at_first in helpers.items())
    return {
        "seconds": [t / case.per_call for t in times],
        "memory_mb": None if before is None or peak is None else peak - before + more,
        "foreign_cores": None if foreign is None or after is None else max(0.0, (after - foreign) / sum(times)),
        "version": version,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case")
    parser.add_argument("side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=9, help="how many calls to time")
    parser.add_argument("--seconds", type=float, default=8.0, help="stop earlier, after so much timed work")
    options = parser.parse_args()
    print(json.dumps(measure(options.case, options.side, options.threads, options.calls, options.seconds)))
