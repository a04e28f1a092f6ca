"""Sampling against the distribution it promises, generation against the full forward, text that comes in pieces."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec import generate as module
from tinyrec.data.vocabulary import encode
from tinyrec.generate import candidates, generate, sample, state_bytes, stream_text
from tinyrec.ops import linear
from tinyrec.tape import Tensor, array_of, mode

# --- one token --------------------------------------------------------------------------------------------------------

LOGITS = st.lists(st.floats(-30, 30) | st.sampled_from([0.0, -math.inf]), min_size=1, max_size=12).filter(
    lambda xs: max(xs) > -math.inf
)


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


@given(logits=LOGITS, temperature=st.floats(0.1, 10), top_k=st.integers(0, 14), top_p=st.floats(0.01, 1))
def test_candidates_are_what_the_words_say(logits, temperature, top_k, top_p):
    x = np.array(logits)
    ids, p = candidates(x, temperature=temperature, top_k=top_k, top_p=top_p)
    rank = sorted(range(len(x)), key=lambda i: (-x[i], i))
    assert list(ids) == rank[: len(ids)] and 1 <= len(ids) <= (top_k or len(x))
    np.testing.assert_allclose(p, softmax(x[ids] / temperature), rtol=1e-9)
    among = rank[:top_k] if top_k else rank
    mass = np.cumsum(softmax(x[among] / temperature))
    assert mass[len(ids) - 1] >= top_p - 1e-9 or not softmax(x[among] / temperature)[len(ids) :].any()  # enough,
    assert len(ids) == 1 or mass[len(ids) - 2] < top_p + 1e-9  # and one fewer is not


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),  # p^2, normalised
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_k": 3, "top_p": 0.75}, [0, 4 / 7, 0, 3 / 7]),  # top_p counts within the top_k
    ],
)
def test_samples_have_the_promised_frequencies(settings, expected):
    logits, n = np.log([0.1, 0.4, 0.2, 0.3]), 4000
    rng = np.random.default_rng(18)
    counts = np.bincount([sample(logits, **settings, rng=rng) for _ in range(n)], minlength=4)
    expected = np.array(expected)
    assert (counts[expected == 0] == 0).all()
    mean, sigma = n * expected, np.sqrt(n * expected * (1 - expected))
    assert (np.abs(counts - mean) <= 4 * sigma).all()  # 4 sigma, with a fixed seed


@given(logits=LOGITS, seed=st.integers(0, 2**32 - 1))
def test_the_ways_to_be_greedy_agree(logits, seed):
    rng = np.random.default_rng(seed)
    best = int(np.argmax(logits))  # of equal ones the first
    for settings in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-12}, {"temperature": 0, "top_k": 3, "top_p": 0.5}):
        assert sample(np.array(logits), **settings, rng=rng) == best


@pytest.mark.parametrize(
    ("logits", "temperature", "possible"),
    [
        ([-math.inf, 3.0, -math.inf], 1.0, {1}),
        ([1e308, -1e308, 1e308], 1.0, {0, 2}),
        ([3e38, -3e38, 0.0], 1e-300, {0}),
        ([1.0, 1.0, 1.0 - 1e-9], 5e-324, {0, 1}),
        ([-5.0, 5.0, -745.0], 1e300, {0, 1, 2}),
        ([0.0], 1.0, {0}),
    ],
)
def test_extreme_logits(logits, temperature, possible):
    rng = np.random.default_rng(19)
    with np.errstate(all="raise"):
        drawn = {sample(np.array(logits), temperature=temperature, rng=rng) for _ in range(100)}
    assert drawn == possible


def test_top_p_stops_as_soon_as_it_has_enough():
    for top_p, kept in [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4), (1.0, 4)]:
        assert len(candidates(np.zeros(4), top_p=top_p)[0]) == kept  # quarters are exact


class LastNumber(np.random.Generator):
    """Draws the largest number below 1 that random() can give."""

    def random(self):
        return math.nextafter(1.0, 0.0)


def test_a_sum_of_probabilities_just_below_1_is_no_index_too_far():
    rng = LastNumber(np.random.PCG64(0))
    for v in range(1, 60):
        assert sample(np.zeros(v), rng=rng) == v - 1
        assert sample(np.append(np.zeros(v), -math.inf), rng=rng) == v - 1  # never the forbidden one


def test_one_random_number_per_token_and_none_when_greedy():
    rng, other = np.random.default_rng(20), np.random.default_rng(20)
    for settings in ({}, {"top_k": 2}, {"top_p": 0.1}, {"temperature": 9.0}):
        sample(np.arange(5.0), **settings, rng=rng)
        other.random()
    sample(np.arange(5.0), temperature=0, rng=rng)
    assert sample(np.arange(5.0), temperature=0) == 4
    assert rng.random() == other.random()


def test_logits_may_be_a_tensor_of_float32_and_are_not_changed():
    x = Tensor(np.array([0.0, 2.0, 1.0], np.float32))
    ids, p = candidates(x, top_k=2)
    assert list(ids) == [1, 2] and p.dtype == np.float64 and list(x.data) == [0, 2, 1]


@pytest.mark.parametrize(
    ("logits", "settings", "complaint"),
    [
        (np.zeros((2, 3)), {}, r"shape \(V,\) of one position, got \(2, 3\)"),
        (np.zeros(0), {}, r"got \(0,\)"),
        (np.array([0.0, math.nan]), {}, "the model has diverged"),
        (np.array([0.0, math.inf]), {}, "the model has diverged"),
        (np.full(3, -math.inf), {}, "no token is allowed"),
        (np.zeros(3), {"temperature": -0.1}, "temperature must be 0 .* got -0.1"),
        (np.zeros(3), {"temperature": math.nan}, "temperature"),
        (np.zeros(3), {"temperature": math.inf}, "temperature"),
        (np.zeros(3), {"top_k": -1}, "top_k must be a whole number"),
        (np.zeros(3), {"top_k": 1.5}, "top_k must be a whole number"),
        (np.zeros(3), {"top_p": 0.0}, "top_p must be above 0"),
        (np.zeros(3), {"top_p": 1.1}, "top_p must be above 0"),
        (np.zeros(3), {"rng": None}, "sampling needs rng"),
        (np.zeros(3), {"rng": 42}, "sampling needs rng"),
    ],
)
def test_bad_values_are_refused(logits, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        sample(logits, **{"rng": np.random.default_rng(0)} | settings)


# --- many tokens ------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    h: np.ndarray  # (B, D)
    position: list  # [number of tokens seen]


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 256


class Leaky:
    """h_t = a h_{t-1} + E[x_t], logits = h_t w: the smallest model with the interface of the real ones."""

    def __init__(self, seed=0, width=16, vocab_size=256):
        rng = np.random.default_rng(seed)
        self.config = Config(vocab_size)
        self.a = Tensor(rng.uniform(0.3, 0.9, width), requires_grad=True)
        self.embedding = Tensor(rng.normal(size=(vocab_size, width)), requires_grad=True)
        self.w = Tensor(rng.normal(size=(width, vocab_size)), requires_grad=True)
        calls = []  # ("prefill" or "step", tokens, were the parameters Tensors?)
        self.note = lambda kind, n, weight: calls.append((kind, n, type(weight) is Tensor))
        self.calls = lambda: calls  # functions, which a copy of the model shares

    def initial_state(self, batch):
        return State(np.zeros((batch, self.a.size)), [0])

    def step(self, tokens, state):
        self.note("step", tokens.size, self.w)
        return self.advance(tokens, state)

    def advance(self, tokens, state):
        h = self.a * state.h + self.embedding[tokens]
        return linear(h, self.w), State(array_of(h), [state.position[0] + 1])

    def prefill(self, tokens, state):
        self.note("prefill", tokens.size, self.w)
        rows = []
        for t in range(tokens.shape[1]):
            logits, state = self.advance(tokens[:, t], state)
            rows.append(array_of(logits))
        logits = np.stack(rows, axis=1)
        return Tensor(logits) if type(self.w) is Tensor else logits, state


def greedy_by_hand(model, ids, n):
    """Read everything again for each token."""
    ids = list(ids)
    for _ in range(n):
        logits, _ = model.prefill(np.array([ids]), model.initial_state(1))
        ids.append(int(np.argmax(logits.data[0, -1])))
    return ids[-n:]


@pytest.mark.parametrize("length", [1, 2, module.CHUNK, module.CHUNK + 1])
def test_generation_is_the_full_forward_again_and_again(length):
    prompt = np.random.default_rng(21).integers(0, 256, length)
    assert list(generate(Leaky(), prompt, 5, temperature=0)) == greedy_by_hand(Leaky(), prompt, 5)


def test_prompts_may_be_lists_and_byte_tokens():
    expected = list(generate(Leaky(), [104, 105], 6, temperature=0))
    assert list(generate(Leaky(), encode("hi"), 6, temperature=0)) == expected


def test_the_seed_decides():
    def draw(seed):
        return list(generate(Leaky(), [1, 2], 20, temperature=2.0, rng=np.random.default_rng(seed)))

    assert draw(0) == draw(0) != draw(1)


def test_settings_reach_the_sampling():
    rng = np.random.default_rng(22)
    greedy = list(generate(Leaky(), [3], 8, temperature=0))
    assert list(generate(Leaky(), [3], 8, top_k=1, rng=rng)) == greedy
    assert list(generate(Leaky(), [3], 8, top_p=1e-9, rng=rng)) == greedy
    assert list(generate(Leaky(), [3], 8, temperature=50.0, rng=rng)) != greedy


def test_tokens_come_one_by_one_and_nothing_is_recorded_but_by_the_caller():
    model = Leaky()
    stream = generate(model, [1, 2, 3], 4, temperature=0)
    assert model.calls() == []
    for taken in range(4):
        next(stream)
        assert mode.recording  # the caller's own work between two tokens is on the tape
        assert model.calls() == [("prefill", 3, False)] + [("step", 1, False)] * taken
    assert next(stream, None) is None
    assert len(model.calls()) == 4  # the last token is not read


def test_no_tokens_asked_for():
    model = Leaky()
    assert list(generate(model, [1], 0, temperature=0)) == [] == model.calls()


def test_a_long_prompt_is_read_in_pieces_and_the_state_does_not_grow():
    sizes = []

    class Measured(Leaky):
        def advance(self, tokens, state):
            logits, state = super().advance(tokens, state)
            sizes.append(state_bytes(state))
            return logits, state

    model = Measured()
    list(generate(model, np.zeros(2 * module.CHUNK + 7, int), 30, temperature=0))
    assert [size for kind, size, _ in model.calls() if kind == "prefill"] == [module.CHUNK, module.CHUNK, 7]
    assert len(sizes) == 2 * module.CHUNK + 7 + 29 and set(sizes) == {16 * 8}


def test_another_reader_reads_prompt_and_tokens():
    """All of them, in the same pieces and from its own state; the model only says how many tokens there are."""
    model, reader = Leaky(seed=0), Leaky(seed=1)
    prompt = np.random.default_rng(23).integers(0, 256, module.CHUNK + 7)
    found = list(generate(model, prompt, 5, temperature=0, reader=reader))
    assert found == greedy_by_hand(Leaky(seed=1), prompt, 5) != greedy_by_hand(Leaky(seed=0), prompt, 5)
    assert model.calls() == []
    pieces = [("prefill", module.CHUNK, True), ("prefill", 7, True)]
    assert reader.calls() == pieces + [("step", 1, True)] * 4  # as it is: what it makes of its parameters is its own


def test_state_bytes_looks_into_everything():
    inner = (np.zeros(3, np.float32), [Tensor(np.zeros((2, 2)))], {"k": np.zeros(5, np.int8)}, 7, None)
    assert state_bytes(State(np.zeros(1), [inner])) == 8 + 12 + 32 + 5


@pytest.mark.parametrize(
    ("prompt", "settings", "complaint"),
    [
        ([], {}, r"at least one token, got shape \(0,\)"),
        ([[1, 2]], {}, r"got shape \(1, 2\)"),
        ([1.0], {}, "whole numbers from 0 to 255"),
        (["a"], {}, "whole numbers from 0 to 255"),
        ([-1], {}, r"whole numbers from 0 to 255, got array\(\[-1\]\)"),
        ([256], {}, "whole numbers from 0 to 255"),
        ([1], {"n": -1}, "0 or more, got -1"),
        ([1], {"top_p": 2.0}, "top_p"),
        ([1], {"rng": None}, "sampling needs rng"),
    ],
)
def test_bad_calls_are_refused_at_once(prompt, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate(Leaky(), prompt, **{"n": 3, "rng": np.random.default_rng(0)} | settings)  # no token asked for yet


def test_a_model_that_has_diverged_says_so():
    model = Leaky()
    model.w.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="the model has diverged"):
        next(generate(model, [1], 3, temperature=0))


# --- text -------------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(codec="utf-8")))
def test_characters_arrive_whole(text):
    pieces = list(stream_text(text.encode()))
    assert "".join(pieces) == text
    assert len(pieces) == len(text)  # each as soon as its last byte is there


@given(st.binary())
def test_any_bytes_become_the_text_that_they_are_at_once(data):
    assert "".join(stream_text(data)) == data.decode("utf-8", errors="replace")


def test_text_is_not_held_back():
    ids = iter("aé".encode())
    stream = stream_text(ids)
    assert next(stream) == "a" and next(ids) == 0xC3  # it has not looked ahead


def test_other_vocabularies():
    words = {0: b"gr", 1: "ü".encode()[:1], 2: "ün".encode()[1:]}
    assert list(stream_text([0, 1, 2], lambda ids: b"".join(words[i] for i in ids))) == ["gr", "ün"]
