"""Bits per byte of text that the model has not seen, by window length and by position in the window.

Windows longer than those of training (by default 4 times) show whether the model uses what it was never taught to.
The anchors have seen the text that the model was trained on. A model of recurrent depth can be given any numbers of
iterations instead, for one window length.

  tinyrec eval runs/hawk-pydoc
  tinyrec eval runs/hawk-pydoc --data notes.txt --context 256 --context 4096
  tinyrec eval runs/recurrent-depth-pydoc --recurrence 4 --recurrence 32
"""

from __future__ import annotations

import argparse
import itertools
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from ..data import Batches, encode, load_text, split_text
from ..evaluate import Batch, scores
from ..nn import count
from ..train import Options, parse_task, streams
from .console import thousands
from .depth import refuse_depth_options
from .models import add_device, check_length, load_model, longest
from .parser import Mistake, Parser, as_mistake
from .runs import RunFolder

USAGE = "RUN [options]"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("--data", metavar="NAME", help="another text: pydoc, shakespeare or a FILE, all of it held out")
    parser.add_argument("--context", type=int, action="append", metavar="T", help="window length; may be repeated")
    parser.add_argument("--bytes", type=int, default=65536, metavar="N", help="read the first N bytes (default 65536)")
    many = "of a model of recurrent depth (default: the trained mean); may be repeated"
    add_device(parser)
    parser.add_argument("--recurrence", type=int, action="append", metavar="R", help=f"iterations {many}")


class Column(NamedTuple):
    """One evaluation."""

    heading: str
    length: int  # of the windows
    steps: int | None  # iterations of a model of recurrent depth


def run(arguments: argparse.Namespace) -> int:
    folder = RunFolder(arguments.run)
    saved, options = folder.load()
    model = load_model(saved, arguments.device)
    refuse_depth_options(arguments, model)
    columns = _columns(arguments, options, model.config)
    size = thousands(count(model))
    print(f"{saved.name}, {size} parameters, step {saved.step}, trained on windows of {options.context}")
    if hasattr(model.config, "mean_steps"):
        rounds = sorted({column.steps or model.config.mean_steps for column in columns})
        print(f"iterations: {', '.join(map(str, rounds))}, and about {model.config.mean_steps} in training")
    with threadpool_limits(1):  # the batches are shared among threads, not the matrix products
        if options.task:
            return _task(model, options, arguments.device, columns)
        return _text(folder, model, options, arguments, columns)


def _columns(arguments: argparse.Namespace, options: Options, config: Any) -> list[Column]:
    """What is compared: window lengths, or numbers of iterations if several are given."""
    rounds = sorted(set(arguments.recurrence or ()))
    usual = [options.context] if len(rounds) > 1 else [options.context, int(min(4 * options.context, longest(config)))]
    lengths = sorted(set(arguments.context or usual))
    if lengths[0] < 1 or arguments.bytes < 2 or min(rounds, default=1) < 1:
        raise Mistake("--context and --recurrence take 1 or more, --bytes 2 or more")
    if len(rounds) > 1 and len(lengths) > 1:
        raise Mistake("several numbers of iterations (--recurrence) are compared for one window length (--context)")
    check_length(config, lengths[-1])
    if len(rounds) > 1:
        return [Column(f"r = {r}", lengths[0], r) for r in rounds]
    return [Column(f"windows of {n}", n, *(rounds or [None])) for n in lengths]


def _text(folder: RunFolder, model: Any, options: Options, arguments: argparse.Namespace, columns: list[Column]) -> int:
    with as_mistake(ValueError):
        split = split_text(load_text(options.data, options.max_bytes or None))
        text = load_text(arguments.data) if arguments.data else split.test
    text = text[: arguments.bytes]
    if len(text) < (need := columns[-1].length + 1):
        raise Mistake(f"the text has {len(text)} bytes, windows of {need - 1} need at least {need}")
    what = arguments.data or f"the test piece of {options.data}"
    print(f"on {what}, {thousands(len(text))} bytes\n")
    anchors, tables = folder.anchors(f"{zlib.crc32(text):08x}", split.train, text), {}
    for heading, length, steps in columns:
        batches = Batches(encode(text), length).consecutive(_batch(options, length))
        tables[heading] = by_position(model, batches, length, options.threads, steps, arguments.device)
    _print_table(tables, "byte", anchors)
    return 0


def _task(model: Any, options: Options, device: str, columns: list[Column]) -> int:
    print(f"task {options.task}, 64 examples of each length; the share of right answers in brackets\n")
    tables = {}
    for heading, length, steps in columns:
        with as_mistake(ValueError):
            task, rng = parse_task(options.task, length), streams(options.seed).validation
        batches = (task.sample(8, rng) for _ in range(8))
        tables[heading] = by_position(model, batches, length, options.threads, steps, device)
    _print_table(tables, "token", {"guess": math.log2(task.vocab)})
    return 0


def _batch(options: Options, length: int) -> int:
    """Windows at once, such that a batch takes about the memory that one of training took."""
    return max(1, options.batch * options.context // length)


def by_position(
    model: Any, batches: Iterable[Batch], length: int, threads: int, steps: int | None = None, device: str = "cpu"
) -> np.ndarray:
    """Sums over all windows of (nats, right answers, scored targets), per position: (3, T)."""
    sums = np.zeros((3, length))
    for arrays in scores(model, batches, threads, steps=steps, device=device):
        sums += [array.sum(0) for array in arrays]
    return sums


def ranges(length: int) -> list[tuple[int, int]]:
    """(0, 16), (16, 32), (32, 64), ... up to length."""
    edges = [0] + [16 << i for i in range(length.bit_length()) if 16 << i < length] + [length]
    return list(itertools.pairwise(edges))


def _print_table(tables: dict[str, np.ndarray], unit: str, anchors: dict[str, float]) -> None:
    """A row per range of positions, a column per evaluation."""

    def cell(sums: np.ndarray) -> str:
        nats, right, scored = sums
        if not scored:
            return ""
        return f"{nats / scored / math.log(2):.3f}" + (f" ({right / scored:.1%})" if unit == "token" else "")

    print(f"{f'bits per {unit}':20}" + "".join(heading.rjust(16) for heading in tables))
    for first, end in ranges(max(sums.shape[1] for sums in tables.values())):
        cells = [cell(sums[:, first:end].sum(1)).rjust(16) for sums in tables.values()]
        print(f"{f'token {first + 1} - {end}':20}{''.join(cells)}".rstrip())
    print(f"{'all':20}{''.join(cell(sums.sum(1)).rjust(16) for sums in tables.values())}")
    print("\nbeside " + ", ".join(f"{name} {bits:.3f}" for name, bits in anchors.items()))
