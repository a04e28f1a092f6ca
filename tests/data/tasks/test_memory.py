import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinyrec.data import IGNORE_INDEX, Copy, Induction, SelectiveCopy

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
