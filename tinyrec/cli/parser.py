"""argparse with short errors, and the bridge between dataclasses and options.

A value comes from the last of these that has it: the dataclass's default, the preset (a TOML file), the command line.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from ..suggest import did_you_mean

PRESETS = Path(__file__).parents[1] / "presets"
SHORT = {"--backbone": "--model.backbone"}  # TTT has two, and its papers always name one of them


class Mistake(Exception):
    """What the user reads instead of a traceback: one sentence."""

    def __init__(self, sentence: str, status: int = 2):
        super().__init__(sentence)
        self.status = status


@contextmanager
def as_mistake(*errors: type[Exception], status: int = 2) -> Iterator[None]:
    """Turn exceptions that are the user's to mend into a Mistake; all others are bugs, and keep their traceback."""
    try:
        yield
    except errors as error:
        raise Mistake(str(error), status) from error


def program() -> str:
    """How the user called us, for commands to copy: `tinyrec`, or `.venv/bin/python -m tinyrec`."""
    called = sys.argv[0]
    if Path(called).name == "__main__.py":
        return f"{shlex.quote(os.path.relpath(sys.executable))} -m tinyrec"
    return "tinyrec" if shutil.which("tinyrec") else shlex.quote(called)


class Parser(argparse.ArgumentParser):
    """Errors in one sentence, with a suggestion."""

    takes_model_options = False  # collect `--model.NAME VALUE` in the dict arguments.model_options
    hands_on = False  # parse nothing, collect all in the list arguments.rest

    def __init__(self, **keywords: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)

    def error(self, message: str) -> NoReturn:
        raise Mistake(message if "did you mean" in message else f"{message}; `{self.prog} --help` lists the options")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.hands_on:
            return argparse.Namespace(rest=list(args))
        plain, of_model = _take_model_options(list(args)) if self.takes_model_options else (list(args), {})
        arguments, unknown = self.parse_known_args(plain, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            what = "unknown option" if name.startswith("-") else "one argument too many:"
            self.error(f"{what} {name!r}{did_you_mean(name, known)}")
        arguments.model_options = of_model
        return arguments


def _take_model_options(args: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--model.d_model=64` and `--model.d_model 64` out of the arguments: (the others, {"d_model": 64})."""
    plain: list[str] = []
    found: dict[str, Any] = {}
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        name = SHORT.get(name, name)
        if not name.startswith("--model."):
            plain.append(arg)
            continue
        given = value if equals else next(rest, None)
        if given is None:
            raise Mistake(f"{arg} needs a value")
        found[name.removeprefix("--model.")] = toml_value(given)
    return plain, found


def toml_value(text: str) -> Any:
    """A number, true, false or a [list], read like a line of a preset; anything else is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def add_options(parser: Parser, dataclass: type) -> None:
    """An option for each field; what is not given is left out of the namespace."""
    for field in fields(dataclass):
        kind = type(field.default)
        shown = "" if field.default == "" else f" (default {field.default})"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            default=argparse.SUPPRESS,
            choices=field.metadata["choices"] or None,
            metavar="{" + ",".join(field.metadata["choices"]) + "}" if field.metadata["choices"] else _METAVARS[kind],
            help=field.metadata["help"].replace("%", "%%") + shown,
        )


_METAVARS = {int: "N", float: "X", str: "NAME"}


def given_options(arguments: argparse.Namespace, dataclass: type) -> dict[str, Any]:
    """The fields that the command line has set."""
    return {field.name: vars(arguments)[field.name] for field in fields(dataclass) if field.name in arguments}


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str, dataclass: type, model_presets: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """(training options, model options) of presets/NAME.toml: its top level, and its table [model]."""
    path = PRESETS / f"{name}.toml"
    if name not in preset_names():
        hint = f"; {name!r} is a preset of the model: --model.preset {name}" if name in model_presets else ""
        hint = hint or did_you_mean(name, preset_names())
        raise Mistake(f"there is no preset {name!r}, only {', '.join(preset_names())}{hint}")
    options = tomllib.loads(path.read_text(encoding="utf-8"))
    model = options.pop("model", {})
    if unknown := set(options) - {field.name for field in fields(dataclass)}:
        raise Mistake(f"{path} sets {sorted(unknown)[0]!r}, which is no option of training")
    return options, model
