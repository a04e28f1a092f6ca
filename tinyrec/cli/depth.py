"""What the commands ask of a model of recurrent depth beyond what every model can."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from ..models.recurrent_depth import RecurrentDepth
from ..models.recurrent_depth_decode import DepthDecoder, speculate
from ..models.recurrent_depth_exit import THRESHOLDS
from .parser import Mistake, Parser, as_mistake

# Options of `tinyrec generate` as argparse has them, and what they are when they are not given.
DEFAULTS: dict[str, Any] = {
    "recurrence": None, "exit": None, "threshold": None, "slots": None, "warm_start": False, "start": "noise",
    "draft_recurrence": None, "draft_tokens": 4, "tolerance": 1.0,
}  # fmt: skip


def add_generate_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("for a model of recurrent depth")
    add = group.add_argument
    add("--recurrence", type=int, metavar="R", help="iterations for each token, at most (default: the trained mean)")
    add("--exit", metavar="NAME", help=f"stop a token early by {', '.join(THRESHOLDS)}")
    add("--threshold", type=float, metavar="X", help="of --exit (default: that of the published code)")
    add("--slots", type=int, metavar="N", help="iterations whose keys and values are kept (default: all)")
    add("--warm-start", action="store_true", help="start each token from the last state of the one before")
    add("--start", choices=("noise", "zero"), default="noise", help="where thinking starts (default noise)")
    add("--draft-recurrence", type=int, metavar="R", help="speculate: draft tokens with R iterations, verify, greedily")
    add("--draft-tokens", type=int, default=4, metavar="N", help="tokens of a draft (default 4)")
    add("--tolerance", type=float, default=1.0, metavar="X", help="keep a draft of X times the best one's probability")


def refuse_depth_options(arguments: argparse.Namespace, model: Any) -> None:
    """None of them is for another kind of model."""
    for name, default in DEFAULTS.items():
        if getattr(arguments, name, default) != default and not isinstance(model, RecurrentDepth):
            raise Mistake(f"--{name.replace('_', '-')} is for models of recurrent depth, this is a {model.name}")


def depth_reader(arguments: argparse.Namespace, model: Any, rng: np.random.Generator) -> DepthDecoder | None:
    """What reads the tokens for `generate`; None for another kind of model."""
    refuse_depth_options(arguments, model)
    if not isinstance(model, RecurrentDepth):
        return None
    lost = [name for name in ("draft_tokens", "tolerance") if getattr(arguments, name) != DEFAULTS[name]]
    if lost and arguments.draft_recurrence is None:
        raise Mistake(f"--{lost[0].replace('_', '-')} is for --draft-recurrence")
    noise = rng if arguments.start == "noise" else None
    options = (arguments.exit, arguments.threshold, arguments.slots, arguments.warm_start, noise)
    with as_mistake(ValueError):
        return DepthDecoder(model, arguments.recurrence, *options)


def speculation(arguments: argparse.Namespace, model: Any, prompt: Any) -> Iterator[int]:
    """The tokens of speculative decoding; says at the end how many a verification brought."""
    others = {name for name in ("exit", "threshold", "slots", "warm_start") if getattr(arguments, name)}
    if arguments.temperature != 0.0 or others:
        what = f"not with --{others.pop().replace('_', '-')}" if others else "so with --temperature 0"
        raise Mistake(f"--draft-recurrence writes the likeliest tokens from a start of zeros, {what}")
    with as_mistake(ValueError):
        rounds = speculate(
            model, np.asarray(prompt), arguments.tokens, arguments.recurrence, arguments.draft_recurrence,
            arguments.draft_tokens, arguments.tolerance,
        )  # fmt: skip
        first = next(rounds)
    return _counted(chain([first], rounds))


def _counted(rounds: Iterator[list[int]]) -> Iterator[int]:
    sizes = []
    for tokens in rounds:
        sizes.append(len(tokens))
        yield from tokens
    note(f"{sum(sizes)} tokens in {len(sizes)} verifications, {np.mean(sizes):.2f} for each")


def tell(reader: DepthDecoder | None, tokens: int) -> None:
    """How long the model thought about the tokens it wrote; the last one is not read."""
    if reader is not None and reader.exit and tokens > 1:
        steps = reader.taken[1 - tokens :]  # before them come the pieces of the prompt
        note(f"iterations per token: {np.mean(steps):.2f} on average, {min(steps)} to {max(steps)}")


def note(sentence: str) -> None:
    """On stderr: stdout is the text."""
    print(f"({sentence})", file=sys.stderr)
