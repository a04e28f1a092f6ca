"""The decoder, a second text of Griffin for one token, agrees with Griffin.step, whatever the state came from."""

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.models import build, decoder, make_config
from tinyrec.models.griffin_decode import Decoder
from tinyrec.nn import parameters, without_tape

NAMES = ["hawk", "griffin", "transformer"]
OPTIONS = [
    {},
    {"logit_cap": 5.0, "embed_scale": True, "window": 0},
    {"reset": False, "rope_fraction": 1.0, "conv_width": 1},
    {"window": 3, "conv_width": 6, "gate_blocks": 2, "n_layers": 4},
]


def model_of(name, options, dtype="float64"):
    rng = np.random.default_rng(0)
    model = build(name, make_config(name, vocab_size=11, **options), rng, dtype)
    for _, tensor in parameters(model):
        tensor.data += (0.1 * rng.standard_normal(tensor.shape)).astype(dtype)  # no zero bias, no zero gain
    return model


def assert_agree_token_by_token(model, state, tokens):
    """Step both forms from one state, and go on from the decoder's; compare logits and states at each token."""
    plain, fast = without_tape(model), decoder(model)
    assert type(fast) is Decoder
    for t in range(tokens.shape[1]):
        expected, expected_state = plain.step(tokens[:, t], state)
        logits, state = fast.step(tokens[:, t], state)
        assert_close(logits, expected, 1e-12, f"logits of token {t}")
        assert np.array_equal(state.position, expected_state.position)
        for mine, theirs in zip(state.layers, expected_state.layers, strict=True):
            both = ("h", "conv") if hasattr(mine, "h") else ("keys", "values")
            for field in both:
                assert_close(getattr(mine, field), getattr(theirs, field), 1e-12, field)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_from_the_start(name, options):
    model = model_of(name, options)
    tokens = np.random.default_rng(1).integers(0, 11, (3, 9))
    assert_agree_token_by_token(model, without_tape(model).initial_state(3), tokens)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_after_packed_documents_of_different_age(name, options):
    model, rng = model_of(name, options), np.random.default_rng(2)
    positions = np.array([[0, 1, 2, 3, 0, 1], [4, 5, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 0]])
    plain = without_tape(model)
    _, state = plain.prefill(rng.integers(0, 11, (4, 6)), plain.initial_state(4), positions)
    assert_agree_token_by_token(model, state, rng.integers(0, 11, (4, 7)))


@pytest.mark.parametrize("name", NAMES)
def test_one_state_can_be_continued_twice(name):
    model, rng = model_of(name, {}), np.random.default_rng(3)
    fast = decoder(model)
    state = without_tape(model).initial_state(1)
    for token in rng.integers(0, 11, 5):
        _, state = fast.step(np.array([token]), state)
    first, _ = fast.step(np.array([1]), state)
    fast.step(np.array([2]), state)
    again, _ = fast.step(np.array([1]), state)
    assert np.array_equal(first, again)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_kept_and_nothing_warns_far_below_zero(name):
    model = model_of(name, {}, "float32")
    for tensor_name, tensor in parameters(model):
        if tensor_name.endswith((".gate.b", ".b_a", ".b_x")):
            tensor.data -= 200.0  # e^200 is beyond float32
    logits, state = decoder(model).step(np.array([3, 5]), without_tape(model).initial_state(2))
    arrays = [a for layer in state.layers for a in (layer if isinstance(layer, tuple) else (layer.keys, layer.values))]
    assert {a.dtype for a in [logits, *arrays]} == {np.dtype("float32")} and np.isfinite(logits).all()
