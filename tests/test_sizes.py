"""The report of lines per file tells code from prose, adds up and flags what is long or dense."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[1] / "tools/sizes.py"
sizes = runpy.run_path(str(TOOL))

PYTHON = '''"""Two lines of
docstring."""

# a comment
x = """a string
in the code"""  # behind code

def f(a):
    "also prose"
    return (a +
            1)
'''
CUDA = """// a comment
/* two
   lines */
__global__ void f(float *y) {  // behind code
    y[0] = "a // b";
}
"""


def test_sizes_tell_code_from_prose():
    assert sizes["measure_python"](PYTHON) == (5, 4, 11, 3 + 6 + 6)
    assert sizes["measure_c"](CUDA) == (3, 3, 6, 9 + 7 + 1)


def test_sizes_report_adds_up_and_flags(tmp_path):
    (tmp_path / "tinyrec/ops").mkdir(parents=True)
    (tmp_path / "tinyrec/tape.py").write_text("x = 1\n" * 251)
    (tmp_path / "tinyrec/ops/golf.py").write_text("f = lambda a, b: [i * j + 1 for i in a for j in b if i if j]\n")
    report = sizes["report"](tmp_path / "tinyrec")
    assert re.search(r"tape.py +251 +0 +251 +3.0  longer than 250 lines\n", report)
    assert re.search(r"golf.py +1 +0 +1 +2\d.0  dense\n", report)
    assert re.search(r"all, 2 files +252 +0 +252 ", report)


def test_sizes_runs_on_this_checkout(tmp_path):
    command = [sys.executable, str(TOOL)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert "backend.py" in done.stdout and "longer than" not in done.stdout and done.stderr == ""
