"""The CUDA kernels on a CPU, with the system's C++ compiler; STEM is a recurrence that has one: scan, wkv, ...

  check   launch them in a build that watches: indices, races, barriers, bytes; and compare with the NumPy form
  debug   print the command that stops in one CUDA thread in gdb
  run     launch them once, unwatched and not optimised: what `debug` hands to gdb

Bytes are those of one launch on a wide input in float64: asked for by threads; moved, in sectors of 32; distinct.
Exit status 1 if a check finds something.

  tinyrec cuda check
  tinyrec cuda check rglru
  tinyrec cuda debug rglru
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from textwrap import shorten
from typing import NamedTuple

from ..cuda.host import CompilerError, compiler
from ..cuda.launch import HERE
from ..inspect.kernels import KernelRow, check_kernels, kernel_stems, run_kernels
from ..suggest import did_you_mean
from .check import digits
from .parser import Mistake, Parser, as_mistake

ACTIONS = ("check", "debug", "run")
TOLERANCE = 1e-10  # of the values beside the NumPy form; an LSTM of 72 units makes 2e-12 of rounding
THREAD = "threadIdx.x == 5"
IN_GDB = """\
It stops in thread 5 of the first block. There:

  info locals        the variables of this thread; `info args`: of its kernel
  print threadIdx    who it is; also blockIdx, blockDim, gridDim
  next               one line further
  continue           to the next time that a thread 5 comes here
"""
NO_GDB = """\
gdb was not found here. On Debian and Ubuntu: sudo apt install gdb. On macOS there is lldb, whose words for this are
breakpoint set, with --file and --line or --name, and --condition."""

USAGE = "check [STEM] | debug STEM | run STEM"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("action", metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("stem", nargs="?", metavar="STEM", help=", ".join(kernel_stems()))


def run(arguments: argparse.Namespace) -> int:
    action, stem = arguments.action, arguments.stem
    if action not in ACTIONS:
        raise Mistake(f"cuda has no action {action!r}, only {', '.join(ACTIONS)}{did_you_mean(action, ACTIONS)}")
    if stem is None and action != "check":
        raise Mistake(f"`tinyrec cuda {action}` takes one of {', '.join(kernel_stems())}")
    if stem not in (None, *kernel_stems()):
        raise Mistake(f"no kernel {stem!r}, only {', '.join(kernel_stems())}{did_you_mean(stem, kernel_stems())}")
    if action == "debug":
        print(_how_to_debug(stem))
        return 0
    with as_mistake(CompilerError, TypeError, ValueError):  # the last two: of `launch`, if a .cu file was changed
        compiler()  # before a table is begun
        if action == "check":
            return _check(kernel_stems() if stem is None else [stem])
        run_kernels(stem, "debug")
    print(f"the kernels of {stem}.cu have run, on the CPU")
    return 0


# --- check ------------------------------------------------------------------------------------------------------------


def _check(stems: list[str]) -> int:
    print(f"{'':48}{'kB of a wide input':>23}{'moved /':>9}")
    print(f"{'':23}{'launches':>9}{'findings':>9}{'error':>7}{'asked':>7}{'moved':>7}{'distinct':>9}{'distinct':>9}")
    count, idle = 0, []
    complaints: list[str] = []
    for stem in stems:
        for row in check_kernels(stem):  # of a stem at once: compiling it takes a second or two
            print(_line(row), flush=True)
            count += row.last is not None
            complaints += _complaints(row)
            idle += [row.kernel] if row.last is None else []
    print("".join(f"\n{complaint}" for complaint in complaints))
    findings = "1 finding" if len(complaints) == 1 else f"{len(complaints)} findings"
    print(f"{count} kernels checked, {findings if complaints else 'all right'}")
    if idle:
        print(f"not checked, as no recurrence launches them here: {', '.join(idle)}")
    return 1 if complaints else 0


def _line(row: KernelRow) -> str:
    start = f"{row.kernel:23}{row.launches:>9}"
    if row.last is None:
        return start
    asked, moved, distinct = (n / 1000 for n in (row.last.asked, row.last.moved, row.last.distinct))
    seen = f"{len(row.findings):>9}{digits(row.error):>7}"
    return f"{start}{seen}{asked:7.0f}{moved:7.0f}{distinct:9.0f}{moved / distinct if distinct else 0:9.2f}"


def _complaints(row: KernelRow) -> list[str]:
    found = list(row.findings)
    if not row.error <= TOLERANCE:  # also if it is NaN
        found.append(f"{row.kernel} differs from the NumPy form by {digits(row.error)} of the largest number")
    return found


# --- debug ------------------------------------------------------------------------------------------------------------


def _how_to_debug(stem: str) -> str:
    """The command, ready to be pasted, what to do then, and where else to stop."""
    places = equations((HERE / f"{stem}.cu").read_text("utf-8"))
    place = next((f"{stem}.cu:{at.line}" for found in places.values() for at in found), next(iter(places)))
    options = ["set breakpoint pending on", f"break {place} if {THREAD}", "run"]
    given = " ".join(f"-ex {shlex.quote(option)}" for option in options)
    python = shlex.quote(os.path.relpath(sys.executable))
    said = [f"One CUDA thread of {stem}.cu in gdb:\n\n  gdb -q {given} --args {python} -m tinyrec cuda run {stem}\n"]
    said += [IN_GDB, "Places for a `break` of your own: a kernel's name, or the line of an equation."]
    for kernel, found in places.items():
        said.append(f"\n  {kernel}")
        for at in found:
            said.append(f"{at.line:6}  {at.numbers:13}{shorten(at.code, 58, placeholder=' ...')}")
    return "\n".join(said if shutil.which("gdb") else [*said, "\n" + NO_GDB])


class Equation(NamedTuple):
    """A line of a .cu file that ends with the numbers of equations."""

    line: int
    numbers: str  # "(4) (5)"
    code: str


def equations(code: str) -> dict[str, list[Equation]]:
    """The lines with an equation in each kernel of a .cu text."""
    found: dict[str, list[Equation]] = {}
    kernel = ""
    for number, line in enumerate(code.splitlines(), 1):
        if start := re.match(r'extern "C" .*\b(\w+)\($', line):
            kernel = start[1]
            found[kernel] = []
        elif line.startswith("}"):
            kernel = ""
        elif kernel and (parts := re.match(r" *(.*\S) *// ((?:\(\d+\) ?)+)$", line)):
            found[kernel].append(Equation(number, parts[2], parts[1]))
    return found
