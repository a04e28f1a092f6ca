"""The command line: runs from start to figure, runs that are cut off, and the sentence for each mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinyrec import checkpoint, cli
from tinyrec.cli.console import Table, clock
from tinyrec.cli.eval import ranges
from tinyrec.cli.parser import PRESETS, toml_value
from tinyrec.cli.plot import smoothed
from tinyrec.cuda.host import CompilerError
from tinyrec.inspect import check_model
from tinyrec.models import MODELS

ROOT = Path(__file__).parents[1]
TEXT = b"".join(b"%d green bottles hanging on the wall, and %d more.\n" % (i, i * i) for i in range(300))
TINY = "--model.d_model 8 --model.d_rnn 8 --model.n_layers 1 --model.n_heads 2".split()
QUICK = "--context 16 --batch 2 --steps 6 --warmup 2 --threads 1".split()
QUICK += "--valid-every 3 --valid-bytes 200 --log-every 2".split()
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in a folder of its own, with a text in it."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_bytes(TEXT)


def tinyrec(capsys, *args: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of one command."""
    status = cli.main(list(args))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def train(capsys, *more: str, run: str = "run") -> tuple[int, str, str]:
    return tinyrec(capsys, "train", "hawk", "--data", "text", "--run", run, *TINY, *QUICK, *more)


def metrics(run: str = "run") -> list[dict]:
    """The records without what depends on the clock."""
    records = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{key: r[key] for key in r if "second" not in key} for r in records]


# --- the whole way ----------------------------------------------------------------------------------------------------


def test_from_training_to_a_figure(capsys):
    pytest.importorskip("matplotlib")
    status, out, err = train(capsys)
    assert status == 0 and err == ""
    assert [r["step"] for r in metrics()] == [1, 2, 3, 4, 5, 6]
    lines = out.splitlines()
    header = next(line for line in lines if "tokens/s" in line)
    assert re.search(r"valid +\d-gram +xz", header)  # the anchors stand beside the model's bits, in every line
    logged = [line.split() for line in lines if re.match(r" +\d+ +\d\.\d{3}", line)]
    assert [line[0] for line in logged] == ["2", "3", "4", "6"]
    xz = json.loads(Path("run/anchors.json").read_text())["valid"]["xz"]
    assert all(f"{xz:.3f}" in line for line in logged)
    assert max(map(len, lines)) <= 80
    assert re.search(r"held out: \d\.\d+ bits per byte, beside \d-gram \d.\d+, xz", out)

    status, out, err = tinyrec(capsys, "generate", "run", "--prompt", "99 gr", "--tokens", "20", "--out", "sample")
    assert (status, err) == (0, "") and out.startswith("99 gr")
    assert out == Path("sample").read_text() + "\n"
    assert tinyrec(capsys, "generate", "run", "--prompt", "99 gr", "--tokens", "20")[1] == out
    assert tinyrec(capsys, "generate", "run", "--prompt", "99 gr", "--tokens", "20", "--seed", "1")[1] != out

    status, out, err = tinyrec(capsys, "eval", "run", "--bytes", "300")
    assert (status, err) == (0, "") and "windows of 16" in out and "windows of 64" in out
    assert "test piece of text" in out and re.search(r"\ntoken 33 - 64 +\d+\.\d{3}\nall ", out)
    assert re.search(r"beside \d-gram \d+\.\d{3}, xz \d+\.\d{3}\n$", out)
    assert "on text, 17 000 bytes"[:8] in tinyrec(capsys, "eval", "run", "--data", "text", "--context", "32")[1]

    assert tinyrec(capsys, "plot", "run") == (0, "run/loss.png\n", "")
    assert Path("run/loss.png").read_bytes().startswith(b"\x89PNG")

    status, out, err = tinyrec(capsys, "info", "run")
    assert (status, err) == (0, "") and "step 6 of 6" in out and "bytes" in out


SMALL = "--model.d_model 8 --model.n_layers 2".split()


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.family != "griffin"])
def test_every_other_model_goes_the_whole_way(name, capsys):
    """Train on text, cut and resumed; write; be evaluated; and a task."""
    size = SMALL[:2] if name == "recurrent-depth" else SMALL  # it has three kinds of layers
    if name.startswith("ttt"):
        size = [*size, "--model.n_heads", "2", "--backbone", "transformer"]  # heads at least 4 wide
    status, out, err = tinyrec(capsys, "train", name, "--data", "text", "--run", "run", *size, *QUICK)
    assert (status, err) == (0, "") and f"{name}, " in out and len(metrics()) == 6
    assert (" inspect run" in out) == name.startswith(("ttt", "recurrent-depth"))
    status, _, err = tinyrec(capsys, "train", "--resume", "--run", "run", "--steps", "8")
    assert (status, err) == (0, "") and len(metrics()) == 8
    status, out, err = tinyrec(capsys, "generate", "run", "--prompt", "99 gr", "--tokens", "20")
    assert (status, err) == (0, "") and out.startswith("99 gr")
    assert tinyrec(capsys, "eval", "run", "--bytes", "200")[0] == 0
    assert tinyrec(capsys, "info", "run")[0] == 0
    assert tinyrec(capsys, "info", name)[0] == 0
    status, out, err = tinyrec(capsys, "train", name, "--task", "copy", "--run", "copy", *size, *QUICK)
    assert (status, err) == (0, "") and "held out" in out


def test_host_kernels_train_the_same_model(capsys, monkeypatch):
    begin = ["train", "rwkv", "--data", "text", *SMALL, *QUICK]
    assert tinyrec(capsys, *begin, "--run", "numpy")[0] == 0
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        assert tinyrec(capsys, *begin, "--run", "host", "--kernels", "host")[0] == 0
        numpy, host = ([record["loss"] for record in metrics(run)] for run in ("numpy", "host"))
        assert host == pytest.approx(numpy, rel=1e-4)

    def missing():
        raise CompilerError("running CUDA kernels on the CPU needs a C++ compiler")

    monkeypatch.setattr("tinyrec.cli.train.compiler", missing)
    status, _, err = tinyrec(capsys, *begin, "--run", "none", "--kernels", "host")
    assert status == 2 and err.count("\n") == 1 and "needs a C++ compiler" in err and not Path("none").exists()


def test_a_table_of_places_limits_what_is_asked_for(capsys):
    short = ["--model.max_length", "20", "--model.window", "4"]
    begin = ["train", "aft", "--data", "text", "--run", "run", *SMALL, *short]
    status, _, err = tinyrec(capsys, *begin, "--context", "21")
    assert status == 2 and err.count("\n") == 1 and "at most max_length = 20 tokens, asked for are 21" in err
    assert not Path("run").exists()
    assert tinyrec(capsys, *begin, *QUICK)[0] == 0
    status, out, _ = tinyrec(capsys, "eval", "run", "--bytes", "200")
    assert status == 0 and "windows of 20" in out  # not 4 * 16
    for line in (["eval", "run", "--context", "21"], ["generate", "run", "--prompt", "99 gr", "--tokens", "17"]):
        status, _, err = tinyrec(capsys, *line)
        assert status == 2 and "asked for are 21" in err
    status, out, _ = tinyrec(capsys, "generate", "run", "--prompt", "99 gr", "--tokens", "16")
    assert status == 0 and len(out) >= 5


def test_a_task_is_trained_and_evaluated(capsys):
    status, out, _ = tinyrec(capsys, "train", "hawk", "--task", "selective-copy:items=2", "--run", "run", *TINY, *QUICK)
    assert status == 0 and "bits per token" in out and re.search(r"beside guess 3\.000; \d+\.\d% right", out)
    status, out, err = tinyrec(capsys, "eval", "run")
    assert (status, err) == (0, "") and "windows of 64" in out and "guess 3.000" in out
    status, _, err = tinyrec(capsys, "generate", "run")
    assert status == 2 and "no text in it" in err


def test_the_anchors_are_computed_once(capsys, monkeypatch):
    train(capsys)
    monkeypatch.setattr("tinyrec.cli.runs.anchors", lambda *texts: pytest.fail("computed again"))
    assert tinyrec(capsys, "train", "--resume", "--run", "run", "--steps", "7")[0] == 0


def test_a_preset_gives_way_to_the_command_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "presets").mkdir()
    own = 'data = "text"\nsteps = 5\nlr = 0.125\n[model]\nd_rnn = 4\nn_heads = 1\n'
    (tmp_path / "presets/own.toml").write_text(own)
    monkeypatch.setattr("tinyrec.cli.parser.PRESETS", tmp_path / "presets")
    args = ["train", "hawk", "--preset", "own", "--run", "run", *TINY, *QUICK, "--steps", "2"]
    assert tinyrec(capsys, *args)[0] == 0
    saved = checkpoint.load_run("run/checkpoint.safetensors")
    assert (saved.extra["options"]["lr"], saved.step) == (0.125, 2)
    assert (saved.config["d_rnn"], saved.config["n_heads"]) == (8, 2)


def test_the_demo_leaves_a_text_a_figure_and_a_checkpoint_and_can_be_called_again(capsys, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "presets").mkdir()
    small = 'data = "text"\nsteps = 4\ncontext = 16\nvalid_bytes = 200\n[model]\nd_model = 8\nd_rnn = 8\nn_heads = 2\n'
    (tmp_path / "presets/demo.toml").write_text(small)
    monkeypatch.setattr("tinyrec.cli.parser.PRESETS", tmp_path / "presets")
    status, out, err = tinyrec(capsys, "demo")
    assert (status, err) == (0, "") and "beside" in out
    assert "$ tinyrec train hawk --preset demo --run runs/demo\n" in out
    for name in ("sample.txt", "loss.png", "checkpoint.safetensors"):
        assert Path("runs/demo", name).stat().st_size > 0
    status, out, err = tinyrec(capsys, "demo")
    assert (status, err) == (0, "") and "all 4 steps are done" in out


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.toml")))
def test_every_preset_can_be_loaded(preset):
    from tinyrec.cli.models import model_config
    from tinyrec.cli.parser import load_preset
    from tinyrec.train import Options

    options, of_model = load_preset(preset, Options)
    assert Options(**options).steps > 0
    name = "recurrent-depth" if preset in ("parity", "chase") else "hawk"
    assert model_config(name, of_model, 256).vocab_size == 256


# --- cut off and gone on with -----------------------------------------------------------------------------------------


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "tinyrec", *args]


def start_training(steps: int) -> subprocess.Popen:
    args = ["train", "hawk", "--data", "text", "--run", "cut", *TINY, *QUICK, "--steps", str(steps)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command(*args, "--save-every", "7"), env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)


def wait_for_steps(process: subprocess.Popen, steps: int) -> None:
    """Until so many records are there, or the run has ended."""
    path, until = Path("cut/metrics.jsonl"), time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") >= steps) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_killed_run_goes_on_bit_for_bit(capsys):
    steps = "150"
    train(capsys, "--steps", steps, run="whole")
    for wait in (2, 20, 45):  # killed three times, at whatever the process is doing then
        if not Path("cut").exists():
            process = start_training(int(steps))
        else:
            again = command("train", "--resume", "--run", "cut")
            process = subprocess.Popen(again, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        wait_for_steps(process, wait)
        process.kill()
        process.communicate()
    assert 0 < len(metrics("cut")) < int(steps)
    with Path("cut/metrics.jsonl").open("a") as file:
        file.write('{"step": 99999, "lo')  # a line cut in two
    assert tinyrec(capsys, "train", "--resume", "--run", "cut")[0] == 0
    assert metrics("cut") == metrics("whole")
    ours, theirs = (checkpoint.load_run(f"{run}/checkpoint.safetensors") for run in ("cut", "whole"))
    for name, array in theirs.parameters.items():
        np.testing.assert_array_equal(ours.parameters[name], array)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_saves_and_says_how_to_go_on():
    process = start_training(100_000)
    wait_for_steps(process, 10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    step = len(metrics("cut"))
    assert checkpoint.load_run("cut/checkpoint.safetensors").step == step
    assert f"stopped after step {step} of 100000, all is saved" in out
    told = out.strip().splitlines()[-1].split()
    done = subprocess.run([*told, "--steps", str(step + 1)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 0 and len(metrics("cut")) == step + 1


def test_a_finished_run_can_be_made_longer(capsys):
    train(capsys)
    status, out, _ = tinyrec(capsys, "train", "--resume", "--run", "run")
    assert status == 0 and "all 6 steps are done" in out
    assert tinyrec(capsys, "train", "--resume", "--run", "run", "--steps", "8")[0] == 0
    assert [r["step"] for r in metrics()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tinyrec(capsys, "info", "run")[1].startswith("hawk in run, step 8 of 8")


def test_nan_stops_with_the_name_of_the_op_and_leaves_a_good_checkpoint(capsys):
    status, _, err = train(capsys, "--lr", "1e30", "--warmup", "0", "--save-every", "1")
    assert status == 1 and err.count("\n") == 1
    assert re.match(r"tinyrec: stopped at step \d+, .*op '\w+' gave NaN or infinity", err)
    assert "the last good checkpoint is run/" in err
    saved = checkpoint.load_run("run/checkpoint.safetensors")
    assert all(np.isfinite(array).all() for array in saved.parameters.values())


def test_a_full_disk_ends_with_a_sentence_and_the_old_checkpoint(capsys, monkeypatch):
    train(capsys)
    before = Path("run/checkpoint.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = tinyrec(capsys, "train", "--resume", "--run", "run", "--steps", "8")
    assert status == 2 and err.count("\n") == 1 and "No space left on device" in err
    assert Path("run/checkpoint.safetensors").read_bytes() == before


# --- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "trian": "there is no command 'trian'.*did you mean 'train'?",
    "train": "which model",
    "train hwak": "there is no model 'hwak'.*did you mean 'hawk'?",
    "train hawk --stpes 5": "unknown option '--stpes'; did you mean '--steps'?",
    "train hawk --ste 5": "unknown option '--ste'",
    "train hawk --steps x": "--steps: invalid int value: 'x'",
    "train hawk --steps": "--steps: expected one argument",
    "train hawk --steps 0": "steps must be a number, more than 0, got 0",
    "train hawk --schedule cosin": "invalid choice: 'cosin'",
    "train hawk --task copi": "there is no task 'copi'.*did you mean 'copy'?",
    "train hawk --task copy:itens=2": "no option 'itens'.*did you mean 'items'?",
    "train hawk --task copy --data text": "--data and --task exclude each other",
    "train hawk --preset dmo": "there is no preset 'dmo'.*did you mean 'demo'?",
    "train hawk --preset small": "'small' is a preset of the model: --model.preset small",
    "train hawk --model.d_modle 8": "'d_modle'.*did you mean 'd_model'?",
    "train hawk --model.d_model": "--model.d_model needs a value",
    "train hawk --model.d_model x": "--model.d_model takes a value of type int, got 'x'",
    "train hawk --backbone mamba": "unknown option of hawk 'backbone'; known: vocab_size, d_model",
    "train ttt-mlp --backbone": "--backbone needs a value",
    "train ttt-mlp --backbone lstm": "backbone must be 'transformer' or 'mamba', got 'lstm'",
    "train hawk --model.vocab_size 9": "vocab_size is not chosen",
    "train hawk --data shakespear": "did you mean 'shakespeare'?",
    "train hawk --data empty": "the file 'empty' is empty",
    "train hawk --data short": "a context of 256 needs at least 257",
    "train hawk --data text --context 16 --run .": "exists and holds something else",
    "train --resume": "--resume needs --run FOLDER",
    "train --resume --run nowhere": "nowhere holds no run",
    "generate nowhere": "nowhere holds no run",
    "generate": "the following arguments are required: RUN",
    "eval text": "text holds no run",
    "plot nowhere": "nowhere holds no run",
    "info hwak": "there is no model 'hwak'",
    "check sotfmax": "did you mean 'softmax'?",
    "demo --rnu x": "unknown option '--rnu'; did you mean '--run'?",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_sentence(line, capsys):
    Path("empty").touch()
    Path("short").write_bytes(TEXT[:100])
    before = sorted(Path().rglob("*"))
    status, out, err = tinyrec(capsys, *line.split())
    assert (status, out) == (2, "")
    assert re.match(f"tinyrec: .*{MISTAKES[line]}".replace("?", r"\?"), err) and err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_mistakes_with_a_run_that_is_there(capsys):
    train(capsys)
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    for args, complaint in {
        ("train", "hawk", "--data", "text", "--context", "16", "--run", "run"): "already holds a run; go on",
        ("train", "griffin", "--resume", "--run", "run"): "is one of hawk, not of griffin",
        ("train", "--resume", "--run", "run", "--lr", "1"): "was started with lr = 0.002, which cannot change",
        ("train", "--resume", "--run", "run", "--model.d_model", "4"): "keeps the preset and the model",
        ("generate", "run", "--temperature", "-1"): "temperature must be 0",
        ("generate", "run", "--prompt", ""): "the prompt is empty",
        ("generate", "run", "more"): "one argument too many: 'more'",
        ("eval", "run", "--context", "9999"): "windows of 9999 need at least 10000",
        ("eval", "run", "--context", "0"): "--context and --recurrence take 1 or more",
    }.items():
        status, _, err = tinyrec(capsys, *args)
        assert status == 2 and complaint in err and err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    Path("text").write_bytes(TEXT.replace(b"green", b"brown"))
    status, _, err = tinyrec(capsys, "train", "--resume", "--run", "run", "--steps", "8")
    assert status == 2 and "the text of text has changed" in err


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda content: content[: len(content) // 2], "cut short or damaged"),
        (lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], "damaged: the checksum of tensor"),
        (lambda content: b"", "is empty"),
        (lambda content: TEXT, "not a safetensors file"),
    ],
)
@pytest.mark.parametrize("line", ["generate run", "eval run", "train --resume --run run --steps 9", "info run"])
def test_a_damaged_checkpoint_is_found(line, damage, complaint, capsys):
    train(capsys)
    path = Path("run/checkpoint.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    status, _, err = tinyrec(capsys, *line.split())
    assert status == 2 and complaint in err and err.count("\n") == 1


def test_a_checkpoint_of_another_model_is_refused(capsys):
    train(capsys)
    tensors, meta = checkpoint.load("run/checkpoint.safetensors")
    checkpoint.save("run/checkpoint.safetensors", tensors, meta | {"name": "lost"})
    assert "holds a model 'lost'" in tinyrec(capsys, "generate", "run")[2]
    checkpoint.save("run/checkpoint.safetensors", tensors, meta | {"config": meta["config"] | {"d_model": 16}})
    status, _, err = tinyrec(capsys, "generate", "run")
    assert status == 2 and "checkpoint of another model" in err


def test_no_gpu_is_said_before_anything_is_written(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    status, _, err = train(capsys, "--device", "gpu")
    assert status == 2 and "CuPy is not installed" in err and not Path("run").exists()
    train(capsys)
    for command in ("eval", "generate"):
        status, _, err = tinyrec(capsys, command, "run", "--device", "gpu")
        assert status == 2 and err.count("\n") == 1 and "CuPy is not installed" in err


def test_no_matplotlib_is_said(capsys, monkeypatch):
    train(capsys)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert tinyrec(capsys, "plot", "run") == (2, "", "tinyrec: drawing needs matplotlib: pip install 'tinyrec[plot]'\n")


def test_no_benchmarks_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tinyrec.cli.bench.REPOSITORY", tmp_path)
    status, _, err = tinyrec(capsys, "bench", "--list")
    assert status == 2 and "not installed with the library" in err


def test_bench_hands_its_arguments_on():
    listed = subprocess.check_output(command("bench", "--list"), env=ENVIRONMENT, text=True, timeout=60)
    assert "op_overhead" in listed


# --- small things -----------------------------------------------------------------------------------------------------


def test_help_is_quick_and_loads_nothing_heavy():
    heavy = ["rich", "matplotlib", "tinyrec.data", "tinyrec.train", "tinyrec.cli.train"]
    code = f"import sys, tinyrec.cli; tinyrec.cli.main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.check_output([sys.executable, "-c", code], env=ENVIRONMENT, text=True)
    assert out.endswith("\n[]\n") and all(f"\n  {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    if name == "bench":
        pytest.skip("hands --help on to the benchmarks")
    status, out, _ = tinyrec(capsys, name, "--help")
    assert status == 0 and out.startswith(f"usage: tinyrec {name}")


def test_info_lists_what_there_is(capsys):
    status, out, _ = tinyrec(capsys, "info")
    assert status == 0 and all(word in out for word in (*MODELS, "demo", "shakespeare", "selective-copy", "numpy"))


@pytest.mark.parametrize("name", ["hawk", "transformer"])
def test_info_counts_a_model(name, capsys):
    status, out, _ = tinyrec(capsys, "info", name, "--context", "16", "--batch", "2", *TINY)
    assert status == 0 and re.search(r"embedding +2 048\n", out)
    assert "memory of a training step, batch 2, context 16" in out
    after = [int(n.replace(" ", "")) for n in re.findall(r"tokens +([\d ]+) bytes", out)]
    assert len(after) == 3 and (after[0] == after[2]) == (name == "hawk")  # a cache grows, a recurrent state does not


def test_a_model_too_big_is_not_built(capsys):
    status, out, _ = tinyrec(capsys, "info", "hawk", "--model.preset", "paper-7b")
    assert status == 0 and "million parameters: not built" in out


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_every_parameter_of_every_model(name):
    row = check_model(name)
    assert row.ok and row.first is not None and 0 < row.first < 1e-6


def test_check_prints_a_table_and_fails_when_a_gradient_is_wrong(capsys, monkeypatch):
    from tinyrec.ops import tanh

    status, out, _ = tinyrec(capsys, "check", "tanh")
    assert status == 0 and re.search(r"ops\.\w+\.tanh +op +\de-\d\d +\de-\d\d\n\n1 checked, all right", out)
    right = tanh.op.backward
    monkeypatch.setattr(tanh.op, "backward", lambda g, *saved: right(g, *saved) * 1.0005)
    status, out, _ = tinyrec(capsys, "check", "tanh")
    assert status == 1 and "FAILED" in out and "1 checked, 1 failed" in out


def test_toml_value_reads_what_a_preset_reads():
    texts = "3", "1e-3", "true", '["a", "b"]', "code"
    assert [toml_value(text) for text in texts] == [3, 1e-3, True, ["a", "b"], "code"]


def test_smoothed_is_the_mean_of_a_twentieth_around():
    assert smoothed([4.0, 2.0]).tolist() == [3.0, 3.0]
    assert smoothed([6.0, 3.0, 0.0] * 14).tolist()[:4] == [4.5, 3.0, 3.0, 3.0]


def test_ranges_double_and_cover_the_window():
    assert ranges(100) == [(0, 16), (16, 32), (32, 64), (64, 100)]
    assert ranges(7) == [(0, 7)] and ranges(16) == [(0, 16)]


def test_a_log_line_is_the_mean_since_the_line_before():
    table = Table("byte", {"xz": 2.0})
    record = {"step": 1, "bits": 4.0, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 100.0, "seconds": 2.0}
    table.add(record)
    table.add(record | {"step": 2, "bits": 5.0, "seconds": 6.0, "tokens_per_second": 300.0})
    assert table.line(record | {"step": 2}).split()[:3] == ["2", "4.500", "2.000"]
    assert table.line.__self__.losses == []
    table.add(record)
    assert table.line(record | {"valid_bits": 3.0}).split()[1:4] == ["4.000", "3.000", "2.000"]
    assert (clock(75), clock(3675)) == ("1:15", "1:01:15")
