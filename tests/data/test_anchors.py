import lzma
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.data import anchors, best
from tinyrec.data.anchors import LONGEST, witten_bell, xz_bits_per_byte

TEXTS = st.one_of(st.binary(min_size=1, max_size=60), st.text("ab", min_size=1, max_size=60).map(str.encode))


def naive_witten_bell(train: bytes, valid: bytes, longest: int) -> list[list[float]]:
    """The formula word for word, with a dictionary of followers for every context."""
    followers: dict[bytes, Counter[int]] = {}
    for i in range(len(train)):
        for k in range(min(longest - 1, i) + 1):
            followers.setdefault(train[i - k : i], Counter())[train[i]] += 1

    def probability(x: int, context: bytes) -> float:
        seen = followers.get(context, Counter())
        shorter = probability(x, context[1:]) if context else 1 / 256
        if not seen:
            return shorter
        return (seen[x] + len(seen) * shorter) / (seen.total() + len(seen))

    return [
        [probability(x, valid[max(i - n + 1, 0) : i]) for i, x in enumerate(valid)] for n in range(1, longest + 1)
    ]


@given(TEXTS, TEXTS)
def test_probabilities_are_those_of_the_definition(train, valid):
    fast, naive = witten_bell(train, valid, 8), naive_witten_bell(train, valid, 8)
    np.testing.assert_allclose(fast, naive, rtol=1e-12)


def test_probabilities_are_those_of_the_definition_on_a_longer_text():
    rng = np.random.default_rng(0)
    letters = np.cumsum(rng.integers(-1, 2, size=3000)) % 256  # a walk, with bytes 0 and 255
    text = letters.astype(np.uint8).tobytes()
    fast, naive = witten_bell(text[:2500], text[2500:]), naive_witten_bell(text[:2500], text[2500:], LONGEST)
    np.testing.assert_allclose(fast, naive, rtol=1e-12)
    figures = anchors(text[:2500], text[2500:])
    assert figures["3-gram"] == pytest.approx(-sum(map(math.log2, naive[2])) / 500, rel=1e-12)


@settings(max_examples=15)  # each takes 256 runs
@given(TEXTS, st.binary(max_size=7))
def test_probabilities_of_the_next_byte_sum_to_one(train, context):
    next_byte = [[row[-1] for row in witten_bell(train, context + bytes([x]), 8)] for x in range(256)]
    np.testing.assert_allclose(np.sum(next_byte, axis=0), 1, rtol=1e-12)


def test_the_formula_by_hand():
    # After "a" train has b twice and c once: n = 3, t = 2. Alone: n(b) = 2, n = 6, t = 3.
    alone = (2 + 3 / 256) / (6 + 3)
    after_a = (2 + 2 * alone) / (3 + 2)
    unigrams, bigrams = witten_bell(b"abacab", b"ab", 2)
    assert unigrams[1] == pytest.approx(alone, rel=1e-15)
    assert bigrams[1] == pytest.approx(after_a, rel=1e-15)
    assert bigrams[0] == unigrams[0]  # the first byte has no context


def test_an_unseen_context_falls_back_to_the_shorter_one():
    unigrams, bigrams = witten_bell(b"abacab", b"za", 2)
    assert bigrams[1] == unigrams[1]


def test_a_byte_never_seen_costs_more_than_eight_bits_but_not_infinity():
    assert 8 < anchors(b"a" * 100, b"z" * 10)["7-gram"] < 100


def test_noise_cannot_be_predicted_and_a_repeated_text_can():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, size=30_000).astype(np.uint8).tobytes()
    figures = anchors(noise[:20_000], noise[20_000:])
    assert all(figure > 7.9 for figure in figures.values())
    known = anchors(noise[:20_000], noise[5_000:9_000])
    assert known["1-gram"] > 7.9  # the order of the bytes is all there is to know
    assert known["7-gram"] < 1
    assert known["xz"] < 1


def test_xz_forgets_nothing_of_train():
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 113, size=200_000).astype(np.uint8).tobytes()  # 4 bits each
    train, valid = letters, letters[:4_000]  # the oldest part again

    def size(text: bytes) -> int:
        return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))

    expected = (size(train + valid) - size(train)) * 8 / len(valid)  # with xz's own 64 MiB of memory
    assert xz_bits_per_byte(train, valid) == expected < 0.1


def test_xz_takes_a_text_shorter_than_its_smallest_memory():
    assert xz_bits_per_byte(b"abc", b"abc") >= 0


def test_names_and_best():
    figures = anchors(b"some text to learn from, " * 20, b"some text")
    assert list(figures) == [*(f"{n}-gram" for n in range(1, LONGEST + 1)), "xz"]
    assert all(type(figure) is float for figure in figures.values())
    assert best({"a": 2.0, "b": 1.5, "c": 3.0}) == ("b", 1.5)


@pytest.mark.parametrize(("train", "valid"), [(b"", b"a"), (b"a", b"")])
def test_empty_texts_are_refused(train, valid):
    with pytest.raises(ValueError, match="need a train and a valid text"):
        anchors(train, valid)


@pytest.mark.parametrize("longest", [0, 9])
def test_grams_that_do_not_fit_are_refused(longest):
    with pytest.raises(ValueError, match="1 to 8 bytes"):
        witten_bell(b"abc", b"abc", longest)
