"""The source "pydoc": the docstrings of Python's standard library, about 1.5 MB of technical English.

The modules are parsed, never imported, so nothing of them runs. An entry is the dotted name with its signature,
then the docstring:

    textwrap.dedent(text)
    Remove any common leading whitespace from every line in `text`.
    ...
"""

import ast
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from .errors import DataError

# Not the library's documentation: installed packages, tests, bundled programs, and a second copy of the manual.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def stdlib_docs(max_bytes: int | None = None) -> bytes:
    """Return the documentation in order of file path, the same bytes for one Python version; at most `max_bytes`.

    A docstring that occurs again (white space aside) is kept once only, with the first name that carries it.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    entries: list[bytes] = []
    size = 0
    for path in _modules(root):
        for name, docstring in _docstrings(path, root):
            key = " ".join(docstring.split())
            if key in seen:
                continue
            seen.add(key)
            entries.append(f"{name}\n{docstring}\n\n".encode(errors="replace"))  # "\ud800" has no UTF-8
            size += len(entries[-1])
        if max_bytes is not None and size >= max_bytes:
            break
    if not entries:
        raise DataError(f"no documented Python sources were found in {str(root)!r}, where the standard library lives")
    return b"".join(entries)[:max_bytes]


def _modules(root: Path) -> list[Path]:
    paths: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED]  # os.walk does not enter what is not listed
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _docstrings(path: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Yield (name with signature, docstring) for the module, its classes, functions and methods, in source order."""
    parts = path.relative_to(root).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    for name, node in _definitions(module, ast.parse(path.read_bytes())):
        docstring = (ast.get_docstring(node) or "").strip()
        if docstring:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{name}({ast.unparse(node.args)})"
            yield name, docstring


def _definitions(name: str, node: Documented) -> Iterator[tuple[str, Documented]]:
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(f"{name}.{child.name}", child)
