"""The decoder, a second text of Mamba for one token, agrees with Mamba.step, whatever the state came from."""

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.models import decoder
from tinyrec.models.mamba_decode import Decoder
from tinyrec.nn import parameters, without_tape

OPTIONS = [
    {},
    {"d_model": 17, "dt_rank": 0, "expand": 3, "d_state": 4, "conv_width": 2, "n_layers": 3},
    {"d_state": 1, "conv_width": 1, "expand": 1, "dt_rank": 7},
]


def assert_agree_token_by_token(model, state, tokens):
    """Step both forms from one state, and go on from the decoder's; compare logits and states at each token."""
    plain, fast = without_tape(model), decoder(model)
    assert type(fast) is Decoder
    for t in range(tokens.shape[1]):
        expected, expected_state = plain.step(tokens[:, t], state)
        logits, state = fast.step(tokens[:, t], state)
        assert_close(logits, expected, 1e-12, f"logits of token {t}")
        for mine, theirs in zip(state, expected_state, strict=True):
            assert_close(mine.h, theirs.h, 1e-12, "h")
            assert_close(mine.conv, theirs.conv, 1e-12, "conv")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_from_the_start(tiny, options):
    model = tiny("mamba", **options)
    tokens = np.random.default_rng(1).integers(0, 11, (3, 9))
    assert_agree_token_by_token(model, without_tape(model).initial_state(3), tokens)


@pytest.mark.parametrize("prompt", [1, 2, 30])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_after_a_prompt(tiny, options, prompt):
    model, rng = tiny("mamba", **options), np.random.default_rng(2)
    plain = without_tape(model)
    _, state = plain.prefill(rng.integers(0, 11, (4, prompt)), plain.initial_state(4))
    assert_agree_token_by_token(model, state, rng.integers(0, 11, (4, 7)))


def test_a_prompt_can_be_read_on_top_of_decoded_tokens(tiny):
    model, tokens = tiny("mamba"), np.random.default_rng(3).integers(0, 11, (2, 12))
    plain, fast = without_tape(model), decoder(model)
    state = plain.initial_state(2)
    for t in range(5):
        _, state = fast.step(tokens[:, t], state)
    assert_close(plain.prefill(tokens[:, 5:], state)[0], plain(tokens)[:, 5:], 1e-12)


def test_one_state_can_be_continued_twice(tiny):
    model = tiny("mamba")
    fast, state = decoder(model), without_tape(model).initial_state(1)
    for token in np.random.default_rng(4).integers(0, 11, 5):
        _, state = fast.step(np.array([token]), state)
    first, _ = fast.step(np.array([1]), state)
    fast.step(np.array([2]), state)
    again, _ = fast.step(np.array([1]), state)
    assert np.array_equal(first, again)


@pytest.mark.parametrize("shift", [-300.0, 300.0])  # e^300 is beyond float32
def test_float32_is_kept_and_nothing_warns_far_from_zero(tiny, shift):
    model = tiny("mamba", "float32")
    for name, tensor in parameters(model):
        if name.endswith(("conv_b", "dt_proj.b")):
            tensor.data += shift
    plain, fast = without_tape(model), decoder(model)
    state = plain.initial_state(2)
    for token in (3, 5, 7):
        expected, _ = plain.step(np.array([token, 1]), state)
        logits, state = fast.step(np.array([token, 1]), state)
        assert np.isfinite(logits).all()
        assert_close(logits, expected, 1e-5)
    assert {x.dtype for x in (logits, *(x for layer in state for x in layer))} == {np.dtype("float32")}
