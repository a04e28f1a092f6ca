"""Run the kernels of a recurrence on the CPU, watched, and beside its NumPy form: what `tinyrec cuda check` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..cuda.host import CheckReport
from ..cuda.launch import HERE, host_build, kernels
from ..cuda.switch import use_host_kernels
from ..tape import Tensor, array_of
from ..walk import grad, is_float
from .cases import Case, call_of, cases, wide_cases


class KernelRow(NamedTuple):
    """What was seen of one kernel over all cases of its recurrence.

    error: the largest difference to the NumPy form, relative to the largest entry of an array: of the outputs that
    came with it, or of the gradients. last: the report of its last launch, on the widest input; None if it had none.
    """

    kernel: str
    launches: int
    error: float
    findings: tuple[str, ...]  # the first for each line
    last: CheckReport | None


def kernel_stems() -> list[str]:
    """The recurrences that have a kernel: tinyrec/cuda/<stem>.cu."""
    return sorted(path.stem for path in HERE.glob("*.cu"))


def check_kernels(stem: str) -> list[KernelRow]:
    """Launch the kernels of <stem>.cu in the check build on small and wide inputs (float64), one row for each kernel.

    Raises CompilerError without a C++ compiler, or if that refuses the text.
    """
    its_cases = [*_cases_of(stem, cases()), *_cases_of(stem, wide_cases())]
    with use_host_kernels(False):
        expected = [list(_passes(case)) for case in its_cases]
    rows = {name: KernelRow(name, 0, 0.0, (), None) for name in kernels(stem)}
    with use_host_kernels(), host_build("check") as reports:
        for case, by_numpy in zip(its_cases, expected, strict=True):
            for ours, theirs in zip(_passes(case), by_numpy, strict=True):  # forward, then backward
                error = np.max([_difference(a, b) for a, b in zip(ours, theirs, strict=True)])
                for report in reports:
                    rows[report.kernel] = _with(rows[report.kernel], report, error)
                reports.clear()
    return list(rows.values())


def run_kernels(stem: str, build: str) -> None:
    """Launch the kernels of <stem>.cu on the wide inputs, in a build of cuda/host.py: for a debugger, say."""
    with use_host_kernels(), host_build(build):
        for case in _cases_of(stem, wide_cases()):
            list(_passes(case))


def _cases_of(stem: str, table: dict[str, list[Case]]) -> list[Case]:
    """The cases of the ops in recurrences/<stem>.py."""
    start = f"tinyrec.recurrences.{stem}."
    return [case for name, found in table.items() if name.startswith(start) for case in found]


def _passes(case: Case) -> Iterator[list[np.ndarray]]:
    """Runs the forward, gives its outputs; then the backward under random cotangents, gives the gradients."""
    leaves = [Tensor(a, True) if is_float(a) and i not in case.constants else a for i, a in enumerate(case.args)]
    ys = call_of(case)(*leaves)
    ys = ys if isinstance(ys, tuple) else (ys,)
    yield [array_of(y) for y in ys]
    loss: Any = 0.0
    for k, y in enumerate(ys):
        loss = loss + (y * np.random.default_rng([5, k]).standard_normal(y.shape)).sum()
    yield grad(loss, [x for x in leaves if type(x) is Tensor])


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest |a - b|, relative to the largest |b|; NaN if there is one."""
    return float(np.abs(a - b).max()) / (float(np.abs(b).max()) or 1.0)


def _with(row: KernelRow, report: CheckReport, error: float) -> KernelRow:
    """The row, and what one more launch adds to it."""
    seen = {_place(finding) for finding in row.findings}
    new = tuple(finding for finding in report.findings if _place(finding) not in seen)
    return KernelRow(row.kernel, row.launches + 1, float(np.maximum(row.error, error)), row.findings + new, report)


def _place(finding: str) -> str:
    """scan.cu:23"""
    return finding.partition(": ")[0]
