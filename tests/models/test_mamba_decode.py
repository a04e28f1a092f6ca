"""Mamba's decoder hands its state on and back; that it agrees with Mamba.step is in test_every_model.py."""

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.models import decoder
from tinyrec.nn import parameters, without_tape


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
