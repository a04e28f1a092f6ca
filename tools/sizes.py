"""Lines per file of tinyrec/, so that it stays small enough to be read: `python tools/sizes.py`.

code: lines with code; prose: lines of comments and docstrings only; total: these and the blank ones. tok/line is
tokens per line of code: it rises where lines are saved by clever code, which is no saving to a reader.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

LIBRARY = Path(__file__).resolve().parents[1] / "tinyrec"
SUFFIXES = {".py", ".cu", ".h"}
LONGEST = 250  # lines; tests/test_structure.py holds every file to it
DENSEST = 14  # tokens per line of code, over a whole file

LAYOUT = {tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
C_TOKEN = re.compile(r"""(?P<comment>//[^\n]*|/\*.*?\*/)|"(?:\\.|[^"\\\n])*"|\w+|[^\w\s]""", re.DOTALL)


class Size(NamedTuple):
    code: int
    prose: int
    total: int
    tokens: int


def measure_python(source: str) -> Size:
    """Sizes of a Python file. A statement that is nothing but a string is a docstring, and so prose."""
    code: set[int] = set()
    prose: set[int] = set()
    tokens, statement = 0, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            prose.add(token.start[0])
        elif token.type == tokenize.NEWLINE:
            docstring = all(t.type == tokenize.STRING for t in statement)
            lines = {n for t in statement for n in range(t.start[0], t.end[0] + 1)}
            (prose if docstring else code).update(lines)
            tokens += 0 if docstring else len(statement)
            statement = []
        elif token.type not in LAYOUT:
            statement.append(token)
    return Size(len(code), len(prose - code), len(source.splitlines()), tokens)


def measure_c(source: str) -> Size:
    """Sizes of a CUDA or C++ file."""
    code: set[int] = set()
    prose: set[int] = set()
    tokens = 0
    for match in C_TOKEN.finditer(source):
        first = source.count("\n", 0, match.start()) + 1
        if match["comment"]:
            prose.update(range(first, first + match[0].count("\n") + 1))
        else:
            code.add(first)
            tokens += 1
    return Size(len(code), len(prose - code), len(source.splitlines()), tokens)


def measure(path: Path) -> Size:
    source = path.read_text(encoding="utf-8")
    return measure_python(source) if path.suffix == ".py" else measure_c(source)


def add_up(sizes: Iterable[Size]) -> Size:
    return Size(*map(sum, zip(Size(0, 0, 0, 0), *sizes, strict=True)))


def row(name: str, size: Size, flags: str = "") -> str:
    density = size.tokens / max(size.code, 1)
    return f"{name:<40}{size.code:>7}{size.prose:>7}{size.total:>7}{density:>10.1f}  {flags}".rstrip()


def report(library: Path) -> str:
    """The table: each folder with its sum, and its files below; the sum of all at the end."""
    folders: dict[Path, dict[Path, Size]] = {}
    for path in sorted(library.rglob("*")):
        if path.suffix in SUFFIXES:
            folders.setdefault(path.parent, {})[path] = measure(path)

    lines = [f"{'file':<40}{'code':>7}{'prose':>7}{'total':>7}{'tok/line':>10}"]
    for folder in sorted(folders):
        files = folders[folder]
        lines += ["", row(f"{folder.relative_to(library.parent).as_posix()}/", add_up(files.values()))]
        for path, size in files.items():
            flags = [f"longer than {LONGEST} lines"] * (size.total > LONGEST)
            flags += ["dense"] * (size.tokens > DENSEST * size.code)
            lines.append(row(f"    {path.name}", size, ", ".join(flags)))
    sizes = [size for files in folders.values() for size in files.values()]
    return "\n".join([*lines, "", row(f"all, {len(sizes)} files", add_up(sizes))])


if __name__ == "__main__":
    print(report(LIBRARY))
