"""Train a small Hawk on the plays of Shakespeare, then let it write, evaluate it, draw its loss; all into runs/demo.

The training options are those of the preset `demo`. A demo that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
from pathlib import Path

from .parser import Parser
from .runs import RunFolder

USAGE = "[options]"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), metavar="FOLDER", help="default runs/demo")


def run(arguments: argparse.Namespace) -> int:
    folder = shlex.quote(str(arguments.run))
    there = RunFolder(arguments.run).checkpoint.exists()
    commands = [
        f"train --resume --run {folder}" if there else f"train hawk --preset demo --run {folder}",
        f"generate {folder} --out {folder}/sample.txt",
        f"eval {folder}",
        f"plot {folder}",
    ]
    for line in commands:
        print(f"\n$ tinyrec {line}", flush=True)
        if status := _call(*shlex.split(line)):
            return status
    return 0


def _call(name: str, *args: str) -> int:
    command = importlib.import_module(f"tinyrec.cli.{name}")
    parser = Parser(prog=f"tinyrec {name}")
    command.add_arguments(parser)
    return command.run(parser.parse_args(args))
