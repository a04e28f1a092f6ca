"""Draw the loss of a run, with the anchors as horizontal lines, into RUN/loss.png."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from ..train import Options, parse_task
from .parser import Mistake, Parser
from .runs import RunFolder, best_two

USAGE = "RUN [options]"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to draw (default RUN/loss.png)")


def run(arguments: argparse.Namespace) -> int:
    try:
        from matplotlib.figure import Figure  # no pyplot: no screen, no global figure
    except ImportError:
        raise Mistake("drawing needs matplotlib: pip install 'tinyrec[plot]'") from None
    folder = RunFolder(arguments.run)
    saved, options = folder.load()
    records = list(folder.records())
    if not records:
        raise Mistake(f"{folder.metrics} holds no step yet, there is nothing to draw")
    bits = [record["bits"] for record in records]
    steps = [record["step"] for record in records]
    checks = [record for record in records if "valid_bits" in record]

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    # The first twentieth of a run falls from 8 bits and would flatten all the rest, so it may leave the picture.
    axes.plot(steps, bits, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, smoothed(bits), color="tab:blue", label="train, running mean")
    held_out = [r["valid_bits"] for r in checks]
    axes.plot([r["step"] for r in checks], held_out, "o-", color="tab:orange", label="held out")
    for (name, value), style in zip(_anchors(folder, options).items(), ("--", ":"), strict=False):
        axes.axhline(value, color="black", linestyle=style, linewidth=1, label=f"{name} {value:.3f}")
    axes.set(xlabel="step", ylabel=f"bits per {'token' if options.task else 'byte'}")
    axes.set_ylim(0, 1.25 * max(bits[len(bits) // 20 :]))
    axes.set_title(f"{saved.name} on {options.task or Path(options.data).name}")
    axes.legend(frameon=False)
    out = arguments.out or folder.path / "loss.png"
    try:
        figure.savefig(out, dpi=150)
    except ValueError as error:  # an ending that is no format of pictures
        raise Mistake(f"{out}: {error}") from error
    print(out)
    return 0


def _anchors(folder: RunFolder, options: Options) -> dict[str, float]:
    if options.task:
        return {"guess": math.log2(parse_task(options.task, options.context).vocab)}
    known = folder.known_anchors()
    return best_two(known["valid"]) if "valid" in known else {}


def smoothed(values: list[float]) -> np.ndarray:
    """The mean over a window of a twentieth of the run around each value; at the ends, over what there is of it."""
    half = max(1, len(values) // 40)
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
