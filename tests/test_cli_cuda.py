"""`tinyrec cuda`: the table of the checker, what it says of planted mistakes, and the command for gdb, which is run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tinyrec import cli
from tinyrec.cli.cuda import equations
from tinyrec.cuda import host, launch
from tinyrec.cuda.switch import use_host_kernels
from tinyrec.inspect.cases import cases, wide_cases
from tinyrec.inspect.kernels import KernelRow, check_kernels, kernel_stems

ROOT = Path(__file__).parents[1]


def tinyrec(capsys, *args: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of one command."""
    status = cli.main(list(args))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def change(monkeypatch):
    """A function that puts another piece into the text of a stem's kernels."""

    def put(stem, right, wrong):
        text = launch.kernel_text(stem)
        assert right in text
        monkeypatch.setattr(launch, "kernel_text", lambda stem: text.replace(right, wrong))

    return put


# --- check ------------------------------------------------------------------------------------------------------------


def test_every_kernel_is_silent_and_equals_numpy(cpp, capsys):
    status, out, err = tinyrec(capsys, "cuda", "check")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [name for stem in kernel_stems() for name in launch.kernels(stem)]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2 : 2 + len(names)]}
    assert list(rows) == names
    assert all(len(row) == 7 and row[0] != "0" and row[1] == "0" for row in rows.values())
    assert lines[-1] == f"{len(names)} kernels checked, all right"


def test_a_kernel_that_nothing_launches_is_not_called_right(capsys, cpp, monkeypatch):
    monkeypatch.setattr("tinyrec.cli.cuda.check_kernels", lambda stem: [KernelRow("scan_forgotten", 0, 0.0, (), None)])
    status, out, _ = tinyrec(capsys, "cuda", "check", "scan")
    assert status == 0 and out.splitlines()[-2].startswith("0 kernels checked")
    assert out.splitlines()[-1] == "not checked, as no recurrence launches them here: scan_forgotten"


def test_the_bytes_are_those_of_the_wide_input(cpp, capsys):
    """rglru: 16 and 32 bytes per element in float32 (docs/cuda.md), here twice as many; and lam, and the states."""
    _, out, _ = tinyrec(capsys, "cuda", "check", "rglru")
    its_cases = [case for table in (cases(), wide_cases()) for case in table["tinyrec.recurrences.rglru.rglru"]]
    launches = sum(case.args[0].shape[1] > 1 for case in its_cases)  # one step needs no kernel
    assert [int(line.split()[1]) for line in out.splitlines()[2:4]] == [launches, launches]
    numbers = [[float(x) for x in line.split()[-4:]] for line in out.splitlines()[2:4]]
    for (asked, moved, distinct, ratio), bytes_per_element in zip(numbers, (32, 64), strict=True):
        least = 2 * 16 * 72 * bytes_per_element / 1000
        assert least < distinct <= moved <= asked < 1.06 * least
        assert 1 <= ratio < 1.03


def test_what_is_found_is_printed(cpp, capsys, change):
    change("rglru", "if (c >= (long long)batch * width) return;", "")
    status, out, err = tinyrec(capsys, "cuda", "check", "rglru")
    assert (status, err) == (1, "")
    lines = out.splitlines()
    counts = [int(line.split()[2]) for line in lines[2:4]]
    findings = lines[5 : 5 + sum(counts)]
    assert lines[4] == "" and min(counts) > 0
    assert all(re.match(r"rglru\.cu:\d+: thread \d+ of block \d .*, in rglru_(for|back)ward$", x) for x in findings)
    assert any("out of bounds" in finding for finding in findings)
    assert lines[5 + sum(counts) :] == [f"2 kernels checked, {sum(counts)} findings"]


@pytest.mark.parametrize(("wrong", "shown"), [("a * state - m", r"\de[+-]\d\d"), ("sqrt(-a) * state + m", "nan")])
def test_a_wrong_value_is_found(cpp, capsys, change, wrong, shown):
    change("rglru", "a * state + m", wrong)
    status, out, _ = tinyrec(capsys, "cuda", "check", "rglru")
    assert status == 1
    assert re.search(f"\nrglru_forward differs from the NumPy form by {shown} of the largest number\n", out)
    assert "rglru_backward differs" in out  # it reads what the forward wrote


def test_it_is_compared_with_numpy_also_where_kernels_are_switched_on(cpp, change):
    change("rglru", "a * state + m", "a * state - m")
    with use_host_kernels():
        assert all(row.error > 0.1 for row in check_kernels("rglru"))


def test_a_text_that_does_not_compile_is_said(cpp, capsys, change):
    change("rglru", "real state = h_init[c];", "real state = h_innit[c];")
    status, _, err = tinyrec(capsys, "cuda", "check", "rglru")
    assert status == 2 and re.match(r"tinyrec: \S+ refused the kernels:\n", err)
    assert re.search(r"/rglru\.cu:\d+:\d+: error: .*h_innit", err)


def test_a_kernel_that_does_nothing(cpp, capsys, change):
    text = launch.kernel_text("rglru")
    body = text[text.index("if (c >= (long long)batch * width) return;") : text.index("// dlam has one row")]
    change("rglru", body, "}\n")
    status, out, _ = tinyrec(capsys, "cuda", "check", "rglru")
    lines = out.splitlines()
    assert status == 1 and lines[2].split()[-4:] == ["0", "0", "0", "0.00"]
    assert "rglru_forward differs from the NumPy form by nan of the largest number" in lines  # fresh memory is NaN


def test_only_the_first_finding_of_a_line_is_kept(cpp, change):
    change("rglru", "h[(first + tile + j) * width + channel] = state;", "h[-1] = state, h[channel] = state;")
    (place,) = {finding.split(": ")[0] for row in check_kernels("rglru") for finding in row.findings}
    assert place.startswith("rglru.cu:")
    assert [len(row.findings) for row in check_kernels("rglru")] == [2, 0]  # of one launch: bounds, and a race


def test_the_page_shows_what_the_command_prints(cpp, capsys):
    page = (ROOT / "docs/cuda.md").read_text("utf-8")
    ((command, shown),) = re.findall(r"```console\n\$ tinyrec (.*?)\n(.*?)```", page, re.DOTALL)
    _, out, _ = tinyrec(capsys, *command.split())
    rounding = re.compile(r" \de-\d\d ")  # the column of errors, another one on every machine
    assert rounding.sub(" ", shown) == rounding.sub(" ", out)


# --- debug ------------------------------------------------------------------------------------------------------------


TEXT = """\
__device__ real before(real x) {
    return x;  // (1)
}
extern "C" __global__ void __launch_bounds__(512, 1) first(
    const real* x, int n) {  // (2) is no end of a line
    real y = before(x[0]);    // (3) (14)
    // (4)
    y += 1;  // of (5)
}
__device__ void after(real x) {
    x = 0;  // (6)
}
extern "C" __global__ void second(
    real* x) {
    x[0] = 1;  // (7)
}
"""


def test_the_lines_with_an_equation():
    first = [(6, "(3) (14)", "real y = before(x[0]);")]
    assert equations(TEXT) == {"first": first, "second": [(15, "(7)", "x[0] = 1;")]}
    for stem in kernel_stems():
        assert list(lines_of(stem)) == list(launch.kernels(stem))
        assert lines_of(stem)[f"{stem}_forward"] or stem == "ttt_linear"  # where they are in ttt_linear.h


def lines_of(stem):
    return equations((launch.HERE / f"{stem}.cu").read_text("utf-8"))


STOPS = {"rglru": "c = 5", "lstm": "k = 5", "ttt_linear": "size = 8"}  # in loops; on fibers; at a kernel's name


@pytest.mark.parametrize("stem", STOPS)
def test_gdb_stops_in_one_thread(cpp, capsys, monkeypatch, stem):
    if shutil.which("gdb") is None:
        pytest.skip("needs gdb")
    monkeypatch.chdir(ROOT)
    status, out, err = tinyrec(capsys, "cuda", "debug", stem)
    (pasted,) = [line for line in out.splitlines() if line.startswith("  gdb ")]
    assert (status, err) == (0, "") and all(len(line) <= 80 or line == pasted for line in out.splitlines())
    start, program = pasted.split(" --args ")
    for line in ("print threadIdx.x", "info locals", "info args", "continue", "print threadIdx.x"):
        start += f" -ex {shlex.quote(line)}"
    command = [*shlex.split(start), "-batch", "--args", *shlex.split(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "ptrace" in done.stderr:
        pytest.skip("gdb may not trace a process here")
    stopped = re.search(rf"Breakpoint 1, {stem}_forward\b.* at \S*/{stem}\.cu:(\d+)\n", done.stdout)
    assert stopped is not None, done.stderr
    assert int(stopped[1]) in [at.line for at in lines_of(stem)[f"{stem}_forward"][:1]] or stem == "ttt_linear"
    assert {"$1 = 5", "$2 = 5", STOPS[stem]} <= set(done.stdout.splitlines())


def test_gdb_that_is_missing_is_said(capsys, monkeypatch):
    monkeypatch.setattr("tinyrec.cli.cuda.shutil.which", lambda name: None)
    status, out, _ = tinyrec(capsys, "cuda", "debug", "scan")
    assert status == 0 and "gdb was not found here." in out and max(map(len, out.splitlines()[4:])) <= 120


def test_run_runs_the_debug_build(cpp, capsys, monkeypatch):
    builds, translate = set(), host.translate
    monkeypatch.setattr(host, "translate", lambda *given: builds.add(given[2]) or translate(*given))
    assert tinyrec(capsys, "cuda", "run", "lstm") == (0, "the kernels of lstm.cu have run, on the CPU\n", "")
    assert builds == {"debug"}


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "the following arguments are required: ACTION"),
        ("chek", "cuda has no action 'chek', only check, debug, run; did you mean 'check'?"),
        ("check wvk", "no kernel 'wvk', only " + ", ".join(kernel_stems()) + "; did you mean 'wkv'?"),
        ("check aft", "no kernel 'aft', only lstm, qrnn,"),
        ("debug", "`tinyrec cuda debug` takes one of lstm, qrnn,"),
        ("run", "`tinyrec cuda run` takes one of lstm, qrnn,"),
        ("check scan wkv", "one argument too many: 'wkv'"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, arguments, words):
    status, out, err = tinyrec(capsys, "cuda", *arguments.split())
    assert (status, out) == (2, "") and err.startswith(f"tinyrec: {words}") and err.count("\n") == 1


@pytest.mark.parametrize("arguments", ["check", "run scan"])
def test_no_compiler_is_one_sentence(capsys, monkeypatch, arguments):
    monkeypatch.setattr(host.shutil, "which", lambda name: None)
    host.compiler.cache_clear()
    status, out, err = tinyrec(capsys, "cuda", *arguments.split())
    host.compiler.cache_clear()
    assert (status, out) == (2, "") and err.startswith("tinyrec: running CUDA kernels on the CPU needs a C++ compiler")
    assert err.count("\n") == 1
