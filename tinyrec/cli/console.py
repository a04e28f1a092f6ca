"""What training shows: a table that grows by a line now and then; on a terminal, a progress bar under it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

Record = dict[str, float]


class Table:
    """Log lines for the records of train(): means since the last line, beside the anchors."""

    def __init__(self, unit: str, anchors: Record, monitored: bool = False):
        """monitored: a model of recurrent depth, whose records tell about its iterations and its state."""
        self.unit, self.anchors, self.monitored = unit, anchors, monitored
        self.losses: list[float] = []
        self.tokens, self.seconds, self.began = 0.0, 0.0, perf_counter()

    def header(self) -> list[str]:
        names = "".join(f"{name:>8}" for name in self.anchors)
        before = f"{'step':>6}{'train':>8}{'valid':>8}{names}{'lr':>10}{'norm':>7}"
        above, state = f"{'':8}bits per {self.unit}", ""
        if self.monitored:
            above, state = f"{above:{len(before)}}{'after r iterations:':>21}", f"{'r':>5}{'corr':>7}{'resid':>9}"
        return [above, f"{before}{state}{'tokens/s':>10}{'time':>8}"]

    def add(self, record: Record) -> None:
        self.losses.append(record["bits"])
        self.tokens += record["tokens_per_second"] * record["seconds"]
        self.seconds += record["seconds"]

    def line(self, record: Record) -> str:
        """The line for this step; the means start afresh."""
        bits, speed = sum(self.losses) / len(self.losses), self.tokens / self.seconds
        self.losses, self.tokens, self.seconds = [], 0.0, 0.0
        valid = f"{record['valid_bits']:8.3f}" if "valid_bits" in record else " " * 8
        anchors = "".join(f"{value:8.3f}" for value in self.anchors.values())
        return (
            f"{record['step']:6}{bits:8.3f}{valid}{anchors}{record['lr']:10.1e}{record['grad_norm']:7.2f}"
            f"{self._state(record)}{speed:10.0f}{clock(perf_counter() - self.began):>8}"
        )

    def _state(self, record: Record) -> str:
        """Iterations of this very step; then how alike tokens are and how far a state still moves, if measured."""
        if not self.monitored:
            return ""
        told = "state_correlation" in record
        watched = f"{record['state_correlation']:7.3f}{record['residual']:9.1e}" if told else " " * 16
        return f"{record['iterations']:5.4g}{watched}"

    def by_iterations(self, record: Record) -> list[str]:
        """One more line after a validation of a model of recurrent depth, no line otherwise."""
        found = bits_by_iterations(record)
        cells = "   ".join(f"{r}: {bits:.3f}" for r, bits in found.items())
        return [f"{'':8}valid, first batch, by r   {cells}"] if found else []


def bits_by_iterations(record: Record) -> dict[int, float]:
    """{r: held-out bits after r iterations} of a record that has them; {} of another."""
    start = "valid_bits_r"
    return {int(name.removeprefix(start)): bits for name, bits in record.items() if name.startswith(start)}


class Screen:
    """Lines on stdout, and a progress bar below them when that is a terminal."""

    def __init__(self, progress: Any, task: Any):
        self.progress, self.task = progress, task

    def print(self, line: str) -> None:
        if self.progress:
            self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def at(self, step: int) -> None:
        if self.progress:
            self.progress.update(self.task, completed=step)


@contextmanager
def screen(step: int, steps: int) -> Iterator[Screen]:
    if not sys.stdout.isatty():
        yield Screen(None, None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("training"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("left, Ctrl-C saves"), transient=True) as progress:
        yield Screen(progress, progress.add_task("training", total=steps, completed=step))


def clock(seconds: float) -> str:
    """75 -> 1:15"""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def thousands(n: float) -> str:
    """1234567 -> 1 234 567"""
    return f"{int(n):,}".replace(",", " ")
