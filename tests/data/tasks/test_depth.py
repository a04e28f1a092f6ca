import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec import no_grad
from tinyrec.data import IGNORE_INDEX, load_task
from tinyrec.data.tasks import Addition, Chase, Permutations, PrefixParity
from tinyrec.data.tasks.depth import multiplication_table
from tinyrec.models import build, make_config
from tinyrec.train import parse_task

SEEDS, PERCENT = st.integers(0, 2**32 - 1), st.integers(0, 100)

# --- answers, one sequence at a time in plain Python ------------------------------------------------------------------


def parities(task, tokens):
    return [2 + sum(tokens[: t + 1]) % 2 for t in range(len(tokens))]


def digits_of_the_sum(task, tokens):
    a = sum(token // task.base * task.base**t for t, token in enumerate(tokens))
    b = sum(token % task.base * task.base**t for t, token in enumerate(tokens))
    return [task.base**2 + (a + b) // task.base**t % task.base for t in range(len(tokens))]


def arrangements(task, tokens):
    elements = list(itertools.permutations(range(task.n)))
    answers, places = [], range(task.n)  # where thing i lies
    for token in tokens:
        places = [elements[token][place] for place in places]
        answers.append(len(elements) + elements.index(tuple(places)))
    return answers


def heads_of_chains(task, tokens):
    def head(t):
        return tokens[t] if tokens[t] < task.vocab else head(t - (tokens[t] - task.vocab + 1))

    return [head(t) for t in range(len(tokens))]


NAIVE = {
    "prefix_parity": parities,
    "addition": digits_of_the_sum,
    "permutations": arrangements,
    "chase": heads_of_chains,
}


def wrong_answers(naive, task, rng, batch=20):
    """How many of the targets are not what the naive form says."""
    tokens, targets = (array.tolist() for array in task.sample(batch, rng))
    return sum(a != b for x, y in zip(tokens, targets, strict=True) for a, b in zip(naive(task, x), y, strict=True))


OPTIONS = {
    "prefix_parity": st.fixed_dictionaries({}),
    "addition": st.fixed_dictionaries({"base": st.integers(2, 16), "propagate": PERCENT}),
    "permutations": st.fixed_dictionaries({"n": st.integers(3, 5)}),
    "chase": st.fixed_dictionaries({"chains": st.integers(1, 4), "reach": st.integers(5, 7), "renew": PERCENT}),
}


@pytest.mark.parametrize("name", NAIVE)
@given(data=st.data(), seed=SEEDS)
def test_targets_are_what_plain_python_says(name, data, seed):
    task = load_task(name, length=data.draw(st.integers(5, 13)), **data.draw(OPTIONS[name]))
    assert wrong_answers(NAIVE[name], task, np.random.default_rng(seed), batch=4) == 0


class PrefixWithoutItsLast(PrefixParity):
    def _answers(self, tokens):
        return (tokens.cumsum(axis=1) - tokens) % 2


class CarryDropped(Addition):
    def _answers(self, tokens):
        return (tokens // self.base + tokens % self.base) % self.base


class OrderSwapped(Permutations):
    def _answers(self, tokens):
        products, table = tokens.copy(), multiplication_table(self.n)
        for t in range(1, tokens.shape[1]):
            products[:, t] = table[tokens[:, t], products[:, t - 1]]
        return products


class OneStepOnly(Chase):
    """Right up to one hop; else the first symbol of all."""

    def sample(self, batch, rng):
        tokens, targets = super().sample(batch, rng)
        return tokens, np.where(self.hops(tokens) <= 1, targets, tokens[:, :1])


@pytest.mark.parametrize(
    ("naive", "wrong"),
    [
        (parities, PrefixWithoutItsLast),
        (digits_of_the_sum, CarryDropped),
        (arrangements, OrderSwapped),
        (heads_of_chains, OneStepOnly),
    ],
)
def test_a_wrong_step_is_caught(naive, wrong):
    assert wrong_answers(naive, wrong(length=9), np.random.default_rng(0)) > 10


@pytest.mark.parametrize(
    ("task", "tokens", "targets"),
    [
        (PrefixParity(length=6), [0, 1, 1, 0, 1, 0], [2, 3, 2, 2, 3, 3]),
        (Addition(length=4), [75, 18, 54, 26], [102, 100, 100, 109]),
        (Permutations(length=4), [1, 2, 4, 5], [7, 9, 6, 11]),
        (Chase(length=7, vocab=3, chains=2, reach=3), [0, 1, 3, 5, 2, 4, 4], [0, 1, 1, 0, 2, 0, 2]),
    ],
)
def test_the_pictures_in_the_docstrings(task, tokens, targets):
    naive = next(naive for name, naive in NAIVE.items() if isinstance(task, type(load_task(name))))
    assert naive(task, tokens) == targets


# --- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [PrefixParity(), Permutations(), Addition(base=3, propagate=50), Addition(base=4)])
def test_tokens_are_as_probable_as_the_ceiling_takes_them_to_be(task):
    tokens, _ = task.sample(2000, np.random.default_rng(0))
    share = np.bincount(tokens.ravel(), minlength=task.symbols) / tokens.size
    np.testing.assert_allclose(share, task._chances(), atol=0.005)
    assert task._chances().sum() == pytest.approx(1)


@pytest.mark.parametrize("percent", [0, 75, 100])
def test_so_many_pairs_pass_a_carry_on_and_digits_stay_uniform(percent):
    tokens, _ = Addition(base=5, propagate=percent).sample(2000, np.random.default_rng(0))
    a, b = np.divmod(tokens, 5)
    assert (a + b == 4).mean() == pytest.approx(percent / 100, abs=0.01)
    for digit in (a, b):
        np.testing.assert_allclose(np.bincount(digit.ravel()) / digit.size, 1 / 5, atol=0.01)


@pytest.mark.parametrize("n", [3, 4])
def test_every_arrangement_is_equally_likely_at_every_place(n):
    task = Permutations(length=5, n=n)
    _, targets = task.sample(20000, np.random.default_rng(0))
    for t in range(task.length):
        share = np.bincount(targets[:, t] - task.symbols, minlength=task.vocab) / len(targets)
        np.testing.assert_allclose(share, 1 / task.vocab, atol=0.01)


@given(chains=st.integers(1, 4), more=st.integers(1, 3), seed=SEEDS)
def test_chains_never_meet_nor_end(chains, more, seed):
    task = Chase(length=25, chains=chains, reach=chains + more, renew=0)
    tokens, _ = task.sample(3, np.random.default_rng(seed))
    for row, hops in zip(tokens, task.hops(tokens), strict=True):
        assert (row[:chains] < task.vocab).all() and (row[chains:] >= task.vocab).all()
        targets = np.arange(chains, 25) - (row[chains:] - task.vocab + 1)
        assert len(set(targets)) == 25 - chains  # nothing is pointed at twice ...
        assert set(range(25 - task.reach)) <= set(targets)  # ... and nothing is forgotten
        expected = [0] * chains
        for target in targets:
            expected.append(expected[target] + 1)
        assert hops.tolist() == expected


@pytest.mark.parametrize("percent", [0, 20, 100])
def test_chase_uses_every_distance_and_renews_so_many_chains(percent):
    task = Chase(length=40, renew=percent)
    tokens, _ = task.sample(500, np.random.default_rng(0))
    later, hops = tokens[:, task.chains :], task.hops(tokens)
    assert (later < task.vocab).mean() == pytest.approx(percent / 100, abs=0.01)
    if percent < 100:
        assert (np.bincount(later.ravel())[task.vocab :] > 500).all()
    # The chance that a chain of the first h hops was never renewed, summed: at 0 percent it has t / chains of them.
    keep = 1 - percent / 100
    assert hops[:, -1].mean() == pytest.approx(sum(keep ** (h + 1) for h in range(40 // 3)), abs=0.5)


# --- where a sequence begins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prefix_parity", "addition", "permutations"])
def test_a_token_for_the_beginning_moves_everything_by_one(name):
    plain, begun = load_task(name, length=8), load_task(name, length=9, bos=1)
    tokens, targets = plain.sample(4, np.random.default_rng(3))
    with_bos = begun.sample(4, np.random.default_rng(3))
    np.testing.assert_array_equal(with_bos[0][:, 1:], tokens)
    np.testing.assert_array_equal(with_bos[1][:, 1:], targets)
    assert (with_bos[0][:, 0] == plain.vocab_size).all() and (with_bos[1][:, 0] == IGNORE_INDEX).all()
    assert begun.vocab_size == plain.vocab_size + 1 and begun.ceiling == 1 > plain.ceiling


def test_parity_on_the_command_line():
    task = parse_task("prefix-parity:bos=1", 12)
    assert task == PrefixParity(length=12, bos=1) and task.vocab_size == 5 and task.vocab == 2
    assert parse_task("prefix-parity", 12).vocab_size == 4
    tokens, _ = task.sample(1, np.random.default_rng(0))
    assert tokens.shape == (1, 12) and tokens[0, 0] == 4


def best_accuracy(task, chances):
    """The mean over all sequences, where one answer must do for all prefixes that repeat the same token."""
    weights = defaultdict(lambda: defaultdict(float))  # what is seen -> answer -> probability, summed over places
    for tokens in itertools.product(range(task.symbols), repeat=task.length):
        answers = task._answers(np.array([tokens]))[0]
        for t in range(task.length):
            seen = tokens[:1] if len(set(tokens[: t + 1])) == 1 else tokens[: t + 1]
            weights[seen][answers[t]] += np.prod([chances[token] for token in tokens])
    return sum(max(answers.values()) for answers in weights.values()) / task.length


@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_the_ceiling_of_parity(length):
    ceiling = PrefixParity(length=length).ceiling
    assert ceiling == pytest.approx(best_accuracy(PrefixParity(length=length), [1 / 2, 1 / 2]), abs=1e-12)
    assert ceiling == pytest.approx(1 - (1 - 4.0 ** -(length // 2)) / (3 * length), abs=1e-12)


@pytest.mark.parametrize(("length", "ceiling"), [(12, 0.972), (18, 0.981), (24, 0.986)])
def test_the_ceiling_of_parity_at_usual_lengths(length, ceiling):
    assert round(PrefixParity(length=length).ceiling, 3) == ceiling


def test_the_ceilings_of_addition_and_permutations():
    task = Permutations(length=4)
    assert task.ceiling == pytest.approx(best_accuracy(task, [1 / 6] * 6), abs=1e-12)
    task = Addition(length=5, base=2, propagate=40)
    assert task.ceiling == pytest.approx(best_accuracy(task, [0.3, 0.2, 0.2, 0.3]), abs=1e-12)
    assert task.ceiling == pytest.approx(1 - (0.3**2 + 0.3**3 + 0.3**4 + 0.3**5) / 5, abs=1e-12)  # 1 + 1, repeated


@no_grad()
def test_attention_cannot_tell_how_often_a_token_was_repeated_unless_it_sees_the_beginning():
    model = build("transformer", make_config("transformer", vocab_size=5), np.random.default_rng(0))
    ones = np.ones((1, 7), np.int64)
    logits = model(ones).data[0]
    np.testing.assert_allclose(logits, np.broadcast_to(logits[0], logits.shape), rtol=0, atol=1e-4)
    ones[0, 0] = 4
    logits = model(ones).data[0, 1:]
    assert np.abs(np.diff(logits, axis=0)).max() > 1e-2
