"""Watching a recurrent-depth model think: sections 6.1 and 7 of its paper.

    path_independence   the same tokens from several s_0: does the state forget where it began?
    exit_steps          when would each token stop, and what would it say there?
    trajectories        the way of each token's state: to a point, around and around, or on and on?

All of them run the model as it is, without recording anything: tokens (B, T), and states s_0 (B, T, h) to start from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import get_xp, to_cpu
from ..models.recurrent_depth import RecurrentDepth, Unrolling
from ..models.recurrent_depth_exit import ExitWatch
from ..nn import without_tape

TINY = 1e-30  # instead of a length of 0 in a denominator


def thoughts(model: RecurrentDepth, tokens: Any, start: Any, steps: int) -> Iterator[Unrolling]:
    """The same Unrolling steps + 1 times: before the first iteration, and after each."""
    thought = Unrolling(without_tape(model), tokens, start=start)
    yield thought
    for _ in range(steps):
        thought.iterate()
        yield thought


# --- path independence ------------------------------------------------------------------------------------------------


class Paths(NamedTuple):
    """How far apart states are after i = 0 .. I - 1 iterations, relative to their length, for each token.

    apart (I, S - 1, B, T): |s_i - s'_i| / |s_i| of the first start and each of the others.
    to_rest (I, S, B, T): |s_i - s*| / |s*| of each start; s* is where the first one has come after very many.
    """

    apart: np.ndarray
    to_rest: np.ndarray


def path_independence(
    model: RecurrentDepth, tokens: Any, starts: Sequence[Any], steps: int = 64, rest: int = 128
) -> Paths:
    """The same tokens (B, T) from several s_0 (B, T, h), 2 or more; rest: the iterations that lead to s*.

    A model is path independent if all distances fall to 0, or to what rounding leaves.
    """
    if len(starts) < 2 or steps < 0:
        raise ValueError(f"expected 2 starts or more and steps of at least 0, got {len(starts)} and {steps}")
    for thought in thoughts(model, tokens, starts[0], max(rest, steps)):
        end = thought.s  # of the last round: s*
    apart, to_rest = [], []
    for together in zip(*(thoughts(model, tokens, start, steps) for start in starts), strict=True):
        first, *others = (thought.s for thought in together)
        apart.append([_distance(first, other) for other in others])
        to_rest.append([_distance(end, s) for s in (first, *others)])
    return Paths(np.array(apart), np.array(to_rest))


def _distance(a: Any, b: Any) -> np.ndarray:
    """|a - b| / |a| over the last axis; over the longer of the two where they differ, because s_0 may be zero."""
    xp = get_xp(a)
    length = xp.linalg.norm
    longer = xp.maximum(length(a, axis=-1), length(b, axis=-1))
    return to_cpu(length(a - b, axis=-1) / (longer + TINY))


# --- exits ------------------------------------------------------------------------------------------------------------


class Exits(NamedTuple):
    """steps (B, T): iterations until each token's exit. logits, final (B, T, V): what is said there; after the last."""

    steps: np.ndarray
    logits: np.ndarray
    final: np.ndarray


def exit_steps(
    model: RecurrentDepth,
    tokens: Any,
    criterion: str = "kl",
    threshold: float | None = None,
    max_steps: int = 64,
    start: Any = None,
) -> Exits:
    """Take each token's output at its exit, while all tokens go on iterating.

    So every token attends to what it would without exits, and what is lost by leaving early is the token's own. (When
    text is written with exits, a token leaves keys and values of its last iteration behind: DepthDecoder.) A token that
    never exits has max_steps. criterion, threshold: see recurrent_depth_exit; start (B, T, h): None for zeros.
    evaluate.score_logits(found.logits, targets) tells what the exits cost.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    thought = Unrolling(without_tape(model), tokens, start=start)
    watch = ExitWatch(criterion, threshold, thought)
    xp = get_xp(thought.s)
    steps, going = xp.full(tokens.shape, max_steps), xp.ones(tokens.shape, bool)
    found: Any = None
    for i in range(1, max_steps + 1):
        thought.iterate()
        leaves = watch.done() & going
        if leaves.any() or i == max_steps:
            logits = thought.logits() if watch.logits is None else watch.logits
            found = logits if found is None else xp.where(going[..., None], logits, found)  # may still change
            steps, going = xp.where(leaves, i, steps), going & ~leaves
    return Exits(to_cpu(steps), to_cpu(found), to_cpu(logits))


# --- trajectories -----------------------------------------------------------------------------------------------------


class Trajectories(NamedTuple):
    """states (I, B, T, h): norm(s_i) for i = 0 .. I - 1. habits: what each token does at last, (B, T) each.

    coordinates (I, B, T, C): along the principal components of all tokens and iterations, from the centre of the
    token's own trajectory. explained (C,): their shares of the variance.
    """

    states: np.ndarray
    coordinates: np.ndarray
    explained: np.ndarray
    habits: Habits


class Habits(NamedTuple):
    """What each trajectory does in the second half of its iterations.

    kind: "settles", "orbit" or "slider". unrest: how far from its end it still was, over the farthest that it ever was.
    straight: from the half to the end, the straight way over the way taken: 1 for a line, 0 for whole turns.
    settled: the iterations after which it stays near its end; without a meaning for those that have none.
    """

    kind: np.ndarray
    unrest: np.ndarray
    straight: np.ndarray
    settled: np.ndarray


SETTLED = 0.02  # as unrest: near its end
STRAIGHT = 0.5  # straighter than this: a slider, or less than 0.6 turns of a circle


def trajectories(
    model: RecurrentDepth, tokens: Any, steps: int = 128, components: int = 6, start: Any = None
) -> Trajectories:
    """Follow norm(s_i) of tokens (B, T) from `start` (B, T, h), None for zeros: figures 11 and 12.

    They are all kept, (steps + 1) B T h numbers: look at a few sequences at a time.
    """
    if steps < 2 or components < 1:
        raise ValueError(f"steps must be at least 2 and components at least 1, got {steps} and {components}")
    states = np.stack([to_cpu(thought.latent()) for thought in thoughts(model, tokens, start, steps)])
    coordinates, explained = principal(states, components)
    return Trajectories(states, coordinates - coordinates.mean(0), explained, habits(states))


def principal(x: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """x (..., h) -> coordinates (..., C) along the directions of largest variance, and their shares of it (C,).

    There are no more than h of them.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    rows -= rows.mean(0)
    _, variances, axes = np.linalg.svd(rows.T @ rows)  # (h,), (h, h): of the covariance, h x h however many rows
    found = (rows @ axes[:components].T).reshape(*x.shape[:-1], -1)
    return found, variances[:components] / (variances.sum() + TINY)


def habits(states: np.ndarray) -> Habits:
    """Tell trajectories (I, ..., h) apart by their second half.

    Settled is what stays near its end then, as measured by how far it has ever been from there; of the others a slider
    is what goes straight on, and an orbit what turns or jumps about. What still creeps to a point counts as a slider.
    """
    length, half = np.linalg.norm, len(states) // 2
    away = length(states - states[-1], axis=-1)  # (I, ...) from its end
    away = away / (away.max(0) + TINY)
    late = states[half:]
    way = length(np.diff(late, axis=0), axis=-1).sum(0)
    straight = length(late[-1] - late[0], axis=-1) / (way + TINY)
    unrest = away[half:].max(0)
    kind = np.where(unrest < SETTLED, "settles", np.where(straight > STRAIGHT, "slider", "orbit"))
    far = (away >= SETTLED) * np.arange(1, len(states) + 1).reshape(-1, *[1] * (states.ndim - 2))  # i + 1 where it is
    return Habits(kind, unrest, straight, far.max(0))
