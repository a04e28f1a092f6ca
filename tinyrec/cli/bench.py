"""Time tinyrec beside PyTorch and print the ratios: `python -m benchmarks`, in a checkout of the repository.

What follows `tinyrec bench` is handed on: tinyrec bench --list
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from .parser import Mistake, Parser

REPOSITORY = Path(__file__).parents[2]

USAGE = "[arguments of python -m benchmarks]"


def add_arguments(parser: Parser) -> None:
    parser.hands_on = True


def run(arguments: argparse.Namespace) -> int:
    if not (REPOSITORY / "benchmarks" / "__main__.py").is_file():
        raise Mistake("the benchmarks are not installed with the library; run this in a checkout of the repository")
    # A kernel forced on OpenBLAS from outside (to work around old builds of it) would slow NumPy's side only.
    fair = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    command = [sys.executable, "-m", "benchmarks", *arguments.rest]
    return subprocess.run(command, cwd=REPOSITORY, env=fair, check=False).returncode
