"""Mamba: the paper's formulas in plain NumPy, gradients of parameters and of the state, what a state is and holds.

What holds for every model alike is in test_every_model.py.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.generate import state_bytes
from tinyrec.models import build, make_config
from tinyrec.models.mamba import LayerState
from tinyrec.nn import parameters, without_tape
from tinyrec.ops import concat, cross_entropy
from tinyrec.optim import optimizer_for
from tinyrec.tape import no_grad

# Sizes are pairwise distinct; the second has nothing at its default.
OPTIONS = [
    {"n_layers": 3},
    {"d_model": 17, "dt_rank": 0, "expand": 3, "d_state": 4, "conv_width": 2, "n_layers": 1},
    {"d_state": 1, "conv_width": 1, "expand": 1},
]


def draw_tokens(seed, batch, time, vocab=11):
    return np.random.default_rng([2, seed]).integers(0, vocab, (batch, time))


def draw_state(model, seed, batch):
    """A state that no zeros hide in."""
    rng = np.random.default_rng([3, seed])
    return tuple(LayerState(*(rng.standard_normal(x.shape) for x in layer)) for layer in model.initial_state(batch))


def silu(x):
    return x / (1.0 + np.exp(-x))


def rmsnorm(x, gain):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain


def plain(model, tokens, state):
    """Figure 3 and algorithm 2, one token, one sequence and one channel after the other; logits (B, T, V), states."""
    p = {name: tensor.data for name, tensor in parameters(model)}
    d, n, rank = model.config.d_inner, model.config.d_state, model.config.rank
    logits = np.zeros((*tokens.shape, model.config.vocab_size))
    state = [(layer.h.copy(), layer.conv.copy()) for layer in state]
    for row, t in np.ndindex(*tokens.shape):
        x = p["embedding"][tokens[row, t]]
        for i, (h, conv) in enumerate(state):
            q = {name.removeprefix(f"blocks.{i}.mixer."): w for name, w in p.items()}
            x_hat = rmsnorm(x, p[f"blocks.{i}.norm.gain"])
            window = np.concatenate([conv[row], [x_hat @ q["in_proj.w"]]])  # the present comes last
            conv[row] = window[1:]
            u = silu((window * q["conv_w"]).sum(0) + q["conv_b"])
            made = u @ q["x_proj.w"]
            dt = np.log1p(np.exp(made[:rank] @ q["dt_proj.w"] + q["dt_proj.b"]))
            b, c, y = made[rank : rank + n], made[rank + n :], np.zeros(d)
            for k in range(d):
                h[row, k] = np.exp(-np.exp(q["a_log"][k]) * dt[k]) * h[row, k] + dt[k] * b * u[k]
                y[k] = c @ h[row, k] + q["d"][k] * u[k]
            x = x + (y * silu(x_hat @ q["gate_proj.w"])) @ q["out_proj.w"]
        logits[row, t] = rmsnorm(x, p["final_norm.gain"]) @ p["embedding"].T
    return logits, state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_formulas_in_plain_numpy(tiny, options):
    model, tokens = tiny("mamba", **options), draw_tokens(0, 2, 7)
    state = draw_state(model, 0, 2)
    expected, expected_state = plain(model, tokens, state)
    with no_grad():
        logits, after = model.prefill(tokens, state)
        fresh = model(tokens)
    assert_close(logits, expected, 1e-12)
    for layer, (h, conv) in zip(after, expected_state, strict=True):
        assert_close(layer.h, h, 1e-12)
        assert_close(layer.conv, conv, 1e-12)
    assert_close(fresh, plain(model, tokens, model.initial_state(2))[0], 1e-12)


# --- gradients --------------------------------------------------------------------------------------------------------


def place(model, name, tensor):
    """Make this Tensor the parameter of that name."""
    *path, last = name.split(".")
    for key in path:
        model = model[int(key)] if key.isdigit() else getattr(model, key)
    setattr(model, last, tensor)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_parameter_agrees_with_finite_differences(tiny, options):
    model, tokens, targets = tiny("mamba", **options), draw_tokens(0, 2, 7), draw_tokens(1, 2, 7)
    everything = list(parameters(model))
    assert len(everything) == 11 * model.config.n_layers + 2
    for key, tensor in everything:

        def loss(w, key=key):
            place(model, key, w)
            return cross_entropy(model(tokens), targets)

        gradcheck(loss, tensor.data, tol=1e-7, name=key)
        place(model, key, tensor)


@pytest.mark.parametrize("time", [1, 2, 7])  # shorter than the convolution's reach, and longer
def test_the_state_has_gradients_on_both_sides(tiny, time):
    """From logits and last state to the first state: what training on chunks of a long text needs."""
    model, tokens = tiny("mamba"), draw_tokens(2, 2, time)

    def run(conv0, h0, conv1, h1):
        logits, after = model.prefill(tokens, (LayerState(conv0, h0), LayerState(conv1, h1)))
        return logits, *(x for layer in after for x in layer)

    gradcheck(run, *(x for layer in draw_state(model, 1, 2) for x in layer), tol=1e-7)


@settings(max_examples=40)
@given(
    option=st.sampled_from(OPTIONS),
    pieces=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    seed=st.integers(0, 9),
)
def test_any_cut_equals_the_whole(tiny, option, pieces, seed):
    model, tokens = tiny("mamba", seed=seed, **option), draw_tokens(seed, 2, sum(pieces))
    state, read, at = model.initial_state(2), [], 0
    for n in pieces:
        if n == 1:
            logits, state = model.step(tokens[:, at], state)
            logits = logits.reshape(2, 1, 11)
        else:
            logits, state = model.prefill(tokens[:, at : at + n], state)
        read.append(logits)
        at += n
    assert_close(concat(*read, axis=1), model(tokens), 1e-10)


# --- what a state is --------------------------------------------------------------------------------------------------


def test_a_state_never_grows_and_is_as_large_as_said(tiny):
    model = without_tape(tiny("mamba", "float32"))
    state = model.initial_state(3)
    layers, d, n, kept = 2, 12, 3, 3
    assert state_bytes(state) == 4 * 3 * layers * d * (n + kept)
    for time in (1, 2, 50):
        _, state = model.prefill(draw_tokens(3, 3, time), state)
        assert [x.shape for layer in state for x in layer] == layers * [(3, kept, d), (3, d, n)]
        assert {x.dtype for layer in state for x in layer} == {np.dtype("float32")}


def test_a_token_changes_nothing_before_it_and_all_after_it(tiny):
    model, tokens = tiny("mamba"), draw_tokens(4, 1, 12)
    for t in range(12):
        other = tokens.copy()
        other[0, t] = (other[0, t] + 1) % 11
        with no_grad():
            changed = (model(tokens).data != model(other).data).any(axis=(0, 2))
        assert changed.tolist() == [s >= t for s in range(12)]


def test_rows_of_a_batch_do_not_meet(tiny):
    model, tokens = tiny("mamba"), draw_tokens(5, 3, 6)
    with no_grad():
        together = model(tokens).data
        for row in range(3):
            assert_close(together[row], model(tokens[row : row + 1]).data[0], 1e-13)


# --- training ---------------------------------------------------------------------------------------------------------


def test_weight_decay_spares_a_log_and_d():
    model = build("mamba", make_config("mamba", d_model=8, n_layers=2), np.random.default_rng(0))
    tensors = dict(parameters(model))
    before = {name: tensor.data.copy() for name, tensor in tensors.items()}
    assert before["blocks.0.mixer.a_log"].ndim == 2  # by its shape it would decay
    for tensor in tensors.values():
        tensor.grad = np.zeros_like(tensor.data)  # so that decay is all that moves
    optimizer_for(model, lr=0.1, weight_decay=0.5).step()
    still = {name.rpartition(".mixer.")[2] for name, x in before.items() if (tensors[name].data == x).all()}
    gains = {"blocks.0.norm.gain", "blocks.1.norm.gain", "final_norm.gain"}
    assert still == {"a_log", "d", "conv_b", "dt_proj.b"} | gains
