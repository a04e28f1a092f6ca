import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec.data import IGNORE_INDEX, Copy, Induction, Markov, SelectiveCopy
from tinyrec.train import parse_task

SEEDS = st.integers(0, 2**32 - 1)


def test_copy_by_layout():
    task = Copy(length=11, vocab=4, items=3)
    tokens, targets = task.sample(6, np.random.default_rng(0))
    np.testing.assert_array_equal(tokens[:, 3:8], 4)  # blank
    np.testing.assert_array_equal(tokens[:, 8:], 5)  # ?
    np.testing.assert_array_equal(targets[:, :8], IGNORE_INDEX)
    np.testing.assert_array_equal(targets[:, 8:], tokens[:, :3])
    assert len({tuple(items) for items in tokens[:, :3].tolist()}) > 1


@given(items=st.integers(1, 6), extra=st.integers(0, 9), seed=SEEDS)
def test_selective_copy_asks_for_the_symbols_in_their_order(items, extra, seed):
    task = SelectiveCopy(length=2 * items + extra, vocab=3, items=items)
    tokens, targets = task.sample(4, np.random.default_rng(seed))
    for row, target in zip(tokens, targets, strict=True):
        assert (row[-items:] == task.vocab + 1).all()
        body = row[:-items]
        np.testing.assert_array_equal(body[body < task.vocab], target[-items:])
        assert (target[:-items] == IGNORE_INDEX).all()


def test_selective_copy_uses_every_place_about_equally_often():
    tokens, _ = SelectiveCopy(length=10, vocab=2, items=2).sample(4000, np.random.default_rng(0))
    share = (tokens[:, :8] < 2).mean(axis=0)
    np.testing.assert_allclose(share, 2 / 8, atol=0.03)


@given(occurrences=st.integers(2, 5), extra=st.integers(0, 9), seed=SEEDS)
def test_induction_repeats_one_value_after_the_special_token(occurrences, extra, seed):
    task = Induction(length=2 * occurrences + extra, vocab=5, occurrences=occurrences)
    tokens, targets = task.sample(4, np.random.default_rng(seed))
    for row, target in zip(tokens, targets, strict=True):
        places = np.flatnonzero(row == task.vocab)
        assert len(places) == occurrences
        values = row[places + 1]
        assert values[0] < task.vocab and (values == values[0]).all()
        np.testing.assert_array_equal(np.flatnonzero(target != IGNORE_INDEX), places[1:])
        np.testing.assert_array_equal(target[places[1:]], values[1:])


def test_induction_value_changes_from_sequence_to_sequence_and_reaches_every_place():
    task = Induction(length=8, vocab=4, occurrences=2)
    tokens, targets = task.sample(2000, np.random.default_rng(0))
    assert np.all(np.bincount(targets[targets >= 0], minlength=4) > 400)
    assert (tokens[:, :7] == task.vocab).any(axis=0).all()  # the last place is never the special token:
    assert not (tokens[:, 7] == task.vocab).any()  # its value must follow


# --- markov -----------------------------------------------------------------------------------------------------------


def successors(task, tokens, targets):
    """(B, symbols): what most often followed each symbol in a sequence; -1 where nothing did."""
    follows = np.zeros((len(tokens), task.symbols, task.symbols), np.int64)
    np.add.at(follows, (np.arange(len(tokens))[:, None], tokens, targets), 1)
    return np.where(follows.any(axis=2), follows.argmax(axis=2), -1)


@given(symbols=st.integers(2, 9), length=st.integers(1, 30), seed=SEEDS)
def test_without_noise_a_chain_goes_round_one_cycle_of_a_permutation(symbols, length, seed):
    task = Markov(length=length, symbols=symbols, noise=0)
    tokens, targets = task.sample(4, np.random.default_rng(seed))
    np.testing.assert_array_equal(targets[:, :-1], tokens[:, 1:])
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        rule = dict(zip(row, target, strict=True))
        assert [rule[token] for token in row] == target  # one successor each ...
        assert len(set(rule.values())) == len(rule)  # ... and no two the same: so the first symbol is met again first


@pytest.mark.parametrize("noise", [0, 10, 60])
def test_so_many_steps_do_not_follow_the_rule(noise):
    task = Markov(length=400, symbols=5, noise=noise)
    tokens, targets = task.sample(500, np.random.default_rng(0))
    rules = successors(task, tokens, targets)
    obeyed = np.take_along_axis(rules, tokens, axis=1) == targets
    assert obeyed.mean() == pytest.approx(1 - noise / 100 * 4 / 5, abs=0.005)
    np.testing.assert_allclose(np.bincount(tokens.ravel()) / tokens.size, 1 / 5, atol=0.02)
    if noise:
        assert all(len(set(rule)) == 5 for rule in rules.tolist())  # each a permutation


def test_all_noise_is_no_rule():
    tokens, targets = Markov(length=400, symbols=5, noise=100).sample(500, np.random.default_rng(0))
    pairs = np.bincount((5 * tokens + targets).ravel()) / tokens.size
    np.testing.assert_allclose(pairs, 1 / 25, atol=0.002)
    followed = np.array([np.bincount((5 * x + y), minlength=25).max() for x, y in zip(tokens, targets, strict=True)])
    assert (followed < 40).all()  # nor in any single sequence: 16 of each pair on average


def test_every_sequence_has_a_rule_of_its_own_and_all_rules_are_equally_likely():
    task = Markov(length=200, symbols=3, noise=30)
    rules = successors(task, *task.sample(6000, np.random.default_rng(0)))
    seen, count = np.unique(rules @ [9, 3, 1], return_counts=True)
    likely = count[count > 100]
    assert len(likely) == 6 and (likely > 850).all(), (seen, count)


def test_the_floor_is_the_entropy_of_the_next_token():
    for noise, symbols in [(10, 12), (50, 3), (100, 4), (0, 5)]:
        task = Markov(length=50, symbols=symbols, noise=noise)
        e, n = noise / 100, symbols
        p, q = 1 - e + e / n, e / n
        assert task.floor == pytest.approx(-p * np.log(p) - ((n - 1) * q * np.log(q) if e else 0), abs=1e-12)
    assert round(Markov().floor, 3) == 0.526 and Markov(noise=100).floor == pytest.approx(np.log(12))


def test_who_reads_the_rule_off_a_long_chain_loses_no_more_than_the_floor():
    """Counts in plain NumPy over 3000 tokens; p and e/n for what they say comes next."""
    task = Markov(length=3000)
    tokens, targets = task.sample(200, np.random.default_rng(0))
    known = np.take_along_axis(successors(task, tokens, targets), tokens, axis=1) == targets
    p, q = 0.9 + 0.1 / 12, 0.1 / 12
    assert -np.where(known, np.log(p), np.log(q)).mean() == pytest.approx(task.floor, abs=0.01)
    assert known.mean() == pytest.approx(p, abs=0.002)


def test_markov_on_the_command_line():
    assert parse_task("markov:symbols=24,noise=5", 96) == Markov(length=96, symbols=24, noise=5)
