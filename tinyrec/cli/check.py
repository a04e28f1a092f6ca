"""Compare every hand-written gradient with finite differences, in float64: of each op, each recurrence, each model.

The numbers are the largest relative errors of the gradient and of the gradient's gradient; `-` where there is none. A
fused op refuses to be differentiated twice and names its naive twin: its second number is that of the twin.
Of a model every parameter is checked on its own, through the whole network. Exit status 1 if anything fails.

  tinyrec check
  tinyrec check softmax
  tinyrec check hawk
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ..inspect import Row, check_model, run_checks
from ..models import MODELS
from ..suggest import did_you_mean
from ..tape import OPS
from .parser import Mistake, Parser

USAGE = "[NAME] [options]"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="only what has NAME in its name")


def run(arguments: argparse.Namespace) -> int:
    names = [short(name) for name in [*OPS, *MODELS]]
    if not any(arguments.name in name for name in names):
        last = [name.rpartition(".")[2] for name in names]
        raise Mistake(f"no op and no model has {arguments.name!r} in its name{did_you_mean(arguments.name, last)}")
    width = max(map(len, names)) + 2
    print(f"{'':{width}}{'kind':12}{'1st order':>10}{'2nd order':>11}")
    failed = count = 0
    for row in _rows(arguments.name):
        note = f"  FAILED: {row.note}" if not row.ok else f"  {row.note}" if row.kind == "surrogate" else ""
        errors = f"{digits(row.first):>10}{digits(row.second):>11}"
        print(f"{short(row.name):{width}}{row.kind:12}{errors}{note}", flush=True)
        failed, count = failed + (not row.ok), count + 1
    print(f"\n{count} checked, {failed} failed" if failed else f"\n{count} checked, all right")
    return 1 if failed else 0


def _rows(name: str) -> Iterator[Row]:
    yield from run_checks(name)
    yield from (check_model(model) for model in MODELS if name in model)


def short(name: str) -> str:
    """tinyrec.ops.softmax.softmax -> ops.softmax.softmax"""
    return name.removeprefix("tinyrec.")


def digits(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}"
