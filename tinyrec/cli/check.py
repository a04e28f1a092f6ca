"""Compare every hand-written gradient with finite differences, in float64: of each op, each recurrence, each model.

The numbers are the largest relative errors of the gradient and of the gradient's gradient; `-` where there is none.
Of a model every parameter is checked on its own, through the whole network. Exit status 1 if anything fails.

  tinyrec check
  tinyrec check softmax
  tinyrec check hawk
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..inspect import Row, run_checks
from ..models import MODELS, build, make_config
from ..nn import parameters
from ..tape import OPS, no_grad
from ..walk import grad
from .parser import Mistake, Parser, did_you_mean

USAGE = "[NAME] [options]"
STEP, TOLERANCE = 1e-4, 1e-7
STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))  # of f'(0), with an error of order STEP^4


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


def check_model(name: str) -> Row:
    """The gradient of <v, logits> by every parameter, each along a random direction u of its own.

    v (B, T, V) random: the sum of the logits (v = 1) would hide errors that cancel.
    """
    rng = np.random.default_rng(0)
    model = build(name, make_config(name, vocab_size=11), rng, np.float64)
    tokens, v = rng.integers(0, 11, (2, 7)), rng.standard_normal((2, 7, 11))
    names, tensors = zip(*parameters(model), strict=True)
    gradients = grad(model(tokens), tensors, v)
    worst, where = 0.0, ""
    for parameter, tensor, gradient in zip(names, tensors, gradients, strict=True):
        u = rng.standard_normal(tensor.shape)
        slope = _slope(model, tokens, v, tensor, u)
        size = max(float(np.linalg.norm(gradient)), abs(slope), 1e-12)  # u is normal, so slope is about |gradient|
        error = abs(slope - float((gradient * u).sum())) / size
        if not error <= worst:
            worst, where = error, parameter
    ok = worst <= TOLERANCE
    return Row(name, "model", worst, None, f"{len(names)} parameters, worst {where}", ok)


@no_grad()
def _slope(model: Any, tokens: np.ndarray, v: np.ndarray, tensor: Any, u: np.ndarray) -> float:
    """d <v, logits> / dt along tensor + t u, by central differences."""
    before, slope = tensor.data.copy(), 0.0
    for steps, weight in STENCIL:
        tensor.data[...] = before + steps * STEP * u
        slope += weight * float((v * model(tokens).data).sum()) / STEP
    tensor.data[...] = before
    return slope


def short(name: str) -> str:
    """tinyrec.ops.softmax.softmax -> ops.softmax.softmax"""
    return name.removeprefix("tinyrec.")


def digits(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}"
