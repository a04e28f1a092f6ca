import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec.data import IGNORE_INDEX, TASKS, Copy, DataError, Induction, SelectiveCopy, Task, load_task

SEEDS = st.integers(0, 2**32 - 1)


def one_hot(targets: np.ndarray, task: Task) -> np.ndarray:
    """Logits that are right wherever there is something to score."""
    return np.eye(task.vocab_size)[np.maximum(targets, 0)]


@pytest.mark.parametrize("name", TASKS)
def test_what_all_tasks_promise(name):
    task = load_task(name)
    tokens, targets = task.sample(5, np.random.default_rng(1))
    assert tokens.shape == targets.shape == (5, task.length)
    assert tokens.dtype == targets.dtype == np.int64
    assert tokens.min() >= 0 and tokens.max() == task.vocab_size - 1
    assert targets.min() == IGNORE_INDEX and targets.max() < task.vocab
    again = task.sample(5, np.random.default_rng(1))
    other = task.sample(5, np.random.default_rng(2))
    assert np.array_equal(tokens, again[0]) and np.array_equal(targets, again[1])
    assert not np.array_equal(tokens, other[0])


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


@pytest.mark.parametrize("name", TASKS)
def test_accuracy_counts_the_scored_targets_only(name):
    task = load_task(name)
    _, targets = task.sample(3, np.random.default_rng(0))
    logits = one_hot(targets, task)
    assert task.accuracy(logits, targets) == 1.0
    logits[targets == IGNORE_INDEX] = 0.0  # whatever it says there
    assert task.accuracy(logits, targets) == 1.0
    b, t = np.argwhere(targets != IGNORE_INDEX)[0]
    logits[b, t] *= -1
    scored = (targets != IGNORE_INDEX).sum()
    assert task.accuracy(logits, targets) == pytest.approx(1 - 1 / scored)


def test_accuracy_refuses_logits_of_another_shape():
    task = Copy()
    _, targets = task.sample(3, np.random.default_rng(0))
    with pytest.raises(DataError, match=r"logits must be \(3, 64, 10\)"):
        task.accuracy(np.zeros((3, 64, 8)), targets)


def test_load_task_passes_options_on():
    assert load_task("induction", length=32, occurrences=3) == Induction(length=32, occurrences=3)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("inductoin", {}, "there is no task 'inductoin'.*did you mean 'induction'"),
        ("zzz", {}, "there is no task 'zzz', only copy, selective_copy, induction$"),
        ("copy", {"lenght": 3}, "the task copy has no option 'lenght'.*did you mean 'length'"),
        ("copy", {"occurrences": 3}, "the task copy has no option 'occurrences', only length, vocab, items$"),
        ("copy", {"length": 0}, "length of a task must be a whole number, at least 1, got 0"),
        ("copy", {"vocab": 1}, "vocab of a task must be a whole number, at least 2, got 1"),
        ("copy", {"items": 2.5}, "items of a task must be a whole number"),
        ("copy", {"length": 7, "items": 4}, "4 items and their answers need length 8, got 7"),
        ("selective_copy", {"length": 7, "items": 4}, "4 items and their answers need length 8, got 7"),
        ("induction", {"occurrences": 1}, "2 occurrences or more"),
        ("induction", {"length": 7}, "got 4 occurrences in length 7"),
    ],
)
def test_mistakes_are_answered_with_one_sentence(name, options, sentence):
    with pytest.raises(DataError, match=sentence) as error:
        load_task(name, **options)
    assert "\n" not in str(error.value)
