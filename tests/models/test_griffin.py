"""Hawk, Griffin and the transformer: every gradient, and one answer however the tokens are cut, packed or branched."""

import importlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.models import build, make_config
from tinyrec.models.griffin import GriffinState, RecurrentState
from tinyrec.nn import parameters
from tinyrec.ops import concat, cross_entropy
from tinyrec.tape import array_of, no_grad
from tinyrec.walk import grad

NAMES = ("hawk", "griffin", "transformer")
attention_module = importlib.import_module("tinyrec.ops.attention")


def draw_tokens(seed, batch, time, vocab=11):
    return np.random.default_rng([2, seed]).integers(0, vocab, (batch, time))


def draw_positions(seed, batch, time):
    """Packed documents: places count up and begin again at 0."""
    rng = np.random.default_rng([3, seed])
    positions = np.zeros((batch, time), int)
    for row in positions:
        starts = [0, *sorted(rng.choice(np.arange(1, time), 2, replace=False)), time]
        for a, b in pairwise(starts):
            row[a:b] = np.arange(b - a)
    return positions


def arrays_of(state: GriffinState):
    """Every array in a state."""
    yield state.position
    for layer in state.layers:
        pair = layer if isinstance(layer, RecurrentState) else (layer.keys, layer.values)
        yield from map(array_of, pair)


# --- gradients --------------------------------------------------------------------------------------------------------


def place(model, name, tensor):
    """Make this Tensor the parameter of that name."""
    *path, last = name.split(".")
    for key in path:
        model = model[int(key)] if key.isdigit() else getattr(model, key)
    setattr(model, last, tensor)


@pytest.mark.parametrize("packed", [False, True])
def test_every_parameter_agrees_with_finite_differences(tiny, name, packed):
    model, tokens, targets = tiny(name, logit_cap=5.0, embed_scale=True), draw_tokens(0, 2, 7), draw_tokens(1, 2, 7)
    positions = draw_positions(0, 2, 7) if packed else None
    everything = list(parameters(model))
    assert len(everything) == {"hawk": 65, "griffin": 57, "transformer": 41}[name]
    for key, tensor in everything:

        def loss(w, key=key):
            place(model, key, w)
            return cross_entropy(model(tokens, positions), targets)

        gradcheck(loss, tensor.data, tol=1e-7, name=key)
        place(model, key, tensor)


def test_gradients_cross_a_cut_in_a_model_without_attention(tiny):
    model, tokens, targets = tiny("hawk"), draw_tokens(2, 2, 9), draw_tokens(3, 2, 9)
    tensors = [tensor for _, tensor in parameters(model)]
    whole = grad(cross_entropy(model(tokens), targets), tensors)
    left, state = model.prefill(tokens[:, :4], model.initial_state(2))
    right, _ = model.prefill(tokens[:, 4:], state)
    for a, b in zip(grad(cross_entropy(concat(left, right, axis=1), targets), tensors), whole, strict=True):
        assert_close(a, b, 1e-12)


def test_a_recorded_step_has_the_gradients_of_its_own_token(tiny):
    model = tiny("transformer", n_layers=1)
    with no_grad():
        _, state = model.prefill(draw_tokens(4, 2, 5), model.initial_state(2))
    for key in ("blocks.0.mixer.q.w", "blocks.0.mixer.k.w", "blocks.0.mixer.v.w", "embedding"):

        def step(w, key=key):
            place(model, key, w)
            return model.step(np.array([3, 7]), state)[0]

        gradcheck(step, dict(parameters(model))[key].data, name=key)


# --- parallel == prefill + steps --------------------------------------------------------------------------------------


def read(model, tokens, pieces, state=None):
    """Logits of tokens (B, T) read in pieces of these lengths; a piece of 1 is a step."""
    state, logits, at = state or model.initial_state(len(tokens)), [], 0
    for piece in pieces:
        if piece == 1:
            out, state = model.step(tokens[:, at], state)
            logits.append(out.data[:, None])
        else:
            out, state = model.prefill(tokens[:, at : at + piece], state)
            logits.append(out.data)
        at += piece
    assert at == tokens.shape[1]
    return np.concatenate(logits, axis=1), state


@settings(max_examples=40)
@given(
    name=st.sampled_from(NAMES),
    pieces=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    recording=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_cut_equals_the_parallel_form(tiny, name, pieces, recording, seed):
    model, tokens = tiny(name, seed=seed), draw_tokens(seed, 2, sum(pieces))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_module, "CHUNK", 4)
        whole = model(tokens).data
        if recording:
            logits, state = read(model, tokens, pieces)
        else:
            with no_grad():
                logits, state = read(model, tokens, pieces)
    assert_close(logits, whole, 1e-10)
    assert (state.position == tokens.shape[1]).all()


def test_steps_alone_equal_the_parallel_form(tiny, name):
    model, tokens = tiny(name), draw_tokens(4, 3, 12)
    with no_grad():
        assert_close(read(model, tokens, [1] * 12)[0], model(tokens).data, 1e-10)


def test_steps_far_beyond_the_window_use_constant_memory(tiny, name):
    model, tokens = tiny(name), draw_tokens(5, 1, 200)
    with no_grad():
        logits, state = read(model, tokens, [1] * 200)
        assert_close(logits, model(tokens).data, 1e-10)
    layers = dict(zip(model.config.kinds, state.layers, strict=True))
    if name == "griffin":
        assert layers["local"].keys.shape == (1, model.config.window + 1, 1, 4)
        assert layers["local"]._buffer.keys.shape[1] <= 32
    if name == "transformer":
        assert layers["global"].keys.shape == (1, 200, 1, 4)


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_packed_documents_equal_documents_alone(tiny, name, seed):
    model, tokens, positions = tiny(name), draw_tokens(seed, 2, 14), draw_positions(seed, 2, 14)
    packed = model(tokens, positions).data
    for n in range(2):
        starts = [*np.flatnonzero(positions[n] == 0), 14]
        for a, b in pairwise(starts):
            assert_close(packed[n, a:b], model(tokens[n : n + 1, a:b]).data[0], 1e-12)


def test_packed_documents_can_be_cut_and_continued(tiny, name):
    model, tokens, positions = tiny(name), draw_tokens(6, 2, 14), draw_positions(6, 2, 14)
    for cut in (1, 5, 9):
        with no_grad():
            left, state = model.prefill(tokens[:, :cut], model.initial_state(2), positions[:, :cut])
            right, state = model.prefill(tokens[:, cut:], state, positions[:, cut:])
            assert_close(np.concatenate([left.data, right.data], axis=1), model(tokens, positions).data, 1e-12)
            step, _ = model.step(tokens[:, 0], state)
        last = [tokens[n, np.flatnonzero(positions[n] == 0)[-1] :] for n in range(2)]
        for n, document in enumerate(last):
            alone = model(np.append(document, tokens[n, 0])[None]).data[0, -1]
            assert_close(step.data[n], alone, 1e-12)


# --- states are values ------------------------------------------------------------------------------------------------


def test_a_step_does_not_modify_the_state_it_is_given(tiny, name):
    model, tokens = tiny(name), draw_tokens(7, 2, 20)
    states = [model.initial_state(2)]
    copies = []
    with no_grad():
        for t in range(20):
            copies.append([x.copy() for x in arrays_of(states[-1])])
            states.append(model.step(tokens[:, t], states[-1])[1])
    for state, copy in zip(states, copies, strict=False):
        for x, y in zip(arrays_of(state), copy, strict=True):
            assert (x == y).all()


@pytest.mark.parametrize("prompt", [2, 6])
def test_two_branches_of_one_state_are_independent(tiny, name, prompt):
    model, tokens = tiny(name), draw_tokens(8, 2, prompt)
    endings = [draw_tokens(seed, 2, 8) for seed in (9, 10)]
    logits = [[], []]
    with no_grad():
        _, state = read(model, tokens, [1] * prompt)
        states = [state, state]
        for t in range(8):  # in turns, so that each would write over the other
            for k in range(2):
                out, states[k] = model.step(endings[k][:, t], states[k])
                logits[k].append(out.data)
    for k in range(2):
        whole = model(np.concatenate([tokens, endings[k]], axis=1)).data[:, prompt:]
        assert_close(np.stack(logits[k], axis=1), whole, 1e-10)


def test_the_initial_state_has_the_dtype_of_the_model(tiny, name):
    for dtype in ("float32", "float64"):
        first, *rest = arrays_of(tiny(name, dtype).initial_state(3))
        assert first.tolist() == [0, 0, 0]
        assert {x.dtype for x in rest} == {np.dtype(dtype)} and {len(x) for x in rest} == {3}


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_tokens_of_a_wrong_shape_are_refused_in_one_sentence(shape):
    model = build("hawk", make_config("hawk"), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"expected tokens \(B, T\)"):
        model(np.zeros(shape, int))
    with pytest.raises(ValueError, match=r"positions alike, got \(2, 5\) and \(2, 4\)"):
        model(np.zeros((2, 5), int), np.zeros((2, 4), int))
