import numpy as np
import pytest

from tinyrec.data import IGNORE_INDEX, TASKS, Copy, DataError, Induction, Task, load_task
from tinyrec.data.tasks import PrefixParity


def one_hot(targets: np.ndarray, task: Task) -> np.ndarray:
    """Logits that are right wherever there is something to score."""
    return np.eye(task.vocab_size)[np.maximum(targets, 0)]


@pytest.mark.parametrize("name", TASKS)
def test_what_all_tasks_promise(name):
    task = load_task(name)
    tokens, targets = task.sample(5, np.random.default_rng(1))
    assert tokens.shape == targets.shape == (5, task.length)
    assert tokens.dtype == targets.dtype == np.int64
    assert tokens.min() >= 0 and targets.min() >= IGNORE_INDEX
    assert max(tokens.max(), targets.max()) == task.vocab_size - 1
    assert len(set(targets[targets != IGNORE_INDEX].tolist())) <= task.vocab
    again = task.sample(5, np.random.default_rng(1))
    other = task.sample(5, np.random.default_rng(2))
    assert np.array_equal(tokens, again[0]) and np.array_equal(targets, again[1])
    assert not np.array_equal(tokens, other[0])


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


def test_where_the_answers_are_fixed_vocab_cannot_be_set():
    assert load_task("prefix_parity").vocab == 2
    with pytest.raises(TypeError, match="vocab"):
        PrefixParity(vocab=4)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("inductoin", {}, "there is no task 'inductoin'.*did you mean 'induction'"),
        ("zzz", {}, "there is no task 'zzz', only copy, selective_copy, induction, markov, prefix_parity, .*, chase$"),
        ("copy", {"lenght": 3}, "the task copy has no option 'lenght'.*did you mean 'length'"),
        ("copy", {"occurrences": 3}, "the task copy has no option 'occurrences', only length, vocab, items$"),
        ("copy", {"length": 0}, "length of a task must be a whole number, at least 1, got 0"),
        ("copy", {"vocab": 1}, "vocab of a task must be a whole number, at least 2, got 1"),
        ("copy", {"items": 2.5}, "items of a task must be a whole number"),
        ("copy", {"length": 7, "items": 4}, "4 items and their answers need length 8, got 7"),
        ("selective_copy", {"length": 7, "items": 4}, "4 items and their answers need length 8, got 7"),
        ("induction", {"occurrences": 1}, "2 occurrences or more"),
        ("induction", {"length": 7}, "got 4 occurrences in length 7"),
        ("markov", {"vocab": 8}, "the task markov has no option 'vocab', only length, symbols, noise$"),
        ("markov", {"symbols": 1}, "symbols of a task must be a whole number, 2 to 256, got 1"),
        ("markov", {"noise": 101}, "noise of a task must be a whole number, 0 to 100, got 101"),
        ("prefix_parity", {"vocab": 2}, "the task prefix_parity has no option 'vocab', only length, bos$"),
        ("addition", {"vocab": 10}, "the task addition has no option 'vocab', only length, bos, base, propagate$"),
        ("permutations", {"vocab": 6}, "the task permutations has no option 'vocab', only length, bos, n$"),
        ("prefix_parity", {"bos": 2}, "bos of a task must be a whole number, 0 to 1, got 2"),
        ("prefix_parity", {"bos": 1, "length": 1}, "begins with a token of its own needs length 2, got 1"),
        ("addition", {"base": 1}, "base of a task must be a whole number, 2 to 16, got 1"),
        ("addition", {"propagate": 101}, "propagate of a task must be a whole number, 0 to 100, got 101"),
        ("permutations", {"n": 6}, "n of a task must be a whole number, 3 to 5, got 6"),
        ("chase", {"chains": 0}, "chains of a task must be a whole number, at least 1, got 0"),
        ("chase", {"chains": 5}, "more than the number of chains, got 5 chains, reach 5, length 64"),
        ("chase", {"length": 3}, "more than the number of chains, got 3 chains, reach 5, length 3"),
    ],
)
def test_mistakes_are_answered_with_one_sentence(name, options, sentence):
    with pytest.raises(DataError, match=sentence) as error:
        load_task(name, **options)
    assert "\n" not in str(error.value)
