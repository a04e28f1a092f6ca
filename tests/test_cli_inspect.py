"""`tinyrec inspect`, of recurrent depth and of TTT, and what the other commands show of a model of recurrent depth."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tinyrec import cli
from tinyrec.checkpoint import load_run, restore
from tinyrec.cli.console import Table, bits_by_iterations
from tinyrec.cli.inspect_parts import by_restlessness, doubling, in_context, ranges
from tinyrec.cli.memory import megabytes, step_memory
from tinyrec.data import Batches, encode, load_text, split_text
from tinyrec.inspect import inner_losses
from tinyrec.inspect.recurrent_depth import Habits
from tinyrec.models import build, make_config
from tinyrec.nn import parameters
from tinyrec.options import streams

TEXT = b"".join(b"%d green bottles hanging on the wall, and %d more.\n" % (i, i * i) for i in range(300))
SIZE = "--model.d_model 8 --model.n_heads 2 --model.d_mlp 12 --model.mean_steps 3 --model.grad_steps 2".split()
QUICK = "--context 16 --batch 4 --steps 6 --warmup 2 --threads 1".split()
QUICK += "--valid-every 3 --valid-bytes 200 --log-every 2".split()
HAWK = "--model.d_model 8 --model.d_rnn 8 --model.n_layers 1 --model.n_heads 2".split()
TTT = "--model.d_model 8 --model.n_heads 2 --model.n_layers 2 --model.mini_batch 4".split()
LOOK = "--recurrence 6 --windows 3".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a text, and the runs `text`, `parity` (recurrent depth), `hawk`, `ttt`; what training printed."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "words").write_bytes(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        on_text = ["recurrent-depth", "--data", "words", "--run", "text", *SIZE]
        on_parity = ["recurrent-depth", "--task", "prefix-parity", "--run", "parity", *SIZE]
        hawk = ["hawk", "--data", "words", "--run", "hawk", "--model.d_model", "8", "--model.n_heads", "2"]
        printed = {}
        ttt = ["ttt-linear", "--data", "words", "--run", "ttt", *TTT]
        for line in (on_text, on_parity, hawk, ttt):
            patch.setattr(sys, "stdout", out := Lines())
            assert cli.main(["train", *line, *QUICK]) == 0
            printed[line[4]] = "".join(out)
    return folder, printed


class Lines(list):
    """A stdout that is no terminal."""

    write, flush, isatty = list.append, lambda self: None, lambda self: False


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """Copies of the runs, to work in."""
    shutil.copytree(trained[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def tinyrec(capsys, *args: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of one command."""
    status = cli.main(list(args))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def figures(run: str) -> set[str]:
    """The PNG files of a run."""
    return {path.stem for path in Path(run).glob("*.png") if path.read_bytes().startswith(b"\x89PNG")}


# --- inspect ----------------------------------------------------------------------------------------------------------

EVERY = {"inspect_iterations", "inspect_paths", "inspect_exits", "inspect_trajectories"}


@pytest.mark.parametrize(("run", "unit"), [("text", "byte"), ("parity", "token")])
def test_inspect_prints_its_tables_in_order_and_draws(run, unit, here, capsys):
    pytest.importorskip("matplotlib")
    status, out, err = tinyrec(capsys, "inspect", run, *LOOK)
    assert (status, err) == (0, "") and max(map(len, out.splitlines())) <= 100
    assert "3 windows of 16, up to 6 iterations" in out
    number = r" +\d+\.\d{3}"
    tables = (
        rf"\nafter iterations +1 +2 +4 +6\nbits per {unit}{number * 4}\nright( +\d+\.\d%){{4}}\n"
        r".*\npaths from 3 random states: .* after 12\nafter iterations +1 +2 +4 +6\n"
        r"from each other, mean( +\d\.\de[+-]\d\d){4}\nfrom each other, max.*\nfrom s\*, mean.*\nfrom s\*, max.*\n"
        r".*\nexits: .*\nleave when +kl <= 0.0005 +latent-diff <= 0.03\niterations, mean( +\d\.\d\d){2}\n"
        r"  token 1 - 2 .*\n  token 3 - 4 .*\n  token 5 - 8 .*\n  token 9 - 16 .*\n  most( +\d){2}\n"
        r"bits, right at the exit .*\nbits, right after 6 .*\n"
        r".*\ntrajectories of 48 tokens, 12 iterations\n +settle +orbit +slide\nshare of tokens( +\d+\.\d%){3}\n"
        r"(iterations to settle .* on average, \d+ at most\n)?"
        r"(  (settles  after|orbit +unrest|slider +unrest) .*\]\n){5}"
        rf".*\n.*inspect_trajectories.png in {run}\n$"
    )
    assert re.search(tables, out, re.DOTALL)
    assert figures(run) == EVERY


def test_inspect_of_a_ttt_prints_the_three_losses_and_draws(here, capsys):
    pytest.importorskip("matplotlib")
    status, out, err = tinyrec(capsys, "inspect", "ttt", "--layer", "1", "--context", "27", "--windows", "3")
    assert (status, err) == (0, "") and max(map(len, out.splitlines())) <= 100
    number = r" +\d+\.\d{3}"
    table = (
        r"ttt-linear, .* step 6, layer 1 of 0 to 1\non the test piece of words: 3 windows of 27, mini-batches of 4\n"
        r"\ninner loss: .*\nmini-batch +1 +2 +4 +6\n"
        rf"at W_0(?P<first>{number}){number * 3}\nbefore its step(?P<before>{number}){number * 3}\n"
        rf"after its step{number * 4}\n\|W - W_0\|, 3 windows{number * 4}\n\ninspect_inner.png in ttt\n$"
    )
    found = re.match(table, out)
    assert found and found["first"].split() == found["before"].split()
    assert figures("ttt") == {"inspect_inner"}
    assert tinyrec(capsys, "inspect", "ttt", "inner", "--context", "4", "--windows", "1")[0] == 0


def test_the_table_of_a_ttt_has_the_means_of_its_losses(here, capsys):
    out = tinyrec(capsys, "inspect", "ttt", "--windows", "2", "--seed", "3")[1]
    run = load_run("ttt/checkpoint.safetensors")
    model = build(run.name, make_config(run.name, **run.config), np.random.default_rng(0))
    restore(model, run.parameters)
    batches = Batches(encode(split_text(load_text("words")).test), 16)
    losses = inner_losses(model, batches.sample(2, streams(3).sampling)[0])
    for name, of_tokens in zip(("at W_0", "before its step", "after its step"), losses, strict=True):
        row = re.search(rf"\n{name} +(.*)\n", out)[1].split()
        assert row == [f"{of_tokens[:, :, n].mean():.3f}" for n in (0, 1, 3)]


def test_one_part_alone_and_the_same_again_but_for_the_seed(here, capsys):
    status, out, err = tinyrec(capsys, "inspect", "text/checkpoint.safetensors", "exits", *LOOK)
    assert (status, err) == (0, "") and "exits:" in out and "paths" not in out
    assert figures("text") <= {"inspect_exits"}
    assert tinyrec(capsys, "inspect", "text", "exits", *LOOK)[1] == out
    assert tinyrec(capsys, "inspect", "text", "exits", *LOOK, "--seed", "1")[1] != out


def test_another_length_and_a_single_iteration(here, capsys):
    status, out, err = tinyrec(capsys, "inspect", "parity", "--recurrence", "1", "--windows", "1", "--context", "3")
    assert (status, err) == (0, "") and "1 windows of 3, up to 1 iterations" in out
    assert re.search(r"after iterations +1\n", out) and "  token 1 - 1 " in out


def test_the_last_iteration_and_the_exits_agree_on_what_is_said(here, capsys):
    """Both tables have bits after the last iteration, from the same start."""
    look = ["--recurrence", "60", "--windows", "20"]
    last = re.search(r"bits per byte.* (\S+)\n", tinyrec(capsys, "inspect", "text", "iterations", *look)[1])[1]
    exits = tinyrec(capsys, "inspect", "text", "exits", *look)[1]
    assert last == re.search(r"right after 60 +(\S+)", exits)[1]


def test_without_matplotlib_the_tables_are_there(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = tinyrec(capsys, "inspect", "parity", *LOOK)
    assert (status, err) == (0, "") and "trajectories of" in out
    assert out.endswith("\nfigures need matplotlib: pip install 'tinyrec[plot]'\n") and figures("parity") == set()


MISTAKES = {
    "inspect": "the following arguments are required: RUN",
    "inspect nowhere": "nowhere holds no run",
    "inspect hawk": "hawk holds a hawk, .*recurrent depth; `tinyrec info hawk` and `tinyrec eval hawk` tell about any",
    "inspect text inner": "text holds a recurrent-depth, which has no inner to inspect, only iterations, paths, exits",
    "inspect text --layer 0": "--layer is for TTT, this is a recurrent-depth",
    "inspect ttt paths": "ttt holds a ttt-linear, which has no paths to inspect, only inner",
    "inspect ttt --recurrence 64": "--recurrence is for models of recurrent depth, this is a ttt-linear",
    "inspect ttt --layer 2": "--layer takes 0 to 1, got 2",
    "inspect ttt --layer -1": "--layer takes 0 or more, got -1",
    "inspect ttt --context 3": "--context takes at least a mini-batch, 4, got 3",
    "inspect text exit": "invalid choice: 'exit'",
    "inspect text --recurrence 0": "--recurrence takes 1 or more, got 0",
    "inspect text --windows -1": "--windows takes 1 or more, got -1",
    "inspect text --context 0": "--context takes 1 or more, got 0",
    "inspect text --seed -1": "--seed takes 0 or more, got -1",
    "inspect text --context 99999": "are too few for windows of 99999",
    "inspect text --recurence 3": "unknown option '--recurence'; did you mean '--recurrence'?",
    "eval hawk --recurrence 4": "--recurrence is for models of recurrent depth, this is a hawk",
    "eval text --recurrence 0": "--context and --recurrence take 1 or more",
    "eval text --recurrence 2 --recurrence 4 --context 8 --context 16": "are compared for one window length",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_sentence(line, here, capsys):
    before = sorted(Path().rglob("*"))
    status, out, err = tinyrec(capsys, *line.split())
    assert (status, out) == (2, "")
    assert re.match(f"tinyrec: .*{MISTAKES[line]}".replace("?", r"\?"), err) and err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_figures_that_cannot_be_written_end_with_a_sentence(here, capsys):
    pytest.importorskip("matplotlib")
    Path("text/inspect_paths.png").mkdir()
    status, out, err = tinyrec(capsys, "inspect", "text", *LOOK)
    assert status == 2 and err.count("\n") == 1 and "inspect_paths.png: Is a directory" in err
    assert "from s*, max" in out and figures_of_files("text") == {"inspect_iterations"}


def figures_of_files(run: str) -> set[str]:
    return {path.stem for path in Path(run).glob("*.png") if path.is_file()}


def test_small_things():
    assert [doubling(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    assert ranges(24) == [(0, 3), (3, 6), (6, 12), (12, 24)] and ranges(1) == [(0, 1)] and ranges(5)[-1] == (2, 5)
    text = np.frombuffer(b"a line\nand more", np.uint8)
    assert in_context(text, 7, "byte", 4) == "...ine\\n[a]" and in_context(text, 1, "byte", 4) == "a[ ]"
    assert in_context(np.array([1, 0, 12]), 2, "token", 5) == "1 0 [12]"
    kind = np.array([["settles", "orbit", "slider"], ["settles", "orbit", "settles"]])
    unrest = np.array([[0.0, 0.3, 0.9], [0.01, 0.5, 0.0]])
    order = by_restlessness(Habits(kind, unrest, unrest, np.array([[3, 9, 9], [8, 9, 4]])))
    assert order == [(1, 1), (0, 1), (0, 2), (1, 0), (1, 2), (0, 0)]


# --- eval -------------------------------------------------------------------------------------------------------------


def test_eval_by_iterations(here, capsys):
    usual = tinyrec(capsys, "eval", "text", "--bytes", "300")[1]
    assert "windows of 16" in usual and "windows of 64" in usual and "iterations: 3, and about 3 in training" in usual
    assert tinyrec(capsys, "eval", "text", "--bytes", "300", "--recurrence", "3")[1] == usual
    once = tinyrec(capsys, "eval", "text", "--bytes", "300", "--recurrence", "1")[1]
    assert "windows of 64" in once and all_row(once) != all_row(usual)

    several = ["--recurrence", "3", "--recurrence", "1", "--recurrence", "20"]
    status, out, err = tinyrec(capsys, "eval", "text", "--bytes", "300", *several)
    assert (status, err) == (0, "") and re.search(r"bits per byte +r = 1 +r = 3 +r = 20\ntoken 1 - 16 ", out)
    assert all_row(out)[:2] == [all_row(once)[0], all_row(usual)[0]]
    status, out, err = tinyrec(capsys, "eval", "parity", *several, "--context", "20")
    assert (status, err) == (0, "") and len(re.findall(r"\(\d+\.\d%\)", out)) == 3 * 3


def all_row(out: str) -> list[str]:
    return re.search(r"\nall +(.*)\n", out)[1].split()


# --- train, info, plot ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["text", "parity"])
def test_training_shows_iterations_and_states(run, trained):
    lines = trained[1][run].splitlines()
    assert max(map(len, lines)) <= 100
    assert re.match(r"memory of a training step: about [\d.]+ MB, [\d.]+ MB for each of 4 sequences$", lines[1])
    header = next(i for i, line in enumerate(lines) if "tokens/s" in line)
    assert lines[header - 1].endswith("after r iterations:") and re.search(r" r   corr    resid ", lines[header])
    records = [json.loads(line) for line in (trained[0] / run / "metrics.jsonl").read_text().splitlines()]
    logged = {int(line[:6]): line for line in lines[header + 1 :] if re.match(r" +\d+ +\d\.\d{3}", line)}
    assert list(logged) == [2, 3, 4, 6]
    for step, line in logged.items():
        record = records[step - 1]
        assert re.search(rf" {record['iterations']:.0f} ", line)
        told = "state_correlation" in record
        assert told == (step != 3)  # a validation that is no line of the log
        assert not told or f"{record['state_correlation']:7.3f}{record['residual']:9.1e}" in line
    by_r = [line for line in lines if "valid, first batch, by r" in line]
    assert len(by_r) == 2 and re.findall(r" (\d+): \d\.\d{3}", by_r[0]) == ["1", "4", "8", "16", "64"]
    assert f"64: {records[5]['valid_bits_r64']:.3f}" in by_r[1]
    assert lines[-2].endswith(f"inspect {run}")


def test_training_of_another_model_has_no_such_columns(trained):
    lines = trained[1]["hawk"].splitlines()
    assert lines[1].startswith("memory of a training step: about") and max(map(len, lines)) <= 80
    assert not re.search("corr|by r|inspect", trained[1]["hawk"])


def test_a_table_tells_of_a_step_without_measurements():
    table = Table("byte", {}, monitored=True)
    record = {"step": 1, "bits": 4.0, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 10.0, "seconds": 2.0}
    record |= {"iterations": 9.5, "valid_bits_r1": 3.0, "valid_bits_r16": 2.5, "valid_accuracy_r1": 0.5}
    table.add(record)
    assert len(table.line(record)) == len(table.header()[1])
    assert bits_by_iterations(record) == {1: 3.0, 16: 2.5}
    assert table.by_iterations(record)[0].split("by r")[1].split() == ["1:", "3.000", "16:", "2.500"]
    assert table.by_iterations({"bits": 4.0}) == []


def test_memory_counts_the_recorded_iterations_and_leaves_no_trace():
    def memory(**options):
        config = make_config("recurrent-depth", d_model=32, **options)
        return step_memory(build("recurrent-depth", config, np.random.default_rng(0)), 8, 64)

    few, many, much = memory(grad_steps=2), memory(grad_steps=8), memory(grad_steps=2, mean_steps=64)
    assert many.sequence > 2 * few.sequence and abs(much.sequence / few.sequence - 1) < 0.05
    model = build("lstm", make_config("lstm", d_model=8), np.random.default_rng(0))
    found = step_memory(model, 8, 16)
    size = sum(p.data.nbytes for _, p in parameters(model))
    assert found.fixed == 4 * size and found.total == found.fixed + 8 * found.sequence and found.sequence > 0
    assert all(p.grad is None for _, p in parameters(model))
    assert [megabytes(size) for size in (123, 1_234_567, 98_765_432)] == ["0.0 MB", "1.2 MB", "99 MB"]


def test_info_says_that_memory_does_not_depend_on_the_iterations(capsys):
    status, out, _ = tinyrec(capsys, "info", "recurrent-depth", "--context", "16", *SIZE)
    assert status == 0 and "for any number of iterations: the last 2 are recorded" in out
    assert "any number of iterations" not in tinyrec(capsys, "info", "lstm", "--context", "16")[1]


def test_plot_has_a_panel_of_iterations(here, capsys):
    pytest.importorskip("matplotlib")
    heights = {}
    for run in ("text", "parity", "hawk"):
        assert tinyrec(capsys, "plot", run) == (0, f"{run}/loss.png\n", "")
        heights[run] = int.from_bytes(Path(run, "loss.png").read_bytes()[20:24], "big")  # of the PNG's header
    assert heights["text"] == heights["parity"] > 2 * heights["hawk"]
