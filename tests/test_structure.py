"""The layout of the house, held by tests: who imports whom, five places per stem, nothing left behind, file sizes.

Each rule is a function of text or of a folder that returns its complaints, and is itself tested on planted violations.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "tinyrec"
MODULES = sorted(path.relative_to(LIBRARY).as_posix() for path in LIBRARY.rglob("*.py"))

# --- 1. import direction ----------------------------------------------------------------------------------------------

# A module imports only from its left. Those of one group do not import each other. "__init__" is `import tinyrec`.
ORDER = """
    suggest backend | tape | walk | check | ops | cuda | recurrences | nn | models
    | optim data checkpoint parallel interop inspect | evaluate options | train generate | __init__ | cli | __main__
"""
RANK = {unit: rank for rank, group in enumerate(ORDER.split("|")) for unit in group.split()}
SAYS_CUPY = {"backend", "cuda"}
NOT_IN_MODELS = {"numpy", "cupy", "cupyx"}


def imported(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in the text: nested, under TYPE_CHECKING, by import_module too."""
    package = ".".join(("tinyrec", *PurePosixPath(path).parent.parts))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, importlib.util.resolve_name(node.args[0].value, package)


def import_complaints(path: str, source: str) -> list[str]:
    """What the module at `path`, relative to tinyrec/, imports and must not."""
    unit = PurePosixPath(path).with_suffix("").parts[0]
    if unit not in RANK:
        return [f"{path}: '{unit}' has no place in ORDER; say there what it may import"]
    complaints = []
    for line, name in imported(path, source):
        top, *rest = name.split(".")
        if top == "tinyrec":
            target = rest[0] if rest and rest[0] != "__version__" else "__init__"
            if target not in RANK:
                complaints.append(f"{path}:{line}: {name} is no module of ORDER; import it from its own module")
            elif target != unit and RANK[target] >= RANK[unit]:
                complaints.append(f"{path}:{line}: {unit} must not import {target}, which is not on its left")
            elif unit == "models" and target == "cuda":
                complaints.append(f"{path}:{line}: models must not import cuda")
        elif unit == "models" and top in NOT_IN_MODELS:
            complaints.append(f"{path}:{line}: models must not import {top}; they are written with tinyrec's ops")
        elif top in ("cupy", "cupyx") and unit not in SAYS_CUPY:
            complaints.append(f"{path}:{line}: only backend.py and cuda/ import cupy")
    return complaints


@pytest.mark.parametrize("path", MODULES)
def test_a_module_imports_only_from_its_left(path):
    assert import_complaints(path, (LIBRARY / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tape.py", "from .ops import add"),
        ("tape.py", "from . import ops"),
        ("tape.py", "import tinyrec.ops.reduce"),
        ("tape.py", "from tinyrec import Tensor"),
        ("tape.py", "import tinyrec"),
        ("train.py", "from . import __version__"),
        ("ops/reduce.py", "from ..nn.init import normal"),
        ("ops/reduce.py", "def late():\n    from ..recurrences import scan"),
        ("ops/reduce.py", "if TYPE_CHECKING:\n    from ..models.griffin import Hawk"),
        ("ops/__init__.py", "from ..check import gradcheck\nfrom ..cuda import launch"),
        ("ops/reduce.py", "import importlib\nimportlib.import_module('tinyrec.models.griffin')"),
        ("optim/adamw.py", "from ..checkpoint import save"),
        ("models/griffin.py", "import numpy as np"),
        ("models/griffin.py", "def late():\n    from numpy import exp"),
        ("models/griffin.py", "import cupy"),
        ("models/griffin.py", "from ..cuda.launch import Kernel"),
        ("optim/adamw.py", "import cupy.cuda"),
        ("optim/adamw.py", "import importlib\nimportlib.import_module('cupy')"),
        ("newcomer.py", ""),
    ],
)
def test_a_wrong_import_is_caught(path, source):
    assert len(import_complaints(path, source)) == 1


def test_a_right_import_is_not():
    assert import_complaints("ops/reduce.py", "import numpy as np\nfrom ..tape import op\nfrom .shape import pad") == []
    assert import_complaints("recurrences/rglru.py", "from tinyrec import ops\nfrom . import scan") == []
    assert import_complaints("backend.py", "def late():\n    import cupy") == []
    assert import_complaints("cuda/launch.py", "from ..backend import get_xp\nimport cupy") == []
    assert import_complaints("__init__.py", "from .train import fit\nfrom .models import griffin") == []
    assert import_complaints("cli.py", "from . import __version__") == []


# --- 2. five places of one stem ---------------------------------------------------------------------------------------


def missing_places(root: Path) -> list[str]:
    """What each recurrence lacks of its derivation, its test and its demo."""
    complaints = []
    no_recurrence = {"__init__", "inner_loop"}  # the second: what ttt_linear and ttt_mlp share
    stems = {path.stem for path in (root / "tinyrec/recurrences").glob("*.py")} - no_recurrence
    for stem in sorted(stems):
        for place in (f"docs/recurrences/{stem}.md", f"tests/recurrences/test_{stem}.py", f"demos/plot_{stem}_*.py"):
            if not any(root.glob(place)):
                complaints.append(f"recurrences/{stem}.py has no {place}")
    return complaints


def test_every_recurrence_has_its_derivation_test_and_demo():
    assert missing_places(ROOT) == []


def test_a_missing_place_is_caught(tmp_path):
    places = ["tinyrec/recurrences/__init__.py", "tinyrec/recurrences/wkv.py"]
    places += ["docs/recurrences/wkv.md", "tests/recurrences/test_wkv.py", "demos/plot_wkv_memory.py"]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("")
    assert missing_places(tmp_path) == []
    for n, place in enumerate(places[2:], 1):
        (tmp_path / place).unlink()
        assert len(missing_places(tmp_path)) == n


# --- 3. nothing left behind -------------------------------------------------------------------------------------------

FOLDERS = (".ci", "benchmarks", "demos", "docs", "tests", "tinyrec", "tools")
TEXT = {".py", ".cu", ".h", ".md", ".rst", ".toml", ".cfg", ".cff", ".txt", ""}  # "": Makefile, LICENSE, run
# A path of one machine, a folder outside the checkout, an unfinished thought. Spelled so that this file is clean.
LEFT_BEHIND = re.compile(r"(?<![\w.])/wo[r]k\b|\.\./shar[e]d|/tm[p]/tv|\bTO[D]O\b|\bFIX[M]E\b")


def left_behind(name: str, text: str) -> list[str]:
    """Lines that name what only its author's machine has, or say that something is unfinished."""
    lines = enumerate(text.splitlines(), start=1)
    return [f"{name}:{number}: '{hit[0]}'" for number, line in lines if (hit := LEFT_BEHIND.search(line))]


def project_files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*") if "_build" not in path.parts)
    yield from ROOT.iterdir()


def test_no_file_names_a_machine_or_an_unfinished_thought():
    files = [path for path in project_files() if path.suffix in TEXT and path.is_file()]
    assert LIBRARY / "backend.py" in files and ROOT / "Makefile" in files
    texts = ((path.relative_to(ROOT).as_posix(), path.read_text("utf-8", errors="replace")) for path in files)
    assert [complaint for name, text in texts for complaint in left_behind(name, text)] == []


MARKED = ["cd /wo~rk", "'/wo~rk/main'", "..~/shared/x", "/tm~p/tv/bin", "# TO~DO: x", "FIX~ME"]  # without ~


@pytest.mark.parametrize("words", MARKED)
def test_what_is_left_behind_is_caught(words):
    assert left_behind("x.py", f"fine\n{words.replace('~', '')}") != []


def test_what_only_looks_like_it_is_not():
    for words in ("homework/one", "a/wo~rk/b", "/wo~rker", "TODOS", "shared/state", "tmp_path"):
        assert left_behind("x.md", words.replace("~", "")) == []


# --- 4. file sizes ----------------------------------------------------------------------------------------------------

sizes = runpy.run_path(str(ROOT / "tools/sizes.py"))


def length_complaints(name: str, text: str) -> list[str]:
    count = len(text.splitlines())
    return [f"{name} has {count} lines, more than {sizes['LONGEST']}"] if count > sizes["LONGEST"] else []


def test_every_file_can_be_read_in_one_sitting():
    files = [path for path in LIBRARY.rglob("*") if path.suffix in sizes["SUFFIXES"]]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    assert "tinyrec/backend.py" in texts
    assert [complaint for name, text in texts.items() for complaint in length_complaints(name, text)] == []


def test_a_long_file_is_caught():
    assert length_complaints("x.py", "x\n" * 250) == []
    assert length_complaints("x.py", "x\n" * 251) == ["x.py has 251 lines, more than 250"]
