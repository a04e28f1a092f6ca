"""Importing tinyrec prints nothing, compiles nothing, reads no environment and needs no extra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinyrec

ROOT = Path(__file__).resolve().parents[1]

OPTIONAL = ["cupy", "matplotlib", "torch", "transformers", "tokenizers", "ml_dtypes", "mpi4py"]  # the extras

WATCH = """
import importlib, json, os, sys

report, unwanted, *names = sys.argv[1:]
starts = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork")  # what a compiler would need
reads, started = set(), []
original = os._Environ.__getitem__

def watched(environ, key):
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") in ("os", "collections.abc"):  # os.getenv, environ.get
        frame = frame.f_back
    if frame.f_globals.get("__name__", "").split(".")[0] == names[0].split(".")[0]:
        reads.add(key)
    return original(environ, key)

os._Environ.__getitem__ = watched
sys.addaudithook(lambda event, args: event in starts and started.append(event))
for name in names:
    importlib.import_module(name)
imported = sorted(set(unwanted.split()) & set(sys.modules))
found = {"environment": sorted(reads), "imports": imported, "starts": started[:1]}
with open(report, "w") as file:
    json.dump(found, file)
"""


def import_effects(names: list[str], unwanted: list[str], path: Path, scratch: Path) -> dict[str, object]:
    """Import the modules in a fresh interpreter; what they printed, read, started and imported beyond what they may."""
    report = scratch / "report.json"
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(report), " ".join(unwanted), *names],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {"prints": done.stdout + done.stderr, **json.loads(report.read_text())}
    return {effect: what for effect, what in found.items() if what}


def test_importing_tinyrec_has_no_effect(tmp_path):
    assert import_effects(["tinyrec"], [*OPTIONAL, "rich"], ROOT, tmp_path) == {}


def test_importing_any_module_has_no_effect_and_needs_no_extra(tmp_path):
    paths = sorted(path.relative_to(ROOT).with_suffix("") for path in (ROOT / "tinyrec").rglob("*.py"))
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__"]
    assert import_effects(names, OPTIONAL, ROOT, tmp_path) == {}


@pytest.mark.parametrize(
    ("source", "effect"),
    [
        ("print('hello')", {"prints": "hello\n"}),
        ("import sys; sys.stderr.write('x')", {"prints": "x"}),
        ("import torch", {"imports": ["torch"]}),
        ("import os; os.environ.get('PLANTED')", {"environment": ["PLANTED"]}),
        ("import os; os.getenv('PLANTED')", {"environment": ["PLANTED"]}),
        ("import os; 'PLANTED' in os.environ", {"environment": ["PLANTED"]}),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', ''])", {"starts": ["subprocess.Popen"]}),
    ],
)
def test_an_effect_is_caught(source, effect, tmp_path):
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted/__init__.py").write_text(source)
    assert import_effects(["planted"], OPTIONAL, tmp_path, tmp_path) == effect


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {tinyrec.__version__}\n" in citation.replace('"', "")
