"""What surrounds a step on a GPU: checkpoints, the commands, what is said when numbers break, the other optimizer."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from tinyrec import checkpoint
from tinyrec.cli import main
from tinyrec.cli.models import load_model, load_state
from tinyrec.evaluate import evaluate
from tinyrec.models import make_config
from tinyrec.nn import parameters
from tinyrec.optim import clip_by_global_norm
from tinyrec.parallel import loss_and_grads
from tinyrec.train import Options, TrainingError, open_source, start, train

HAWK = dict(d_model=8, d_rnn=8, n_layers=1, n_heads=2)


def options(device: str = "gpu", **given) -> Options:
    small = dict(task="copy:items=3,vocab=5", steps=4, batch=2, context=10, warmup=1, valid_every=2, device=device)
    return Options(**small | given)


def fresh(opts: Options, name: str = "hawk", **sizes):
    return start(name, make_config(name, vocab_size=open_source(opts).vocab_size, **(sizes or HAWK)), opts)


def test_a_cut_run_goes_on_with_the_very_same_losses(cupy, tmp_path):
    opts = options()
    whole = [r["loss"] for r in train(fresh(opts), open_source(opts), opts)]
    state = fresh(opts)
    first = [r["loss"] for r in itertools.islice(train(state, open_source(opts), opts), 2)]
    checkpoint.save_run(tmp_path / "x", state.model, state.optimizer, state.step, state.data_rng)
    saved = checkpoint.load_run(tmp_path / "x")
    rest = [r["loss"] for r in train(load_state(saved, opts), open_source(opts), opts)]
    assert first + rest == whole
    for (name, p), (_, q) in zip(parameters(state.model), parameters(load_model(saved)), strict=True):
        assert isinstance(p.data, cupy.ndarray) and np.array_equal(p.data.get(), q.data), name


def test_the_commands(cupy, tmp_path, capsys):
    """Trained on the GPU, gone on with there, evaluated there and on the host, as the commands have it."""
    run = str(tmp_path / "run")
    sizes = [word for key, value in HAWK.items() for word in (f"--model.{key}", str(value))]
    task = ["--task", "copy:items=3,vocab=5", "--context", "10", "--batch", "2", "--device", "gpu"]
    assert main(["train", "hawk", *task, "--steps", "2", "--warmup", "1", "--run", run, *sizes]) == 0
    assert main(["train", "--resume", "--run", run, "--steps", "4"]) == 0
    capsys.readouterr()
    tables = []
    for device in ("gpu", "cpu"):
        assert main(["eval", run, "--device", device]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] and "guess" in tables[0]
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines()]
    opts = options(steps=2)
    expected = [r["loss"] for r in train(fresh(opts), open_source(opts), opts)]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert [r["loss"] for r in records[:2]] == pytest.approx(expected, rel=1e-6)


def test_generate_writes_on_the_gpu_what_it_writes_on_the_host(cupy, tmp_path, capsys):
    (tmp_path / "text").write_text("to be or not to be, that is the question. " * 60)
    run, data = str(tmp_path / "run"), ["--data", str(tmp_path / "text"), "--context", "10", "--batch", "2"]
    sizes = [word for key, value in HAWK.items() for word in (f"--model.{key}", str(value))]
    assert main(["train", "hawk", *data, "--steps", "2", "--warmup", "1", "--run", run, *sizes]) == 0
    capsys.readouterr()
    texts = []
    for device in ("gpu", "cpu"):
        assert main(["generate", run, "--tokens", "20", "--prompt", "be", "--device", device]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and len(texts[0]) >= 20


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_stops_the_run_and_names_the_op(cupy, value):
    opts = options()
    state = fresh(opts)
    records = train(state, open_source(opts), opts)
    next(records)
    name, p = next((name, p) for name, p in parameters(state.model) if "norm" in name)
    p.data[0] = value
    before = state.optimizer.state()
    with pytest.raises(TrainingError, match=r"stopped at step 2, loss nan.*op '\w+' gave NaN.*" + name):
        next(records)
    assert state.step == 1
    for key, array in state.optimizer.state().items():
        np.testing.assert_array_equal(array, before[key])


def test_a_token_that_does_not_exist_is_not_overlooked(cupy):
    """NumPy refuses it. A GPU is not asked, and CuPy would read another row of the table."""
    opts = options()
    model = fresh(opts).model
    tokens, targets = open_source(opts).sample(2, np.random.default_rng(0))
    for wrong in (-1, model.config.vocab_size):
        tokens[1, 2] = wrong
        assert math.isnan(float(loss_and_grads(model, tokens, np.where(targets < 0, 0, targets))))
    tokens[1, 2] = 0
    assert math.isfinite(float(loss_and_grads(model, tokens, targets)))
    targets[0, -1] = model.config.vocab_size
    assert math.isnan(float(loss_and_grads(model, tokens, targets)))


def test_training_stops_at_a_token_that_does_not_exist(cupy):
    opts = options()
    source, state = open_source(opts), fresh(opts)
    sample = source.sample

    def wrong(batch, rng):
        tokens, targets = sample(batch, rng)
        tokens[0, 0] = 99
        return tokens, targets

    source.sample = wrong
    with pytest.raises(TrainingError, match=r"stopped at step 1, loss nan.*op 'embedding' gave NaN"):
        next(train(state, source, opts))


def test_huginns_adam(cupy):
    runs = {}
    for device in ("gpu", "cpu"):
        opts = options(device, optimizer="huginn", weight_decay=4e-5, threads=1)
        runs[device] = [r["loss"] for r in train(fresh(opts), open_source(opts), opts)]
    assert runs["gpu"] == pytest.approx(runs["cpu"], rel=2e-5)


def test_clipping(cupy):
    opts = options()
    model = fresh(opts).model
    loss_and_grads(model, *open_source(opts).sample(2, np.random.default_rng(0)))
    norm = clip_by_global_norm(parameters(model), 0.1)
    assert norm > 0.1 and clip_by_global_norm(parameters(model), math.inf) == pytest.approx(0.1, rel=1e-5)


def test_a_validation_waits_once_for_each_batch(double, tables):
    opts = options()
    state, source = fresh(opts), open_source(opts)
    batches = [source.sample(2, np.random.default_rng(i)) for i in range(3)]
    tables.waits.clear()
    evaluate(state.model, batches, device="gpu")
    assert len(tables.waits) == 3, tables.waits


@pytest.mark.parametrize("accumulate", [1, 3])
def test_batches_that_make_one_update_are_waited_for_together(double, tables, accumulate):
    opts = options(accumulate=accumulate, valid_every=100)
    records = train(fresh(opts), open_source(opts), opts)
    tables.waits.clear()
    next(records)
    assert len(tables.waits) == 1, tables.waits


def test_what_is_watched_while_training_is_waited_for_together(double, tables):
    opts = options(log_every=1, valid_every=100)
    model = dict(d_model=8, n_heads=2, d_mlp=7, mean_steps=2, grad_steps=2)
    records = train(fresh(opts, "recurrent-depth", **model), open_source(opts), opts)
    tables.waits.clear()
    assert "state_correlation" in next(records)
    assert len(tables.waits) == 2, tables.waits
