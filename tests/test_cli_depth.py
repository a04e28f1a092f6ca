"""`tinyrec generate` with a model of recurrent depth: its options, what they write, and a sentence for each mistake."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from tinyrec import checkpoint, cli
from tinyrec.generate import CHUNK
from tinyrec.models.recurrent_depth_decode import DepthDecoder

TEXT = b"".join(b"%d green bottles hanging on the wall, and %d more.\n" % (i, i * i) for i in range(300))
QUICK = "--data text --context 16 --batch 2 --steps 2 --warmup 1 --threads 1 --valid-every 2 --valid-bytes 40".split()
SIZE = "--model.d_model 8 --model.n_heads 2 --model.mean_steps 4".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a text and a run of a model of recurrent depth, whose guesses are now right, now wrong."""
    folder = tmp_path_factory.mktemp("depth")
    (folder / "text").write_bytes(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "recurrent-depth", "--run", "run", *SIZE, *QUICK]) == 0
        tensors, meta = checkpoint.load("run/checkpoint.safetensors")
        rng = np.random.default_rng(0)  # two steps leave it as it began, writing one byte however it thinks
        for name, array in tensors.items():
            if array.ndim == 2:
                tensors[name] = (array + 0.3 * rng.standard_normal(array.shape)).astype(array.dtype)
        checkpoint.save("run/checkpoint.safetensors", tensors, meta)
    return folder


@pytest.fixture
def write(runs, tmp_path, monkeypatch, capsys):
    """write(option, ...) -> (exit status, stdout, stderr) of tinyrec generate."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "run", "run")

    def write(*options: str, run: str = "run", tokens: str = "24", prompt: str = "99 gr") -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(["generate", run, "--prompt", prompt, "--tokens", tokens, *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return write


def text(result):
    status, out, err = result
    assert (status, err) == (0, "")
    return out


GREEDY = ("--temperature", "0", "--start", "zero")


def test_the_options_change_what_is_written_and_the_usual_ones_do_not(write):
    plain = text(write(*GREEDY))
    assert plain.startswith("99 gr") and text(write(*GREEDY, "--recurrence", "4", "--slots", "4")) == plain
    assert text(write(*GREEDY, "--slots", "9")) == plain
    others = [text(write(*GREEDY, *more.split())) for more in ("--recurrence 1", "--slots 1", "--warm-start")]
    assert len({plain, *others}) == 4


def test_the_seed_decides_the_noise(write):
    zero = text(write(*GREEDY))
    noise = [text(write("--temperature", "0", "--recurrence", "1", "--seed", seed)) for seed in "0012"]
    assert noise[0] == noise[1] and len({zero, *noise}) == 4
    usual = text(write())
    assert text(write()) == usual != text(write("--start", "zero"))


def test_an_exit_says_how_long_it_thought(write):
    plain = text(write(*GREEDY, "--recurrence", "20"))
    status, out, err = write(*GREEDY, "--recurrence", "20", "--exit", "kl", "--threshold", "0.1")
    assert status == 0 and out.startswith("99 gr")
    told = re.fullmatch(r"\(iterations per token: (\d+\.\d\d) on average, (\d+) to (\d+)\)\n", err)
    assert told and 1 <= int(told[2]) < int(told[3]) <= 20 and int(told[2]) < float(told[1]) < int(told[3])
    status, out, err = write(*GREEDY, "--recurrence", "20", "--exit", "kl", "--threshold", "-1")
    assert (out, err) == (plain, "(iterations per token: 20.00 on average, 20 to 20)\n")
    status, _, err = write(*GREEDY, "--recurrence", "20", "--exit", "latent-diff", "--threshold", "9")
    assert (status, err) == (0, "(iterations per token: 1.00 on average, 1 to 1)\n")


def test_a_long_prompt_is_not_counted(write, monkeypatch):
    """It is read in several pieces, each with a number of iterations of its own."""
    monkeypatch.setattr("tinyrec.cli.depth.DepthDecoder", Counting)
    prompt = TEXT[: 2 * CHUNK + 9].decode()
    options = (*GREEDY, "--exit", "latent-diff")
    assert write(*options, prompt=prompt, tokens="4")[2] == "(iterations per token: 5.00 on average, 4 to 6)\n"
    assert write(*options, prompt=prompt, tokens="1")[2] == ""  # nothing that it wrote was read


class Counting(DepthDecoder):
    """Says that it thought once about what it read first, twice about what came next, and so on."""

    def _read(self, tokens, state, start):
        found = super()._read(tokens, state, start)
        self.taken[-1] = len(self.taken)
        return found


@pytest.mark.parametrize(
    "options", ["1", "2 --draft-tokens 1", "4 --draft-tokens 7", "9", "1 --recurrence 6", "2 --start zero"]
)
def test_speculation_writes_the_same_text(write, options):
    recurrence = "6" if "--recurrence" in options else "4"
    plain = text(write(*GREEDY, "--recurrence", recurrence))
    status, out, err = write("--temperature", "0", "--draft-recurrence", *options.split())
    assert (status, out) == (0, plain)
    told = re.fullmatch(r"\(24 tokens in (\d+) verifications, (\d+\.\d\d) for each\)\n", err)
    assert told and float(told[2]) == pytest.approx(24 / int(told[1]), abs=0.005)
    if options.startswith("4"):  # each guess is right: one token at the start, then eight at a time
        assert int(told[1]) == 4


def test_a_tolerance_needs_fewer_verifications(write):
    def verifications(tolerance):
        options = ("--temperature", "0", "--draft-recurrence", "1", "--tolerance", tolerance)
        status, _, err = write(*options)
        assert status == 0
        return int(re.search(r"in (\d+) verifications", err)[1])

    assert verifications("1") > verifications("1e-30") == 1 + 5  # 23 more, five at a time


MISTAKES = {
    "--exit kll": "unknown exit criterion 'kll'; did you mean 'kl'?",
    "--exit nothing": "unknown exit criterion 'nothing'; known: kl, minp-kl, entropy-diff, argmax-stability",
    "--threshold 0.1": "a threshold, 0.1, needs an exit criterion: one of kl,",
    "--recurrence 0": "steps and slots must be at least 1, got 0 and 0",
    "--recurrence x": "--recurrence: invalid int value: 'x'",
    "--slots 0": "steps and slots must be at least 1, got 4 and 0",
    "--start one": "--start: invalid choice: 'one'",
    "--recurence 3": "unknown option '--recurence'; did you mean '--recurrence'?",
    "--draft-recurrence 2": "writes the likeliest tokens from a start of zeros, so with --temperature 0",
    "--draft-recurrence 2 --temperature 0.8": "so with --temperature 0",
    "--draft-recurrence 2 --temperature 0 --warm-start": "from a start of zeros, not with --warm-start",
    "--draft-recurrence 2 --temperature 0 --exit kl": "not with --exit",
    "--draft-recurrence 2 --temperature 0 --slots 2": "not with --slots",
    "--draft-recurrence 0 --temperature 0": "of at least 1 and a tolerance in (0, 1], got 24, 4, 0, 4 and 1.0",
    "--draft-recurrence 2 --temperature 0 --tolerance 2": "got 24, 4, 2, 4 and 2.0",
    "--draft-recurrence 2 --temperature 0 --draft-tokens 0": "got 24, 4, 2, 0 and 1.0",
    "--draft-recurrence 2 --temperature 0 --tokens 0": "got 0, 4, 2, 4 and 1.0",
    "--draft-tokens 3": "--draft-tokens is for --draft-recurrence",
    "--tolerance 0.5": "--tolerance is for --draft-recurrence",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_sentence(write, line):
    status, out, err = write(*line.split())
    assert (status, out) == (2, "")
    assert err.startswith("tinyrec: ") and MISTAKES[line] in err and err.count("\n") == 1


def test_other_models_have_no_depth(write, runs):
    shutil.copy(runs / "text", "text")
    small = "--model.d_model 8 --model.d_rnn 8 --model.n_layers 1 --model.n_heads 2".split()
    assert cli.main(["train", "hawk", "--run", "hawk", *small, *QUICK]) == 0
    options = "--recurrence 3|--exit kl|--threshold 1|--slots 2|--warm-start|--start zero|--draft-recurrence 2"
    for line in f"{options}|--draft-tokens 3|--tolerance 0.5".split("|"):
        status, out, err = write(*line.split(), run="hawk")
        assert (status, out) == (2, "")
        assert err == f"tinyrec: {line.split()[0]} is for models of recurrent depth, this is a hawk\n"
    assert text(write(run="hawk")).startswith("99 gr")
