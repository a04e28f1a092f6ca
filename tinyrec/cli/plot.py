"""Draw the loss of a run, with the anchors as horizontal lines, into RUN/loss.png.

Of a model of recurrent depth also, below it, the held-out loss by iterations and how alike the tokens' states are.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..train import Options, parse_task
from .console import Record, bits_by_iterations
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

    rows = 1 + 2 * bool(deep := [record for record in records if bits_by_iterations(record)])
    figure = Figure(figsize=(7, 4.2 if rows == 1 else 9), layout="constrained")
    axes, *below = figure.subplots(rows, sharex=True, squeeze=False, height_ratios=(4, 3, 2)[:rows])[:, 0]
    # The first twentieth of a run falls from 8 bits and would flatten all the rest, so it may leave the picture.
    axes.plot(steps, bits, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, smoothed(bits), color="tab:blue", label="train, running mean")
    held_out = [r["valid_bits"] for r in checks]
    axes.plot([r["step"] for r in checks], held_out, "o-", color="tab:orange", label="held out")
    for (name, value), style in zip(_anchors(folder, options).items(), ("--", ":"), strict=False):
        axes.axhline(value, color="black", linestyle=style, linewidth=1, label=f"{name} {value:.3f}")
    unit = "token" if options.task else "byte"
    axes.set(ylabel=f"bits per {unit}", ylim=(0, 1.25 * max(bits[len(bits) // 20 :])))
    axes.set_title(f"{saved.name} on {options.task or Path(options.data).name}")
    axes.legend(frameon=False)
    if below:
        _iterations(below[0], deep, unit)
        _states(below[1], records)
    figure.axes[-1].set_xlabel("step")
    out = arguments.out or folder.path / "loss.png"
    try:
        figure.savefig(out, dpi=150)
    except ValueError as error:  # an ending that is no format of pictures
        raise Mistake(f"{out}: {error}") from error
    print(out)
    return 0


def _iterations(axes: Any, checks: list[Record], unit: str) -> None:
    """Held-out bits after r iterations, of a model of recurrent depth: a line for each r."""
    from matplotlib import colormaps

    every = list(bits_by_iterations(checks[0]))
    for i, r in enumerate(every):
        color = colormaps["viridis"](0.9 * i / max(1, len(every) - 1))
        bits = [bits_by_iterations(record)[r] for record in checks]
        # Beyond some r the lines lie on each other: that of a larger r is wider, and behind.
        style = {"color": color, "linewidth": 1 + i, "markersize": 4 + i, "zorder": 3 - 0.1 * i}
        axes.plot([record["step"] for record in checks], bits, "o-", label=f"r = {r}", **style)
    axes.set_ylabel(f"bits per {unit}, held out\n(first batch), by iterations")
    axes.margins(y=0.2)
    axes.legend(frameon=False, ncols=len(every), fontsize="small")


def _states(axes: Any, records: list[Record]) -> None:
    """How alike the states of the tokens of a sequence are: near 1 is the collapse of the paper's first run."""
    told = [record for record in records if "state_correlation" in record]
    axes.plot([record["step"] for record in told], [record["state_correlation"] for record in told], color="tab:green")
    axes.set(ylabel="correlation of\ntokens' states", ylim=(min(0.0, *axes.get_ylim()), 1))


def _anchors(folder: RunFolder, options: Options) -> dict[str, float]:
    if options.task:
        return {"guess": math.log2(parse_task(options.task, options.context).vocab)}
    known = folder.known_anchors()
    return best_two(known["valid"]) if "valid" in known else {}


def smoothed(values: list[float]) -> np.ndarray:
    """The mean over a window of a twentieth of the run around each value; at the ends, over what there is of it."""
    half = max(1, len(values) // 40)
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
