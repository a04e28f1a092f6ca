"""What decides a training run besides the model's own config: options, and random numbers that follow from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from .data import TASKS
from .optim import SCHEDULES


def option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A field of a dataclass that is also an option of the command line, with its help text."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Options:
    """Everything that decides a run, besides the model's own config."""

    data: str = option("pydoc", "text to learn: pydoc, shakespeare or a FILE")
    max_bytes: int = option(0, "use only the first N bytes of the text; 0: all")
    task: str = option("", f"instead of text: {', '.join(TASKS).replace('_', '-')}; copy:vocab=16 sets an option")
    steps: int = option(1000, "updates of the parameters")
    batch: int = option(8, "sequences per batch (B)")
    accumulate: int = option(1, "batches whose gradients make one update")
    context: int = option(256, "tokens per sequence (T)")
    lr: float = option(2e-3, "highest learning rate")
    schedule: str = option("cosine", "how the rate falls after the warm-up", SCHEDULES)
    warmup: int = option(50, "steps in which the rate rises to its highest")
    cooldown: int = option(0, "steps of the final fall of the rate, schedule trapezoid; 0: it never falls")
    optimizer: str = option("adamw", "AdamW, or the variant that trained Huginn", ("adamw", "huginn"))
    weight_decay: float = option(0.1, "pull towards 0: times the rate (adamw), or per step (huginn; 4e-5 is usual)")
    clip: float = option(1.0, "the gradient's norm is cut to this")
    seed: int = option(0, "of every random stream")
    threads: int = option(2, "share each batch among N processes, where they are not to be had among threads")
    device: str = option("cpu", "where the arrays live", ("cpu", "gpu"))
    kernels: str = option("numpy", "on the CPU: NumPy, or the CUDA kernels by a C++ compiler", ("numpy", "host"))
    log_every: int = option(20, "steps between two lines of output")
    valid_every: int = option(200, "steps between two validations, and before the last")
    valid_bytes: int = option(65536, "validate on the first N bytes of the held-out text; 0: all")
    save_every: int = option(200, "steps between two checkpoints")

    def __post_init__(self) -> None:
        zero_is_fine = {"max_bytes", "warmup", "cooldown", "weight_decay", "seed", "valid_bytes"}
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            if isinstance(value, int | float) and not (0 < value < math.inf or (value == 0 and f.name in zero_is_fine)):
                least = "0 or more" if f.name in zero_is_fine else "more than 0"
                raise ValueError(f"{f.name} must be a number, {least}, got {value!r}")
            if choices and value not in choices:
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}")
        if self.optimizer == "huginn" and self.weight_decay > 0.01:  # 0.1, as for AdamW, would wipe out what is learnt
            raise ValueError(f"weight_decay of huginn is per step, like 4e-5, at most 0.01, got {self.weight_decay}")


class Streams(NamedTuple):
    """Independent sources of random numbers, so that using one more of one kind changes nothing of another kind."""

    init: np.random.Generator
    data: np.random.Generator
    sampling: np.random.Generator
    validation: np.random.Generator


def streams(seed: int) -> Streams:
    return Streams(*map(np.random.default_rng, np.random.SeedSequence(seed).spawn(len(Streams._fields))))


def step_rng(seed: int, step: int) -> np.random.Generator:
    """What a model leaves to chance in one step. It follows from the number of the step: a checkpoint need not hold it,
    and two models that are compared are asked to iterate equally often."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(Streams._fields), step)))
