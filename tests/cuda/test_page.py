"""docs/cuda.md shows what its code prints. Its blocks are marked `py`, as they need a C++ compiler."""

import re
import subprocess
import sys
from pathlib import Path

from tinyrec.cuda.launch import kernel_text

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/cuda.md").read_text(encoding="utf-8")


def test_the_page_shows_what_its_code_prints(cpp):
    blocks = re.findall(r"```py\n(.*?)```\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("```py\n") == 3
    command = [sys.executable, "-c", "print('next')\n".join(code for code, _ in blocks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "next\n".join(text for _, text in blocks)


def test_the_page_shows_the_kernel_as_it_is():
    (kernel,) = re.findall(r"```c\+\+\n(.*?)```", PAGE, re.DOTALL)
    assert kernel in kernel_text("scan")
