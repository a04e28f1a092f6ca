"""Train a model; everything goes into a run folder, and a run that stopped can be gone on with.

  tinyrec train hawk                                    on the standard library's documentation
  tinyrec train griffin --data notes.txt --steps 500
  tinyrec train hawk --task induction:vocab=16 --context 64 --model.d_model 64
  tinyrec train ttt-linear --backbone transformer       short for --model.backbone
  tinyrec train --resume --run runs/hawk-pydoc          go on where it stopped, bit for bit

Ctrl-C finishes the step, saves, says how to go on, and exits with status 130; a second Ctrl-C stops at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from threadpoolctl import threadpool_limits

from ..backend import NoGPUError, import_cupy, keep_freed_memory
from ..cuda.host import CompilerError, compiler
from ..cuda.switch import use_host_kernels
from ..data import VOCAB_SIZE
from ..models import MODELS
from ..nn import count
from ..train import Options, Source, State, TaskSource, TrainingError, open_source, start, train
from .console import Table, screen, thousands
from .inspect_parts import KINDS
from .memory import megabytes, step_memory
from .models import check_length, check_model, load_state, model_config
from .parser import Mistake, Parser, add_options, as_mistake, given_options, load_preset, program
from .runs import RunFolder, checksum

Start = tuple[RunFolder, State, Options, Source]

MAY_CHANGE = {"steps", "threads", "log_every", "valid_every", "save_every"}  # at --resume

USAGE = "MODEL [options]\n       tinyrec train --resume --run FOLDER"


def add_arguments(parser: Parser) -> None:
    parser.epilog = "--model.NAME VALUE sets an option of the model; `tinyrec info MODEL` lists them."
    parser.add_argument("model", nargs="?", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--preset", metavar="NAME", help="training options from a file; `tinyrec info` lists them")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="where to write (default runs/MODEL-DATA)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER")
    add_options(parser, Options)
    parser.takes_model_options = True


def run(arguments: argparse.Namespace) -> int:
    keep_freed_memory()
    folder, state, options, source = _resume(arguments) if arguments.resume else _begin(arguments)
    anchors = _introduce(folder, state, options, source)
    with use_host_kernels(options.kernels == "host"):
        return _loop(folder, state, options, source, anchors)


def _begin(arguments: argparse.Namespace) -> Start:
    name, given = arguments.model, given_options(arguments, Options)
    check_model(name)
    preset: dict[str, Any] = {}
    of_model: dict[str, Any] = {}
    if arguments.preset:
        preset, of_model = load_preset(arguments.preset, Options, MODELS[name].presets)
    if {"data", "task"} <= set(given):
        raise Mistake("--data and --task exclude each other")
    if "data" in given:
        preset.pop("task", None)
    config = model_config(name, of_model | arguments.model_options, VOCAB_SIZE)
    with as_mistake(ValueError):  # DataError is one
        options = Options(**preset | given)
        _machine_is_able(options)
        source = open_source(options)  # last, because reading a text takes seconds
        config = dataclasses.replace(config, vocab_size=source.vocab_size)
    check_length(config, options.context)
    what = options.task.partition(":")[0] or Path(options.data).stem
    folder = RunFolder(arguments.run or Path("runs", f"{name}-{what}"))
    folder.create()
    state = start(name, config, options)
    folder.save(state, options, checksum(source))
    return folder, state, options, source


def _resume(arguments: argparse.Namespace) -> Start:
    if not arguments.run:
        raise Mistake("--resume needs --run FOLDER: which run is to go on?")
    folder, given = RunFolder(arguments.run), given_options(arguments, Options)
    saved, options = folder.load()
    if arguments.model not in (None, saved.name):
        raise Mistake(f"the run in {folder.path} is one of {saved.name}, not of {arguments.model}")
    if arguments.preset or arguments.model_options:
        raise Mistake(f"the run in {folder.path} keeps the preset and the model that it was started with")
    for key, value in given.items():
        if value != getattr(options, key) and key not in MAY_CHANGE:
            before = getattr(options, key)
            raise Mistake(f"the run in {folder.path} was started with {key} = {before!r}, which cannot change now")
    _machine_is_able(options)
    with as_mistake(ValueError):
        options = dataclasses.replace(options, **given)
        source = open_source(options)
    if checksum(source) != saved.extra.get("text"):
        raise Mistake(f"the text of {options.data} has changed since the run in {folder.path} began")
    state = load_state(saved, options)
    folder.forget_after(state.step)
    folder.save(state, options, checksum(source))  # with the options that have changed
    return folder, state, options, source


def _machine_is_able(options: Options) -> None:
    if options.device == "gpu":
        with as_mistake(NoGPUError):
            import_cupy()
    if options.kernels == "host":
        with as_mistake(CompilerError):
            compiler()


def _introduce(folder: RunFolder, state: State, options: Options, source: Source) -> dict[str, float]:
    """Say what will be done; return the figures to beat."""
    print(f"{state.model.name}, {thousands(count(state.model))} parameters -> {folder.path}/", flush=True)
    if options.device == "cpu" and state.step < options.steps:
        memory = step_memory(state.model, options.batch, options.context)
        each = f"{megabytes(memory.sequence)} for each of {options.batch} sequences"
        print(f"memory of a training step: about {megabytes(memory.total)}, {each}", flush=True)
    if isinstance(source, TaskSource):
        print(f"task {options.task}: {source.task}")
        return {"guess": math.log2(source.task.vocab)}
    train, valid = thousands(len(source.split.train)), thousands(len(source.valid))
    print(f"text {options.data}: train on {train} bytes, validate on {valid}", flush=True)
    return folder.anchors("valid", source.split.train, source.valid)


def _loop(folder: RunFolder, state: State, options: Options, source: Source, anchors: dict[str, float]) -> int:
    """Run train(), log its records, save now and then."""
    table, record = Table(source.unit, anchors, hasattr(state.model, "monitor")), {}
    if state.step >= options.steps:
        print(f"all {options.steps} steps are done; more: {again(folder)} --steps {2 * options.steps}")
        return 0
    with (
        folder.metrics.open("a", encoding="utf-8") as metrics,
        threadpool_limits(1),  # batches are shared among threads, not matrix products
        screen(state.step, options.steps) as show,
        Interrupt() as interrupt,
    ):
        for line in table.header():
            show.print(line)
        try:
            for record in train(state, source, options):
                metrics.write(json.dumps(record) + "\n")
                metrics.flush()
                table.add(record)
                show.at(state.step)
                last = state.step == options.steps or interrupt.came
                if last or "valid_bits" in record or state.step % options.log_every == 0:
                    for line in (table.line(record), *table.by_iterations(record)):
                        show.print(line)
                if last or state.step % options.save_every == 0:
                    folder.save(state, options, checksum(source))
                if interrupt.came:
                    break
        except TrainingError as error:
            raise Mistake(f"{error}; the last good checkpoint is {folder.checkpoint}", status=1) from error
    if state.step < options.steps:
        print(f"stopped after step {state.step} of {options.steps}, all is saved; to go on:\n  {again(folder)}")
        return 130
    _conclude(folder, record, anchors, source.unit, state.model.name)
    return 0


def _conclude(folder: RunFolder, record: dict[str, float], anchors: dict[str, float], unit: str, name: str) -> None:
    beside = ", ".join(f"{name} {bits:.3f}" for name, bits in anchors.items())
    right = record["valid_accuracy"]
    print(f"\nheld out: {record['valid_bits']:.3f} bits per {unit}, beside {beside}; {right:.1%} right")
    commands = ["generate"] * (unit == "byte") + ["eval"] + ["inspect"] * (name in KINDS) + ["plot"]
    for command in commands:
        print(f"  {program()} {command} {shlex.quote(str(folder.path))}")


def again(folder: RunFolder) -> str:
    """The command that goes on with a run."""
    return f"{program()} train --resume --run {shlex.quote(str(folder.path))}"


class Interrupt:
    """Ctrl-C is noted, once, so that the step can be finished; a second one stops as usual."""

    came = False

    def __enter__(self) -> Interrupt:
        self.before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
