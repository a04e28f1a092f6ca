"""Watch a model on text or examples of a task that it has not seen: tables and figures. One of recurrent depth thinks:

  iterations     how well it predicts after 1, 2, 4, ... iterations
  paths          the same tokens from 3 random states: how far apart do they stay?
  exits          when each token would stop, and how often it would be right
  trajectories   where the states go: to a point, around an orbit, or on and on, as sliders

A TTT learns while it reads, in each layer:

  inner          the inner loss before and after every step, the way of the weights, the rates

  tinyrec inspect runs/recurrent-depth-pydoc
  tinyrec inspect runs/recurrent-depth-pydoc exits --recurrence 32 --context 512
  tinyrec inspect runs/ttt-linear-pydoc --layer 2 --context 1024

The figures are RUN/inspect_iterations.png and so on.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from ..data import Batches, encode, load_text, split_text
from ..models.recurrent_depth import RecurrentDepth
from ..models.ttt import TTT
from ..nn import count
from ..train import Options, parse_task, streams
from .console import thousands
from .inspect_figures import has_matplotlib
from .inspect_parts import DEPTH, KINDS, Case
from .models import load_model
from .parser import Mistake, Parser, as_mistake
from .runs import RunFolder

STARTS = 3
TOKENS, FOLLOWED = 2048, 512  # about as many are looked at; and for paths and trajectories

USAGE = "RUN [iterations | paths | exits | trajectories | inner] [options]"


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    what = {name: None for parts in KINDS.values() for name in parts}
    add("what", nargs="?", choices=list(what), metavar="WHAT", help=f"only {', '.join(what)} (default: all it has)")
    add("--recurrence", type=int, metavar="MAX", help="iterations, for trajectories 2 MAX (default 64)")
    add("--layer", type=int, metavar="N", help="of a TTT: the layer to look into, from 0 (default 0)")
    add("--windows", type=int, metavar="N", help=f"sequences to look at (default: about {TOKENS} tokens)")
    add("--context", type=int, metavar="T", help="tokens of a sequence (default: as in training)")
    add("--seed", type=int, default=0, metavar="N", help="of the sequences and the states s_0 (default 0)")


def run(arguments: argparse.Namespace) -> int:
    folder = RunFolder(arguments.run)
    saved, options = folder.load()
    parts, path = KINDS.get(saved.name), shlex.quote(str(arguments.run))
    if parts is None:
        raise Mistake(
            f"{path} holds a {saved.name}, and inspect is for TTT and for models of recurrent depth; "
            f"`tinyrec info {path}` and `tinyrec eval {path}` tell about any model"
        )
    deep = parts is DEPTH
    if arguments.what not in (None, *parts):
        raise Mistake(f"{path} holds a {saved.name}, which has no {arguments.what} to inspect, only {', '.join(parts)}")
    for name, fits in {"recurrence": deep, "layer": not deep}.items():
        if getattr(arguments, name) is not None and not fits:
            raise Mistake(f"--{name} is for {'TTT' if deep else 'models of recurrent depth'}, this is a {saved.name}")
    for name, least in {"recurrence": 1, "layer": 0, "windows": 1, "context": 1, "seed": 0}.items():
        if (given := getattr(arguments, name)) is not None and given < least:
            raise Mistake(f"--{name} takes {least} or more, got {given}")
    model = load_model(saved)
    case, where = _case(model, options, arguments)
    (B, T), config = case.batch[0].shape, model.config
    if deep:
        about, limit = f"trained with about {config.mean_steps} iterations", f"up to {case.steps} iterations"
    else:
        about, limit = f"layer {case.layer} of 0 to {config.n_layers - 1}", f"mini-batches of {config.mini_batch}"
    print(f"{saved.name}, {thousands(count(model))} parameters, step {saved.step}, {about}")
    print(f"on {where}: {B} windows of {T}, {limit}", flush=True)
    drawing, drawn = has_matplotlib(), []
    with threadpool_limits(options.threads):
        for name in parts if arguments.what is None else (arguments.what,):
            draw = parts[name](case)
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
    windows, layer = arguments.windows or max(1, TOKENS // length), arguments.layer or 0
    if isinstance(model, TTT):
        if layer >= model.config.n_layers:
            raise Mistake(f"--layer takes 0 to {model.config.n_layers - 1}, got {layer}")
        if length < model.config.mini_batch:
            raise Mistake(f"--context takes at least a mini-batch, {model.config.mini_batch}, got {length}")
    with as_mistake(ValueError):
        if options.task:
            batch, where = parse_task(options.task, length).sample(windows, rng), f"the task {options.task}"
        else:
            split = split_text(load_text(options.data, options.max_bytes or None))
            batch, where = Batches(encode(split.test), length).sample(windows, rng), f"the test piece of {options.data}"
    deep = isinstance(model, RecurrentDepth)
    starts = [model.draw(rng, windows, length)["initial_state"] for _ in range(STARTS)] if deep else []
    followed = min(windows, arguments.windows or max(1, FOLLOWED // length))
    unit, steps = "token" if options.task else "byte", arguments.recurrence or 64
    return Case(model, batch, starts, steps, followed, unit, layer), where
