"""Compare the sides of a case: alternating processes, rounds, the median of paired ratios.

Milliseconds drift by a third on a shared machine, and two libraries in one process slow each other down (both keep
spinning thread pools). So each side runs alone in a worker process, the sides take turns, and only quotients of
neighbours in time count. A run during which other programs took a fifth of a core or more is repeated, twice at
most, and the quietest is kept: a thread pool that waits for a core it does not get can take ten times as long.
A ratio is tinyrec's time divided by the other side's: below 1, tinyrec is faster.
"""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.cases import Case

ROOT = Path(__file__).parents[1]
OURS = "tinyrec"
# Settings that make OpenBLAS reproducible across machines, and slow.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
BUSY_CORES, ATTEMPTS = 0.2, 3
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class Result:
    """One side of one case: a median time, in seconds per unit, for every round."""

    case: str
    side: str
    unit: str
    threads: int
    rounds: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    foreign_cores: list[float] = field(default_factory=list)  # taken by other programs meanwhile
    ratios: list[float] = field(default_factory=list)  # tinyrec's time, or what is asked for, / this side's, by rounds
    version: str = ""
    missing: str = ""


def worker_environment(threads: int) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    return environment | dict.fromkeys(THREADS, str(threads))


def run_worker(case: Case, side: str, threads: int, calls: int = 9, seconds: float = 8.0) -> dict:
    """Start one worker and return what it printed, see benchmarks/worker.py."""
    command = [sys.executable, "-m", "benchmarks.worker", case.name, side, f"--threads={threads}"]
    command += [f"--calls={calls}", f"--seconds={seconds}"]
    environment = worker_environment(threads)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the {side} worker of {case.name} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def run_quietly(case: Case, side: str, threads: int, seconds: float) -> dict:
    """The least disturbed of up to three runs."""
    runs = []
    while len(runs) < ATTEMPTS:
        runs.append(run_worker(case, side, threads, seconds=seconds))
        if (runs[-1].get("foreign_cores") or 0.0) < BUSY_CORES:
            return runs[-1]
    return min(runs, key=lambda run: run["foreign_cores"])


def paired_ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def compare(
    case: Case, rounds: int = 3, threads: int | None = None, seconds: float = 8.0, ours: str = OURS
) -> list[Result]:
    """All sides of a case, taking turns; every other round runs in reversed order. Ratios are those of side `ours`."""
    threads = threads or case.threads
    results = {side: Result(case.name, side, case.unit, threads) for side in case.sides}
    for number in range(rounds):
        for side in list(case.sides)[:: -1 if number % 2 else 1]:
            result = results[side]
            if result.missing:
                continue
            seen = run_quietly(case, side, threads, seconds)
            result.version, result.missing = seen["version"], seen.get("missing", "")
            if not result.missing:
                result.rounds.append(median(seen["seconds"]))
                result.memory_mb += [] if seen["memory_mb"] is None else [seen["memory_mb"]]
                result.foreign_cores += [] if seen["foreign_cores"] is None else [seen["foreign_cores"]]
    own = results.get(ours)
    for result in results.values():
        if own and own.rounds and result.rounds:
            result.ratios = paired_ratios(own.rounds, result.rounds)
    return list(results.values())


def spread(values: list[float], form: str) -> str:
    return f"{min(values):{form}} - {max(values):{form}}"


def show(results: list[Result], ours: str = OURS) -> None:
    """Print the table; "others" is the most CPU, in cores, that other programs took during a kept run."""
    ratio = f"ratio: {ours} / side, below 1 {ours} is faster"
    table = Table(title=f"time: median of rounds (lowest - highest); {ratio}")
    for column in ("case", "side", "time", "spread", "per second", "MB", "others", "ratio", "ratio spread"):
        table.add_column(column, justify="left" if column in ("case", "side") else "right", no_wrap=True)
    for r in results:
        if r.missing:
            table.add_row(r.case, r.side, "not written", *[""] * 6)
            continue
        time = median(r.rounds)
        scale, name = (1e6, "us") if time < 1e-4 else (1e3, "ms")
        label = name if r.unit == "step" else f"{name}/{r.unit}"
        memory = f"{median(r.memory_mb):.0f}" if r.memory_mb else "-"
        others = f"{max(r.foreign_cores):.1f}" if r.foreign_cores else "-"
        ratio = (f"{median(r.ratios):.2f}", spread(r.ratios, ".2f")) if r.ratios else ("-", "-")
        times = f"{time * scale:.3g} {label}" if time * scale < 100 else f"{time * scale:.0f} {label}"
        scaled = [t * scale for t in r.rounds]
        table.add_row(r.case, r.side, times, spread(scaled, ".4g"), f"{1 / time:.4g}", memory, others, *ratio)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for r in results:
        if r.missing:
            print(f"{r.case}, {r.side}: {r.missing}")


def machine() -> dict:
    """What the numbers depend on besides the code."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count(), "load": load}
