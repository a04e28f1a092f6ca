"""The parts of `tinyrec inspect`: each prints a table and returns what draws its figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..data import decode_text
from ..evaluate import Batch, means, score_logits
from ..inspect.recurrent_depth import Exits, Habits, exit_steps, path_independence, trajectories
from ..inspect.ttt import eta, inner_losses, weight_path
from ..models.recurrent_depth_exit import THRESHOLDS
from ..nn import without_tape
from .console import thousands
from .inspect_figures import draw_exits, draw_inner, draw_iterations, draw_paths, draw_trajectories

CRITERIA = ("kl", "latent-diff")  # of exits: one that looks at what is predicted, one that looks at the state
SHOWN = 5  # tokens in their context, ways of weights


class Case(NamedTuple):
    """What is looked at."""

    model: Any
    batch: Batch
    starts: list[Any]  # s_0 (B, T, h) each
    steps: int
    followed: int  # the first so many sequences are enough for paths and trajectories
    unit: str  # what a token is: "byte" or "token"
    layer: int  # of a TTT


# --- of a model of recurrent depth ------------------------------------------------------------------------------------


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
    print(f"\npaths from {len(starts)} random states: distances over the length of the state; s* is that after {rest}")
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


# --- of a TTT ---------------------------------------------------------------------------------------------------------


def _inner(case: Case) -> Callable:
    tokens, layer = case.batch[0], case.layer
    losses, path = inner_losses(case.model, tokens, layer), weight_path(case.model, tokens[:SHOWN], layer)
    looks = doubling(losses.before.shape[2])
    print("\ninner loss: the mean over the features of a head, heads, tokens and windows")
    line("mini-batch", looks)
    for name, found in zip(("at W_0", "before its step", "after its step"), losses, strict=True):
        line(name, (f"{found[:, :, n - 1].mean():.3f}" for n in looks))
    line(f"|W - W_0|, {len(path.distance)} windows", (f"{path.distance[:, :, n].mean():.3f}" for n in looks))
    return partial(draw_inner, losses, path, eta(case.model, tokens[:1], layer), layer)


Parts = dict[str, Callable[[Case], Callable]]
DEPTH: Parts = {"iterations": _iterations, "paths": _paths, "exits": _exits, "trajectories": _trajectories}
INNER: Parts = {"inner": _inner}
KINDS: dict[str, Parts] = {"recurrent-depth": DEPTH, "ttt-linear": INNER, "ttt-mlp": INNER}


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
