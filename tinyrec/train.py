"""Training: a loop that one can read from top to bottom.

    options = Options(data="pydoc", steps=200)
    source = open_source(options)
    state = start("hawk", make_config("hawk"), options)
    for record in train(state, source, options):            # one dict per step: loss, bits, lr, grad_norm, ...
        print(record["step"], record["bits"])

`train` knows no files and prints nothing. Whoever consumes the records logs them and saves `state`, at any step:
tinyrec/cli/train.py does. Everything random comes from Generators made from one seed, see options.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np

from .backend import to_cpu, to_floats
from .data import VOCAB_SIZE, Batches, Task, check_length, encode, load_task, load_text, split_text
from .evaluate import Batch, evaluate, evaluate_by_steps, placed
from .models import build
from .nn import move, parameters
from .optim import AdamW, clip_by_global_norm, global_norm, learning_rate, optimizer_for
from .options import Options, step_rng, streams
from .parallel import WorkerError, loss_and_grads, sharing
from .tape import NonFiniteError, nan_check

VALID_STEPS = (1, 4, 8, 16, 64)  # iterations at which a model of recurrent depth is validated, as in its paper


class TrainingError(RuntimeError):
    """Training cannot go on: the loss or the gradient is NaN or infinite, or a process that helped is gone."""


# --- what there is to learn -------------------------------------------------------------------------------------------


class TextSource:
    """Random windows of the train piece; consecutive windows of the valid piece."""

    unit, vocab_size = "byte", VOCAB_SIZE

    def __init__(self, options: Options):
        self.split = split_text(load_text(options.data, options.max_bytes or None))
        check_length(self.split, options.context)
        self.valid = self.split.valid[: options.valid_bytes or None]
        self.sample = Batches(encode(self.split.train), options.context).sample
        self.validation = Batches(encode(self.valid), options.context).consecutive


class TaskSource:
    """Fresh examples of a synthetic task; the same 64 examples at each validation."""

    unit = "token"

    def __init__(self, task: Task, seed: int):
        self.task, self.seed, self.vocab_size, self.sample = task, seed, task.vocab_size, task.sample

    def validation(self, batch: int) -> Iterator[Batch]:
        rng = streams(self.seed).validation
        yield from (self.task.sample(batch, rng) for _ in range(-(-64 // batch)))


Source = TextSource | TaskSource  # `unit` is what one token is, for "bits per ..."


def open_source(options: Options) -> Source:
    if options.task:
        return TaskSource(parse_task(options.task, options.context), options.seed)
    return TextSource(options)


def parse_task(text: str, length: int) -> Task:
    """ "selective-copy:items=4,vocab=16" -> the task with these options."""
    name, _, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    if wrong := [key for key, _, value in pairs if not value.isdigit()]:
        raise ValueError(f"options of a task look like {name}:items=4,vocab=16; {wrong[0]!r} has no whole number")
    return load_task(name.replace("-", "_"), **{"length": length} | {key: int(value) for key, _, value in pairs})


# --- the loop ---------------------------------------------------------------------------------------------------------


@dataclass
class State:
    """All that changes while training, and so all that a checkpoint must hold."""

    model: Any
    optimizer: AdamW
    data_rng: np.random.Generator
    step: int = 0


def start(name: str, config: Any, options: Options) -> State:
    """A fresh model and optimizer at step 0."""
    random = streams(options.seed)
    model = move(build(name, config, random.init), options.device)
    optimizer = optimizer_for(model, options.lr, options.weight_decay, options.optimizer)
    return State(model, optimizer, random.data)


def train(state: State, source: Source, options: Options) -> Iterator[dict[str, float]]:
    """Go on from `state` up to `options.steps` updates; yield a record after each, when `state` is whole.

    Raises TrainingError, naming the op, when the loss or the gradient is not finite, or when a process that helped has
    died; `state` is then as it was before that step, but for the random stream.
    """
    with sharing(state.model, options.threads) as run:
        while state.step < options.steps:
            began = perf_counter()
            batches = [source.sample(options.batch, state.data_rng) for _ in range(options.accumulate)]
            rng = step_rng(options.seed, state.step)
            inputs = drawn_inputs(state.model, batches, rng, state.step, options.warmup)
            try:
                loss = gradients(state.model, batches, inputs, run)
            except WorkerError as error:
                raise TrainingError(f"stopped at step {state.step + 1}: {error}") from error
            loss, norm = to_floats([loss, global_norm(parameters(state.model))])  # here a GPU is waited for
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(_explanation(state, batches, inputs, loss, norm))
            clip_by_global_norm(parameters(state.model), options.clip, norm)
            rate = learning_rate(
                state.step,
                schedule=options.schedule,
                peak=options.lr,
                warmup=options.warmup,
                steps=options.steps,
                cooldown=options.cooldown,
            )
            state.optimizer.step(rate)
            state.step += 1

            seconds = perf_counter() - began
            tokens = sum(tokens.size for tokens, _ in batches)
            record = {"step": state.step, "loss": loss, "bits": loss / math.log(2), "lr": rate, "grad_norm": norm}
            record |= {"tokens_per_second": tokens / seconds, "seconds": seconds}
            if "steps" in inputs[0]:
                record["iterations"] = sum(one["steps"] for one in inputs) / len(inputs)
            last = state.step == options.steps
            if hasattr(state.model, "monitor") and (last or state.step % options.log_every == 0):
                record |= state.model.monitor(placed(batches[0][0], options.device), **inputs[0])
            if last or state.step % options.valid_every == 0:
                record |= validation(state.model, source, options)
            yield record


def drawn_inputs(
    model: Any, batches: list[Batch], rng: np.random.Generator, step: int, warmup: int
) -> list[dict[str, Any]]:
    """What the model's call takes besides tokens, for each batch; nothing for most models.

    It is drawn, or it follows from how far training is: neither is anything that a checkpoint must hold.
    """
    given = model.warm_up(step, warmup) if hasattr(model, "warm_up") else {}
    return [given | (model.draw(rng, *tokens.shape) if hasattr(model, "draw") else {}) for tokens, _ in batches]


def gradients(model: Any, batches: list[Batch], inputs: list[dict[str, Any]], run: Callable[..., float]) -> float:
    """Set `.grad` of every parameter to the gradient of the mean loss over all batches; return that loss, in nats.

    run: loss_and_grads of the model, or what parallel.sharing gives. On a GPU the loss is an array ().
    """
    for _, p in parameters(model):
        p.grad = None
    share, total = 1 / len(batches), 0.0
    with np.errstate(all="ignore"):  # no warnings of overflow or NaN: the result is looked at instead
        for batch, others in zip(batches, inputs, strict=True):
            total += share * run(*batch, scale=share, **others)
    return total


def validation(model: Any, source: Source, options: Options) -> dict[str, float]:
    """Records of the held-out piece; for a model of recurrent depth also by iterations, on the first batch of it."""
    nats, accuracy = evaluate(model, source.validation(options.batch), options.threads, options.device)
    record = {"valid_loss": nats, "valid_bits": nats / math.log(2), "valid_accuracy": accuracy}
    if hasattr(model, "logits_by_steps"):
        first = islice(source.validation(options.batch), 1)
        for r, (nats, accuracy) in evaluate_by_steps(model, first, VALID_STEPS, options.device).items():
            record |= {f"valid_bits_r{r}": nats / math.log(2), f"valid_accuracy_r{r}": accuracy}
    return record


def _explanation(state: State, batches: list[Batch], inputs: list, loss: float, norm: float) -> str:
    """Run the step again under nan_check, to find the op where the first NaN or infinity appears."""
    try:
        with nan_check():
            gradients(
                state.model, batches, inputs, partial(loss_and_grads, state.model)
            )  # in this thread, as nan_check
        culprit = "every op gave finite numbers, so a sum of them overflowed"
    except NonFiniteError as error:
        culprit = str(error)
    broken = [name for name, p in parameters(state.model) if not np.isfinite(to_cpu(p.data)).all()]
    after = f"; the update before had left NaN or infinity in the parameter {broken[0]}" if broken else ""
    return f"stopped at step {state.step + 1}, loss {loss:.4g}, gradient norm {norm:.4g}: {culprit}{after}"
