"""Watch a model of recurrent depth think, about text or examples of a task that it has not seen: tables and figures.

  iterations     how well it predicts after 1, 2, 4, ... iterations
  paths          the same tokens from 3 random states: how far apart do they stay?
  exits          when each token would stop, and how often it would be right
  trajectories   where the states go: to a point, around an orbit, or on and on, as sliders

  tinyrec inspect runs/recurrent-depth-pydoc
  tinyrec inspect runs/recurrent-depth-pydoc exits --recurrence 32 --context 512

The figures are RUN/inspect_iterations.png and so on.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from ..data import Batches, decode_text, encode, load_text, split_text
from ..evaluate import Batch, means, score_logits
from ..inspect.recurrent_depth import Exits, Habits, exit_steps, path_independence, trajectories
from ..models.recurrent_depth_exit import THRESHOLDS
from ..nn import count, without_tape
from ..train import Options, parse_task, streams
from .console import thousands
from .inspect_figures import draw_exits, draw_iterations, draw_paths, draw_trajectories, has_matplotlib
from .models import load_model
from .parser import Mistake, Parser, as_mistake
from .runs import RunFolder

CRITERIA = ("kl", "latent-diff")  # of exits: one that looks at what is predicted, one that looks at the state
STARTS = 3
TOKENS, FOLLOWED = 2048, 512  # about as many are looked at; and for paths and trajectories
SHOWN = 5  # tokens in their context

USAGE = "RUN [iterations | paths | exits | trajectories] [options]"


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    add("what", nargs="?", choices=list(PARTS), metavar="WHAT", help=f"only {', '.join(PARTS)} (default: all)")
    add("--recurrence", type=int, default=64, metavar="MAX", help="iterations, for trajectories 2 MAX (default 64)")
    add("--windows", type=int, metavar="N", help=f"sequences to look at (default: about {TOKENS} tokens)")
    add("--context", type=int, metavar="T", help="tokens of a sequence (default: as in training)")
    add("--seed", type=int, default=0, metavar="N", help="of the sequences and the states s_0 (default 0)")


class Case(NamedTuple):
    """What is looked at."""

    model: Any
    batch: Batch
    starts: list[Any]  # s_0 (B, T, h) each
    steps: int
    followed: int  # the first so many sequences are enough for paths and trajectories
    unit: str  # what a token is: "byte" or "token"


def run(arguments: argparse.Namespace) -> int:
    folder = RunFolder(arguments.run)
    saved, options = folder.load()
    if saved.name != "recurrent-depth":
        path = shlex.quote(str(arguments.run))
        raise Mistake(
            f"{path} holds a {saved.name}, and inspect is for models of recurrent depth; "
            f"`tinyrec info {path}` and `tinyrec eval {path}` tell about any model"
        )
    for name, least in {"recurrence": 1, "windows": 1, "context": 1, "seed": 0}.items():
        if (given := getattr(arguments, name)) is not None and given < least:
            raise Mistake(f"--{name} takes {least} or more, got {given}")
    model = load_model(saved)
    case, where = _case(model, options, arguments)
    B, T = case.batch[0].shape
    size, mean = thousands(count(model)), model.config.mean_steps
    print(f"{saved.name}, {size} parameters, step {saved.step}, trained with about {mean} iterations")
    print(f"on {where}: {B} windows of {T}, up to {case.steps} iterations", flush=True)
    drawing, drawn = has_matplotlib(), []
    with threadpool_limits(options.threads):
        for name in PARTS if arguments.what is None else (arguments.what,):
            draw = PARTS[name](case)
            if drawing:
                drawn.append(f"inspect_{name}.png")
                draw().savefig(folder.path / drawn[-1], dpi=150)
    if drawing:
        print(f"\n{', '.join(drawn)} in {folder.path}")
    else:
        print("\nfigures need matplotlib: pip install 'tinyrec[plot]'")
    return 0


def _case(model: Any, options: Options, arguments: argparse.Namespace) -> tuple[Case, str]:
    """What to look at, and what it is called."""
    length, rng = arguments.context or options.context, streams(arguments.seed).sampling
    windows = arguments.windows or max(1, TOKENS // length)
    with as_mistake(ValueError):
        if options.task:
            batch, where = parse_task(options.task, length).sample(windows, rng), f"the task {options.task}"
        else:
            split = split_text(load_text(options.data, options.max_bytes or None))
            batch, where = Batches(encode(split.test), length).sample(windows, rng), f"the test piece of {options.data}"
    starts = [model.draw(rng, windows, length)["initial_state"] for _ in range(STARTS)]
    followed = min(windows, arguments.windows or max(1, FOLLOWED // length))
    return Case(model, batch, starts, arguments.recurrence, followed, "token" if options.task else "byte"), where


# --- the parts: each prints a table and returns what draws its figure -------------------------------------------------


def _iterations(case: Case) -> Callable:
    (tokens, targets), looks = case.batch, doubling(case.steps)
    said = without_tape(case.model).logits_by_steps(tokens, looks, case.starts[0])
    found = {r: means([score_logits(logits, targets)]) for r, logits in said}
    print()
    line("after iterations", found)
    line(f"bits per {case.unit}", (f"{nats / math.log(2):.3f}" for nats, _ in found.values()))
    line("right", (f"{right:.1%}" for _, right in found.values()))
    return partial(draw_iterations, found, case.unit)


def _paths(case: Case) -> Callable:
    rest = 2 * case.steps
    tokens, starts = case.batch[0][: case.followed], [start[: case.followed] for start in case.starts]
    found = path_independence(case.model, tokens, starts, case.steps, rest)
    print(f"\npaths from {STARTS} random states: distances over the length of the state; s* is that after {rest}")
    line("after iterations", doubling(case.steps))
    for name, distances in {"from each other": found.apart, "from s*": found.to_rest}.items():
        for which, of_tokens in {"mean": distances.mean((1, 2, 3)), "max": distances.max((1, 2, 3))}.items():
            line(f"{name}, {which}", (f"{of_tokens[i]:.1e}" for i in doubling(case.steps)))
    return partial(draw_paths, found, rest)


def _exits(case: Case) -> Callable:
    tokens, targets = case.batch
    found = {}
    for name in CRITERIA:
        found[f"{name} <= {THRESHOLDS[name]:g}"] = exit_steps(
            case.model, tokens, name, max_steps=case.steps, start=case.starts[0]
        )
    print("\nexits: what a token would say; it goes on iterating, so that the others are not disturbed")
    line("leave when", found, 22)
    columns = [_column(exits, targets, case) for exits in found.values()]
    for name in columns[0]:
        line(name, (column[name] for column in columns), 22)
    return partial(draw_exits, found)


def _column(exits: Exits, targets: Any, case: Case) -> dict[str, str]:
    steps, column = exits.steps, {"iterations, mean": f"{exits.steps.mean():.2f}"}
    for first, end in ranges(steps.shape[1]):
        column[f"  token {first + 1} - {end}"] = f"{steps[:, first:end].mean():.2f}"
    column["  most"] = f"{steps.max()}"
    for when, logits in {"at the exit": exits.logits, f"after {case.steps}": exits.final}.items():
        nats, right = means([score_logits(logits, targets)])
        column[f"bits, right {when}"] = f"{nats / math.log(2):.3f}{right:9.1%}"
    return column


def _trajectories(case: Case) -> Callable:
    tokens, steps = case.batch[0][: case.followed], 2 * case.steps
    found = trajectories(case.model, tokens, steps, start=case.starts[0][: case.followed])
    kind, settled, unrest = found.habits.kind, found.habits.settled, found.habits.unrest
    print(f"\ntrajectories of {thousands(tokens.size)} tokens, {steps} iterations")
    line("", ("settle", "orbit", "slide"))
    line("share of tokens", (f"{(kind == name).mean():.1%}" for name in ("settles", "orbit", "slider")))
    if (there := settled[kind == "settles"]).size:
        print(f"{'iterations to settle':24}{there.mean():9.1f} on average, {there.max()} at most")
    order = by_restlessness(found.habits)
    for b, t in order[:SHOWN]:
        what = f"after {settled[b, t]}" if kind[b, t] == "settles" else f"unrest {unrest[b, t]:.2f}"
        print(f"  {kind[b, t]:9}{what:12}{in_context(tokens[b], t, case.unit, 24):>52}")
    chosen = [next(at for at in order if kind[at] == name) for name in ("orbit", "slider") if (kind == name).any()]
    chosen += [at for at in (order[0], order[len(order) // 8], order[len(order) // 2]) if at not in chosen]
    names = [f"{kind[b, t]}: {in_context(tokens[b], t, case.unit, 12)}" for b, t in chosen]
    return partial(draw_trajectories, found, chosen, names)


PARTS: dict[str, Callable[[Case], Callable]] = {
    "iterations": _iterations, "paths": _paths, "exits": _exits, "trajectories": _trajectories,
}  # fmt: skip


# --- small things -----------------------------------------------------------------------------------------------------


def line(name: str, cells: Iterable[Any], width: int = 9) -> None:
    print(f"{name:24}" + "".join(f"{cell!s:>{width}}" for cell in cells), flush=True)


def doubling(last: int) -> list[int]:
    """1, 2, 4, ... up to last, and last itself."""
    return [1 << i for i in range(last.bit_length()) if 1 << i < last] + [last]


def ranges(length: int) -> list[tuple[int, int]]:
    """The first eighth of the places, the second, the second quarter, the second half; fewer if there are too few."""
    return list(pairwise(sorted({0, length // 8, length // 4, length // 2, length})))


def by_restlessness(habits: Habits) -> list[tuple[int, int]]:
    """(row, place) of all tokens: first what orbits, then what slides, then what settles; in each the latest first."""
    kind, settled, unrest = habits.kind, habits.settled, habits.unrest
    rank = np.select([kind == "orbit", kind == "slider"], [4 + unrest, 2 + unrest], settled / (1 + settled.max()))
    order = np.argsort(-rank, axis=None, kind="stable")
    return list(zip(*(places.tolist() for places in np.unravel_index(order, kind.shape)), strict=True))


def in_context(tokens: np.ndarray, place: int, unit: str, before: int) -> str:
    """What the model has read when its state is the one at this place, tokens (T,): ...the last of [it]."""

    def shown(piece: np.ndarray) -> str:
        return repr(decode_text(piece))[1:-1] if unit == "byte" else " ".join(map(str, piece))

    first, space = max(0, place - before), " " * (unit != "byte")
    return f"{'...' * (first > 0)}{shown(tokens[first:place])}{space}[{shown(tokens[place : place + 1])}]"
