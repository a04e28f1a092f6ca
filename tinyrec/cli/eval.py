"""Bits per byte of text that the model has not seen, by window length and by position in the window.

Windows longer than those of training (by default 4 times) show whether the model uses what it was never taught to.
The anchors have seen the text that the model was trained on.

  tinyrec eval runs/hawk-pydoc
  tinyrec eval runs/hawk-pydoc --data notes.txt --context 256 --context 4096
"""

from __future__ import annotations

import argparse
import itertools
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ..data import Batches, encode, load_text, split_text
from ..evaluate import Batch, scores
from ..nn import count
from ..train import Options, parse_task, streams
from .console import thousands
from .models import check_length, load_model, longest
from .parser import Mistake, Parser, as_mistake
from .runs import RunFolder

USAGE = "RUN [options]"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("--data", metavar="NAME", help="another text: pydoc, shakespeare or a FILE, all of it held out")
    parser.add_argument("--context", type=int, action="append", metavar="T", help="window length; may be repeated")
    parser.add_argument("--bytes", type=int, default=65536, metavar="N", help="read the first N bytes (default 65536)")


def run(arguments: argparse.Namespace) -> int:
    folder = RunFolder(arguments.run)
    saved, options = folder.load()
    model = load_model(saved)
    reach = longest(model.config)
    lengths = sorted(set(arguments.context or [options.context, min(4 * options.context, reach)]))
    if lengths[0] < 1 or arguments.bytes < 2:
        raise Mistake("--context takes 1 or more, --bytes 2 or more")
    check_length(model.config, lengths[-1])
    size = thousands(count(model))
    print(f"{saved.name}, {size} parameters, step {saved.step}, trained on windows of {options.context}")
    with threadpool_limits(1):  # the batches are shared among threads, not the matrix products
        return _task(model, options, lengths) if options.task else _text(folder, model, options, arguments, lengths)


def _text(folder: RunFolder, model: Any, options: Options, arguments: argparse.Namespace, lengths: list[int]) -> int:
    with as_mistake(ValueError):
        split = split_text(load_text(options.data, options.max_bytes or None))
        text = load_text(arguments.data) if arguments.data else split.test
    text = text[: arguments.bytes]
    for length in lengths:
        if len(text) < length + 1:
            raise Mistake(f"the text has {len(text)} bytes, windows of {length} need at least {length + 1}")
    what = arguments.data or f"the test piece of {options.data}"
    print(f"on {what}, {thousands(len(text))} bytes\n")
    batches = {n: Batches(encode(text), n).consecutive(_batch(options, n)) for n in lengths}
    anchors = folder.anchors(f"{zlib.crc32(text):08x}", split.train, text)
    _print_table({n: by_position(model, batches[n], n, options.threads) for n in lengths}, "byte", anchors)
    return 0


def _task(model: Any, options: Options, lengths: list[int]) -> int:
    print(f"task {options.task}, 64 examples of each length; the share of right answers in brackets\n")
    tables = {}
    for n in lengths:
        with as_mistake(ValueError):
            task, rng = parse_task(options.task, n), streams(options.seed).validation
        batches = (task.sample(8, rng) for _ in range(8))
        tables[n] = by_position(model, batches, n, options.threads)
    _print_table(tables, "token", {"guess": math.log2(task.vocab)})
    return 0


def _batch(options: Options, length: int) -> int:
    """Windows at once, such that a batch takes about the memory that one of training took."""
    return max(1, options.batch * options.context // length)


def by_position(model: Any, batches: Iterable[Batch], length: int, threads: int) -> np.ndarray:
    """Sums over all windows of (nats, right answers, scored targets), per position: (3, T)."""
    sums = np.zeros((3, length))
    for arrays in scores(model, batches, threads):
        sums += [array.sum(0) for array in arrays]
    return sums


def ranges(length: int) -> list[tuple[int, int]]:
    """(0, 16), (16, 32), (32, 64), ... up to length."""
    edges = [0] + [16 << i for i in range(length.bit_length()) if 16 << i < length] + [length]
    return list(itertools.pairwise(edges))


def _print_table(tables: dict[int, np.ndarray], unit: str, anchors: dict[str, float]) -> None:
    """A row per range of positions, a column per window length."""

    def cell(sums: np.ndarray) -> str:
        nats, right, scored = sums
        if not scored:
            return ""
        return f"{nats / scored / math.log(2):.3f}" + (f" ({right / scored:.1%})" if unit == "token" else "")

    print(f"{f'bits per {unit}':20}" + "".join(f"windows of {n}".rjust(16) for n in tables))
    longest = max(tables)
    for first, end in ranges(longest):
        cells = [cell(sums[:, first:end].sum(1)).rjust(16) for sums in tables.values()]
        print(f"{f'token {first + 1} - {end}':20}{''.join(cells)}".rstrip())
    print(f"{'all':20}{''.join(cell(sums.sum(1)).rjust(16) for sums in tables.values())}")
    print("\nbeside " + ", ".join(f"{name} {bits:.3f}" for name, bits in anchors.items()))
