"""What a page of docs/ shows was printed by the code above it: run each block of Python, compare its block of text."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
BLOCK = re.compile(r"```python\n(.*?)```(?:\n```text\n(.*?)```)?", re.DOTALL)


def printed_by(blocks: list[str]) -> list[str]:
    """What each block prints, run one after the other in a process of its own: a page may define ops."""
    mark = "----- next block -----\n"
    program = f"print({mark!r}, end='')\n".join(blocks)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(mark)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_shows_what_its_code_prints(page):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert [text for _, text in blocks] == (printed_by([code for code, _ in blocks]) if blocks else [])


def test_a_wrong_number_on_a_page_is_caught():
    page = "```python\nprint(1 + 1)\n```\n```text\n3\n```\n\n```python\nx = 1\n```\n"
    assert BLOCK.findall(page) == [("print(1 + 1)\n", "3\n"), ("x = 1\n", "")]
    assert printed_by(["print(1 + 1)\n", "x = 1\n"]) == ["2\n", ""]


def test_pages_with_code_are_found():
    assert sum(bool(BLOCK.search(page.read_text(encoding="utf-8"))) for page in PAGES) >= 3
