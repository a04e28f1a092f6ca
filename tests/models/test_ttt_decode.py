"""TTT's decoder hands its state on and back; that it agrees with TTT.step is in test_every_model.py."""

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.models import decoder
from tinyrec.nn import parameters, without_tape

FOUR = [(name, backbone) for name in ("ttt-linear", "ttt-mlp") for backbone in ("transformer", "mamba")]


@pytest.mark.parametrize(("name", "backbone"), FOUR)
@pytest.mark.parametrize("before", [3, 5])  # of mini-batches of 3: at an end, and inside
def test_a_prompt_can_be_read_on_top_of_decoded_tokens(tiny, name, backbone, before):
    model, tokens = tiny(name, backbone=backbone), np.random.default_rng(3).integers(0, 11, (2, 12))
    plain, fast = without_tape(model), decoder(model)
    state = plain.initial_state(2)
    for t in range(before):
        _, state = fast.step(tokens[:, t], state)
    assert_close(plain.prefill(tokens[:, before:], state)[0], plain(tokens)[:, before:], 1e-11)


@pytest.mark.parametrize(("name", "backbone"), FOUR)
def test_one_state_can_be_continued_twice(tiny, name, backbone):
    model = tiny(name, backbone=backbone)
    fast, state = decoder(model), without_tape(model).initial_state(1)
    for token in np.random.default_rng(4).integers(0, 11, 5):
        _, state = fast.step(np.array([token]), state)
    first, _ = fast.step(np.array([1]), state)
    fast.step(np.array([2]), state)
    again, _ = fast.step(np.array([1]), state)
    assert np.array_equal(first, again)


@pytest.mark.parametrize("name", ["ttt-linear", "ttt-mlp"])
def test_a_tau_of_0_is_kept_at_0(tiny, name):
    """Of three places in a mini-batch one below 0, which counts as 0, and the last, at which the step is taken."""
    for deltas in ((0.1, -0.9, 0.2), (0.1, 0.2, -0.9)):
        model = tiny(name)
        for block in model.blocks:
            block.mixer.delta.data[:] = deltas
        plain, fast = without_tape(model), decoder(model)
        state = plain.initial_state(1)
        for token in (3, 1, 4, 1, 5, 9, 2):
            expected, _ = plain.step(np.array([token]), state)
            logits, state = fast.step(np.array([token]), state)
            assert_close(logits, expected, 1e-12)


@pytest.mark.parametrize("name", ["ttt-linear", "ttt-mlp"])
@pytest.mark.parametrize("shift", [-300.0, 300.0])  # e^300 is beyond float32
def test_float32_is_kept_and_nothing_warns_far_from_zero(tiny, name, shift):
    model = tiny(name, "float32")
    for key, tensor in parameters(model):
        if key.endswith(("lam.b", "mixer.gate.w", "mlp.gate.w", "inner.b1")):
            tensor.data += shift
    plain, fast = without_tape(model), decoder(model)
    state = plain.initial_state(2)
    for token in (3, 5, 7, 1):
        expected, _ = plain.step(np.array([token, 1]), state)
        logits, state = fast.step(np.array([token, 1]), state)
        assert np.isfinite(logits).all()
        assert_close(logits, expected, 1e-4)
    arrays = (x for layer in state.layers for x in (layer.before, layer.qk, *layer.weights, *layer.sums))
    assert {x.dtype for x in (logits, *arrays)} == {np.dtype("float32")}
