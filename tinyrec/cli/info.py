"""What there is: models, presets, data, this machine. Of a model or a run: its options, size, state and memory.

  tinyrec info
  tinyrec info griffin --model.preset small --context 1024
  tinyrec info runs/hawk-pydoc
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from ..data import SOURCES, TASKS, VOCAB_SIZE
from ..generate import state_bytes
from ..models import MODELS, build
from ..nn import count, parameters
from ..tape import no_grad
from .console import thousands
from .memory import step_memory
from .models import check_length, check_model, load_model, longest, model_config
from .parser import Parser, preset_names
from .runs import RunFolder

BIGGEST = 2e8  # parameters that are still built to be counted

USAGE = "[MODEL | RUN] [options]"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("what", nargs="?", metavar="MODEL|RUN", help="a model's name, a run's folder or a checkpoint")
    parser.add_argument("--context", type=int, default=256, metavar="T", help="for the memory estimate (default 256)")
    parser.add_argument("--batch", type=int, default=8, metavar="B", help="for the memory estimate (default 8)")
    parser.takes_model_options = True


def run(arguments: argparse.Namespace) -> int:
    what = arguments.what
    if what is None:
        _overview()
    elif what in MODELS or not Path(what).exists():
        check_model(what)
        _model(what, model_config(what, arguments.model_options, VOCAB_SIZE), arguments.batch, arguments.context)
    else:
        _run(RunFolder(Path(what)))
    return 0


def _overview() -> None:
    blas = {f"{lib['internal_api']} {lib['version']}, {lib['num_threads']} threads" for lib in threadpool_info()}
    rows = {
        "tinyrec": installed("tinyrec"),
        "python": f"{sys.version.split()[0]}, numpy {np.__version__}, cupy {installed('cupy-cuda12x', 'cupy-cuda13x')}",
        "BLAS": "; ".join(sorted(blas)) or "unknown",
        "models": "",
        **{f"  {name}": "sizes " + ", ".join(entry.presets) for name, entry in MODELS.items()},
        "presets": ", ".join(preset_names()),
        "data": ", ".join(SOURCES) + ", or the path of a file",
        "tasks": ", ".join(name.replace("_", "-") for name in TASKS),
    }
    for name, value in rows.items():
        print(f"{name:14}{value}".rstrip())


def _model(name: str, config: Any, batch: int, context: int) -> None:
    check_length(config, context)
    print(f"{name}, options (--model.NAME VALUE)")
    for key, value in asdict(config).items():
        print(f"  {key:16}{list(value) if isinstance(value, tuple) else value}")
    usual = config.vocab_size * config.d_model + 12 * config.n_layers * config.d_model**2
    estimate = getattr(config, "matrices", usual)
    if estimate > BIGGEST:
        print(f"\nabout {estimate / 1e6:,.0f} million parameters: not built here to be counted")
        return
    model = build(name, config, np.random.default_rng(0))
    _sizes(model)
    _state(model, context)
    _memory(model, batch, context)


def _run(folder: RunFolder) -> None:
    saved, options = folder.load()
    last = [record for record in folder.records() if "valid_bits" in record][-1:]
    print(f"{saved.name} in {folder.path}, step {saved.step} of {options.steps}")
    for record in last:
        print(f"held out, step {record['step']}: {record['valid_bits']:.3f} bits, {record['valid_accuracy']:.1%} right")
    print("\noptions of the model" + listing(saved.config))
    print("\noptions of training" + listing(asdict(options)))
    model = load_model(saved)
    _sizes(model)
    _state(model, options.context)


def listing(options: dict[str, Any]) -> str:
    return "".join(f"\n  {name:16}{value}".rstrip() for name, value in options.items() if value != "")


def _sizes(model: Any) -> None:
    parts: Counter[str] = Counter()
    for name, p in parameters(model):
        path = re.sub(r"\.\d+\.", ".*.", name).split(".")  # blocks.0.mixer.conv_w -> blocks.*.mixer
        parts[".".join(path[:3] if "*" in path else path[:1])] += p.size
    print(f"\n{thousands(count(model))} parameters")
    for part, size in parts.items():
        print(f"  {part:20}{thousands(size):>12}")


@no_grad()
def _state(model: Any, context: int) -> None:
    print("\nstate that one sequence carries along")
    for length in sorted({int(min(n, longest(model.config))) for n in (1, context, 4 * context)}):
        _, state = model.prefill(np.zeros((1, length), np.int64), model.initial_state(1))
        print(f"  after {length:6} tokens {thousands(state_bytes(state)):>12} bytes")


def _memory(model: Any, batch: int, context: int) -> None:
    """Parameters count four times: themselves, gradient, AdamW's m and v. The rest is measured on one sequence."""
    memory = step_memory(model, batch, context)
    print(f"\nmemory of a training step, batch {batch}, context {context}: about {memory.total / 1e6:.0f} MB")
    print(f"  parameters, gradients, AdamW {memory.fixed / 1e6:8.1f} MB")
    print(f"  activations, per sequence    {memory.sequence / 1e6:8.1f} MB, measured on one")
    if hasattr(model, "draw"):
        print(f"  for any number of iterations: the last {model.config.grad_steps} are recorded (grad_steps)")


def installed(*packages: str) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "not installed"
