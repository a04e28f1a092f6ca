"""The command line: `tinyrec COMMAND ...`, one file per command, each loaded only when it is asked for.

A command's file has USAGE, `add_arguments(parser)` and `run(arguments) -> exit status`:
0 done; 1 a check failed or training hit NaN; 2 something was asked wrongly or cannot be done here, and one sentence
on stderr says what; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys

from ..suggest import did_you_mean
from .parser import Mistake, Parser

COMMANDS = {
    "train": "train a model on text or on a synthetic task",
    "generate": "let a trained model go on writing",
    "eval": "bits per byte of held-out text, by window length and position",
    "inspect": "watch a model of recurrent depth think, or a TTT learn what it reads",
    "plot": "draw the loss of a run",
    "info": "what there is: models, presets, data, this machine; or one model or run",
    "check": "compare every hand-written gradient with finite differences",
    "cuda": "check the CUDA kernels on a CPU, or stop in one thread of them in gdb",
    "bench": "time tinyrec beside PyTorch",
    "demo": "train a small Hawk in 1 to 3 minutes, then write, evaluate, plot",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(argv)
    except SystemExit as done:  # argparse after --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `tinyrec generate ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush does not complain
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}")
    except Mistake as error:
        return _complain(str(error), error.status)


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        name, argv = "info", ["info"]
    if name not in COMMANDS:
        raise Mistake(f"there is no command {name!r}, only {', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}")
    command = importlib.import_module(f"tinyrec.cli.{name}")
    parser = Parser(prog=f"tinyrec {name}", usage=f"tinyrec {name} {command.USAGE}", description=command.__doc__)
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv[1:]))


def _usage() -> str:
    rows = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())
    return (
        "tinyrec: recurrent language models whose gradients are written by hand, and checked\n\n"
        f"usage: tinyrec COMMAND [options]\n\n{rows}\n\n`tinyrec COMMAND --help` lists a command's options."
    )


def _complain(sentence: str, status: int = 2) -> int:
    print(f"tinyrec: {sentence}", file=sys.stderr)
    return status
