"""Optimizer and schedule as the training loop uses them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tinyrec import checkpoint
from tinyrec.cli.models import load_state
from tinyrec.models import make_config
from tinyrec.nn import parameters
from tinyrec.optim import AdamW, HuginnAdam
from tinyrec.train import Options, open_source, start, train

HUGINN = dict(optimizer="huginn", schedule="trapezoid", cooldown=4, weight_decay=1e-3)


def options(**given):
    small = dict(task="induction", steps=8, batch=3, context=16, warmup=2, valid_every=4, threads=1)
    return Options(**small | given)


def fresh(opts):
    size = dict(vocab_size=open_source(opts).vocab_size, d_model=8, d_rnn=8, n_layers=1, n_heads=2)
    return start("hawk", make_config("hawk", **size), opts)


def values(state):
    return {name: p.data.tobytes() for name, p in parameters(state.model)}


def test_the_optimizer_is_chosen_by_its_name():
    assert type(fresh(options()).optimizer) is AdamW
    chosen = fresh(options(lr=0.01, **HUGINN)).optimizer
    assert type(chosen) is HuginnAdam and (chosen.peak, chosen.weight_decay) == (0.01, 1e-3)


def test_a_run_with_huginns_optimizer_and_a_trapezoid():
    opts = options(lr=0.01, **HUGINN)
    state = fresh(opts)
    before, rates = values(state), []
    for record in train(state, open_source(opts), opts):
        rates.append(record["lr"] / 0.01)
        after = values(state)
        assert (after == before) == (record["step"] == 1)  # the first step is skipped, no other
        before = after
    np.testing.assert_allclose(rates, [1 / 3, 2 / 3, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4], rtol=1e-12)


@pytest.mark.parametrize("cut", [0, 1, 2, 6])
def test_a_cut_run_goes_on_bit_for_bit(cut, tmp_path):
    opts = options(lr=0.01, **HUGINN)
    whole, first = fresh(opts), fresh(opts)
    losses = [record["loss"] for record in train(whole, open_source(opts), opts)]
    some = [record["loss"] for record in itertools.islice(train(first, open_source(opts), opts), cut)]
    checkpoint.save_run(tmp_path / "x", first.model, first.optimizer, first.step, first.data_rng)
    rest = load_state(checkpoint.load_run(tmp_path / "x"), opts)
    assert some + [record["loss"] for record in train(rest, open_source(opts), opts)] == losses
    assert values(rest) == values(whole)
    ends = [state.optimizer.state() for state in (rest, whole)]
    assert all(np.array_equal(ends[0][key], array) for key, array in ends[1].items())


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, huginn, got 'sgd'"),
        ({"cooldown": -1}, "cooldown must be a number, 0 or more, got -1"),
        ({"optimizer": "huginn"}, "weight_decay of huginn is per step, like 4e-5, at most 0.01, got 0.1"),
    ],
)
def test_impossible_options_are_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        Options(**given)


def test_it_learns():
    opts = options(steps=60, batch=8, lr=2e-2, task="copy:items=2,vocab=4", context=6, **HUGINN)
    losses = [record["loss"] for record in train(fresh(opts), open_source(opts), opts)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
