"""Speculative decoding writes what plain greedy decoding writes, whatever the drafts are like."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close
from tinyrec.models.recurrent_depth_decode import speculate, without_last
from tinyrec.nn import without_tape


def greedy(model, prompt, n, steps):
    """Read everything again for each token."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(np.array([ids]), steps=steps).data[0, -1].argmax()))
    return ids[-n:]


@settings(max_examples=30)
@given(
    prompt=st.lists(st.integers(0, 10), min_size=1, max_size=4), n=st.integers(1, 9), steps=st.integers(1, 6),
    draft_steps=st.integers(1, 7), draft_tokens=st.integers(1, 5), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_text_is_that_of_plain_decoding(tiny, prompt, n, steps, draft_steps, draft_tokens, seed):
    model = tiny("recurrent-depth", seed=seed)
    found = list(speculate(model, np.array(prompt), n, steps, draft_steps, draft_tokens))
    assert list(chain(*found)) == greedy(model, prompt, n, steps)
    assert len(found[0]) == 1 and all(1 <= len(tokens) <= draft_tokens + 1 for tokens in found)


def kept(tiny, seed, **options):
    """How many guesses each verification kept, but for the last, which may be cut short."""
    call = {"n": 30, "steps": 4, "draft_steps": 1, "draft_tokens": 3} | options
    return [len(tokens) - 1 for tokens in speculate(tiny("recurrent-depth", seed=seed), np.array([1, 2]), **call)][1:-1]


def test_guesses_are_kept_and_thrown_away(tiny):
    """Or the test above would say little."""
    assert {0, 1, 3} <= set(chain(*(kept(tiny, seed) for seed in range(4))))
    assert set(kept(tiny, 0, draft_steps=4)) == {3}  # a draft with all iterations is always right


@pytest.mark.parametrize("seed", range(3))
def test_a_tolerance_keeps_likely_guesses_too(tiny, seed):
    """Compared in the first verification: later the texts differ."""
    model, counts = tiny("recurrent-depth", seed=seed), []
    for tolerance in (1.0, 0.8, 0.5, 0.1, 1e-300):
        call = dict(n=9, steps=4, draft_steps=1, draft_tokens=6, tolerance=tolerance)
        first, second = list(speculate(model, np.array([1, 2]), **call))[:2]
        counts.append(len(second) - 1)
        text = [1, 2, *first, *second]
        logits = model(np.array([text]), steps=4).data[0, 2:-1]  # where the tokens of `second` were chosen
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        chosen = p[np.arange(len(second)), second]
        assert (chosen >= tolerance * p.max(-1) * (1 - 1e-9)).all()
        if len(second) < 7:
            assert chosen[-1] == p[-1].max()  # after the first guess that is not kept, the model's own
    assert counts == sorted(counts) and counts[-1] == 6


def test_a_state_without_its_last_tokens_is_the_one_before_them(tiny, arrays_in):
    model, tokens = without_tape(tiny("recurrent-depth")), np.random.default_rng(8).integers(0, 11, (2, 9))
    _, whole = model.prefill(tokens, model.initial_state(2, 2), 3)
    _, short = model.prefill(tokens[:, :6], model.initial_state(2, 2), 3)
    back = without_last(whole, 3)
    assert back.position == short.position == 6
    for ours, theirs in zip(arrays_in(back[1:4]), arrays_in(short[1:4]), strict=True):
        assert_close(ours, theirs, 1e-13)
    expected, _ = model.prefill(tokens[:, :3], short, 3)
    assert_close(model.prefill(tokens[:, :3], back, 3)[0], expected, 1e-12)


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        ({"n": 0}, "0, 3, 4, 4 and 1.0"),
        ({"steps": 0}, "5, 0, 4, 4 and 1.0"),
        ({"draft_steps": 0}, "5, 3, 0, 4 and 1.0"),
        ({"draft_tokens": 0}, "5, 3, 4, 0 and 1.0"),
        ({"tolerance": 0.0}, "5, 3, 4, 4 and 0.0"),
        ({"tolerance": 1.5}, "5, 3, 4, 4 and 1.5"),
        ({"tolerance": float("nan")}, "5, 3, 4, 4 and nan"),
    ],
)
def test_bad_arguments_are_refused_at_once(tiny, bad, got):
    expected = r"expected n, steps, draft_steps and draft_tokens of at least 1 and a tolerance in \(0, 1\], got "
    with pytest.raises(ValueError, match=expected + got):
        speculate(tiny("recurrent-depth"), np.array([1]), **{"n": 5} | bad)  # no token asked for yet
