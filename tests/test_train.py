"""The training loop: what it computes, that it can be cut anywhere, and what it says when numbers break."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest

from tinyrec import checkpoint, ops
from tinyrec.cli.models import load_state
from tinyrec.evaluate import evaluate, score
from tinyrec.models import make_config
from tinyrec.nn import parameters
from tinyrec.optim import AdamW
from tinyrec.parallel import loss_and_grads
from tinyrec.tape import Tensor
from tinyrec.train import Options, State, gradients, open_source, parse_task, start, streams, train

WORDS = b"the quick brown fox jumps over the lazy dog and then it sleeps.\n"


class Bigram:
    """The smallest language model: logits (B, T, V) are a row of a table."""

    def __init__(self, vocab: int, dtype: type = np.float32):
        self.table = Tensor(np.zeros((vocab, vocab), dtype), requires_grad=True)

    def __call__(self, tokens):
        return ops.embedding(self.table, tokens)


def options(**given) -> Options:
    small = dict(task="induction", steps=6, batch=3, context=16, warmup=2, valid_every=3, threads=1)
    return Options(**small | given)


def fresh(opts: Options) -> State:
    size = dict(vocab_size=open_source(opts).vocab_size, d_model=8, d_rnn=8, n_layers=1, n_heads=2)
    return start("hawk", make_config("hawk", **size), opts)


def losses(records) -> list[float]:
    return [record["loss"] for record in records]


def test_each_record_says_what_happened_in_its_step():
    opts = options()
    records = list(train(fresh(opts), open_source(opts), opts))
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "valid_bits" in r] == [3, 6]
    assert all(r["bits"] == pytest.approx(r["loss"] / math.log(2)) for r in records)
    assert max(r["lr"] for r in records) == opts.lr
    assert all(r["grad_norm"] > 0 and r["tokens_per_second"] > 0 for r in records)


def test_it_learns():
    opts = options(steps=60, batch=8, lr=2e-2, task="copy:items=2,vocab=4", context=6)
    records = list(train(fresh(opts), open_source(opts), opts))
    assert np.mean(losses(records[-5:])) < 0.8 * np.mean(losses(records[:5]))


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_cut_run_goes_on_with_the_very_same_losses(cut, tmp_path):
    opts = options()
    whole = list(train(fresh(opts), open_source(opts), opts))
    state = fresh(opts)
    first = list(itertools.islice(train(state, open_source(opts), opts), cut))
    checkpoint.save_run(tmp_path / "x", state.model, state.optimizer, state.step, state.data_rng)
    rest = list(train(load_state(checkpoint.load_run(tmp_path / "x"), opts), open_source(opts), opts))
    assert losses(first + rest) == losses(whole)
    assert rest[-1]["valid_loss"] == whole[-1]["valid_loss"]


def test_the_seed_decides_all():
    def run(seed: int) -> list[float]:
        opts = options(seed=seed, steps=3)
        return losses(train(fresh(opts), open_source(opts), opts))

    assert run(0) == run(0) != run(1)


def test_the_streams_are_independent_of_each_other():
    numbers = [stream.random() for stream in streams(5)]
    assert len(set(numbers)) == len(numbers)
    assert streams(5).data.random() == numbers[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_accumulated_batches_give_the_gradient_of_one_large_batch(threads):
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 5, (2, 4, 7))
    model = Bigram(5, np.float64)
    run = partial(loss_and_grads, model, threads=threads)
    loss = gradients(model, [(tokens, targets)], [{}], run)
    whole = model.table.grad
    halves = gradients(model, [(tokens[:2], targets[:2]), (tokens[2:], targets[2:])], [{}, {}], run)
    assert halves == pytest.approx(loss)
    np.testing.assert_allclose(model.table.grad, whole, rtol=1e-12, atol=1e-15)


def test_score_and_evaluate_count_the_scored_targets_only():
    model = Bigram(4, np.float64)
    model.table.data[...] = np.random.default_rng(0).standard_normal((4, 4))
    tokens, targets = np.array([[0, 1, 2], [3, 3, 0]]), np.array([[1, -1, 3], [-1, 2, 0]])
    nats, right, _ = score(model, tokens, targets)
    p = np.exp(model.table.data) / np.exp(model.table.data).sum(1, keepdims=True)
    by_hand = [-math.log(p[a, b]) for a, b in ((0, 1), (2, 3), (3, 2), (0, 0))]
    np.testing.assert_allclose(nats[targets >= 0], by_hand, rtol=1e-12)
    assert nats[0, 1] == nats[1, 0] == 0 and not right[0, 1] and not right[1, 0]
    hits = [p[a].argmax() == b for a, b in ((0, 1), (2, 3), (3, 2), (0, 0))]
    assert evaluate(model, [(tokens[:1], targets[:1]), (tokens[1:], targets[1:])]) == pytest.approx(
        (np.mean(by_hand), np.mean(hits))
    )


def test_evaluate_agrees_with_the_loss_of_training():
    opts = options()
    state, source = fresh(opts), open_source(opts)
    batch = source.sample(3, streams(9).data)
    assert evaluate(state.model, [batch])[0] == pytest.approx(loss_and_grads(state.model, *batch), rel=1e-5)


def test_validation_of_text_reads_every_byte_of_the_valid_piece(tmp_path):
    lines = b"".join(b"%d times: " % i + WORDS for i in range(200))
    (tmp_path / "text").write_bytes(lines)
    source = open_source(Options(data=str(tmp_path / "text"), context=32, valid_bytes=300))
    assert len(source.valid) == 300 and source.valid == source.split.valid[:300]
    assert sum((targets >= 0).sum() for _, targets in source.validation(4)) == 299
    tokens, targets = source.sample(5, streams(0).data)
    assert tokens.shape == targets.shape == (5, 32)


def test_validation_of_a_task_is_the_same_each_time():
    source = open_source(options())
    first, second = list(source.validation(3)), list(source.validation(3))
    assert all(np.array_equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def planted(model, where: str, value: float) -> None:
    dict(parameters(model))[where].data.flat[0] = value


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_stops_the_run_and_names_the_op(value, threads):
    opts = options(threads=threads)
    state, source = fresh(opts), open_source(opts)
    records = train(state, source, opts)
    next(records)
    name = next(name for name, _ in parameters(state.model) if name.endswith("norm.scale") or "norm" in name)
    planted(state.model, name, value)
    before = {key: array.copy() for key, array in state.optimizer.state().items()}
    with pytest.raises(RuntimeError, match=r"stopped at step 2, loss nan.*op '\w+' gave NaN.*" + name) as error:
        next(records)
    assert type(error.value).__name__ == "TrainingError" and str(error.value).count("\n") == 0
    assert state.step == 1
    for key, array in state.optimizer.state().items():
        np.testing.assert_array_equal(array, before[key])


def test_a_norm_that_overflows_is_told_from_an_op_that_does():
    class Steep(Bigram):
        def __call__(self, tokens):
            return ops.embedding(self.table * 1e200, tokens)

    opts = options(steps=1)
    source = open_source(opts)
    model = Steep(source.vocab_size, np.float64)
    state = State(model, AdamW(parameters(model), 1e-3), streams(0).data)
    with pytest.raises(RuntimeError, match=r"gradient norm inf: every op gave finite numbers"):
        next(train(state, source, opts))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"steps": 0}, "steps must be a number, more than 0, got 0"),
        ({"lr": -1.0}, "lr must be"),
        ({"lr": math.nan}, "lr must be"),
        ({"lr": math.inf}, "lr must be"),
        ({"warmup": -1}, "warmup must be a number, 0 or more"),
        ({"schedule": "cosin"}, "schedule must be one of cosine, linear, constant, trapezoid, got 'cosin'"),
        ({"device": "tpu"}, "device must be one of cpu, gpu"),
    ],
)
def test_impossible_options_are_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        Options(**given)


def test_a_task_and_its_options_are_one_word():
    task = parse_task("selective-copy:items=4,vocab=16", 64)
    assert (type(task).__name__, task.length, task.items, task.vocab) == ("SelectiveCopy", 64, 4, 16)
    with pytest.raises(ValueError, match="'vocab' has no whole number"):
        parse_task("copy:vocab", 64)


def test_the_optimizer_keeps_to_the_rates_and_the_exceptions_that_a_model_names():
    options = Options(lr=0.5, weight_decay=0.1)
    rwkv = start("rwkv", make_config("rwkv", d_model=8, n_layers=1), options)
    before = {name: p.data.copy() for name, p in parameters(rwkv.model)}
    for _, p in parameters(rwkv.model):
        p.grad = np.ones_like(p.data)
    rwkv.optimizer.step()  # the first step of Adam is the learning rate, whatever the gradient
    after = {name.removeprefix("blocks.0.time_mixing."): before[name] - p.data for name, p in parameters(rwkv.model)}
    for name, rate in (("mix_k", 0.5), ("time_decay", 1.0), ("time_first", 1.5)):
        np.testing.assert_allclose(after[name], rate, rtol=1e-5)

    mamba = start("mamba", make_config("mamba", d_model=8, n_layers=1), options)
    tensors = dict(parameters(mamba.model))
    for p in tensors.values():
        p.grad = np.zeros_like(p.data)  # only the decay moves anything
    kept, decayed = (tensors[f"blocks.0.mixer.{name}"].data.copy() for name in ("a_log", "in_proj.w"))
    mamba.optimizer.step()
    assert (tensors["blocks.0.mixer.a_log"].data == kept).all()
    np.testing.assert_allclose(tensors["blocks.0.mixer.in_proj.w"].data, 0.95 * decayed, rtol=1e-6)
