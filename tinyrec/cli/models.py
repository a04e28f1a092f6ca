"""From names, options and checkpoints to models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import checkpoint
from ..backend import NoGPUError
from ..checkpoint import CheckpointError
from ..models import MODELS, build, make_config
from ..nn import move
from ..suggest import did_you_mean
from ..train import Options, State, start
from .parser import Mistake, Parser, as_mistake


def check_model(name: str | None) -> None:
    if name not in MODELS:
        known = ", ".join(MODELS)
        if name is None:
            raise Mistake(f"which model: {known}?")
        raise Mistake(f"there is no model {name!r}, only {known}{did_you_mean(name, MODELS)}")


def model_config(name: str, given: dict[str, Any], vocab_size: int) -> Any:
    """The model's config: its preset ("tiny" if none is given), then the options given, each of the preset's type."""
    options = dict(given)
    if "vocab_size" in options:
        raise Mistake("vocab_size is not chosen: it follows from the data")
    preset = str(options.pop("preset", "tiny"))
    with as_mistake(ValueError):
        usual = make_config(name, preset)
        for key, value in options.items():
            before = getattr(usual, key, value)  # an unknown option is make_config's to complain about
            if isinstance(before, tuple) and isinstance(value, list):
                options[key] = tuple(value)
            elif isinstance(before, float) and type(value) is int:
                options[key] = float(value)
            elif before is not None and type(value) is not type(before):
                raise Mistake(f"--model.{key} takes a value of type {type(before).__name__}, got {value!r}")
        return make_config(name, preset, vocab_size=vocab_size, **options)


def longest(config: Any) -> float:
    """Tokens that a model of this config can read; inf for all but those with a table of places."""
    limit = getattr(config, "longest", None)
    return math.inf if limit is None else limit


def check_length(config: Any, tokens: int) -> None:
    if tokens > longest(config):
        raise Mistake(f"this model reads at most max_length = {longest(config)} tokens, asked for are {tokens}")


def load_model(saved: checkpoint.Run, device: str = "cpu") -> Any:
    """The model of a checkpoint, on a device."""
    with as_mistake(CheckpointError, NoGPUError, ValueError, TypeError):
        model = build(saved.name, MODELS[saved.name].config(**saved.config), np.random.default_rng(0), saved.dtype)
        checkpoint.restore(model, saved.parameters)
        return move(model, device)


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where the model is (default cpu)")


def load_state(saved: checkpoint.Run, options: Options) -> State:
    """What training goes on with."""
    with as_mistake(CheckpointError, ValueError, TypeError):
        state = start(saved.name, MODELS[saved.name].config(**saved.config), options)
        checkpoint.restore(state.model, saved.parameters)
        if saved.optimizer is None or saved.rng is None:
            raise CheckpointError("this checkpoint holds a model only; training cannot go on from it")
        state.optimizer.load_state(saved.optimizer)
    state.data_rng, state.step = saved.rng, saved.step
    return state
