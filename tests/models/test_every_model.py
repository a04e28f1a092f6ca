"""What holds for every model: each gradient, one answer however the tokens are cut, the fast decoder, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.models import DECODERS, MODELS, decoder
from tinyrec.models.recurrent_depth_config import PRESETS
from tinyrec.nn import parameters, without_tape
from tinyrec.ops import concat, cross_entropy
from tinyrec.tape import array_of, no_grad
from tinyrec.walk import grad

# Settings under which a model has other parts than by default.
VARIANTS = [(name, {}) for name in MODELS]
VARIANTS += [("rwkv", {"pre_ffn": True, "ln0": False, "n_layers": 2})]
VARIANTS += [("mamba", {"d_model": 17, "dt_rank": 0, "expand": 3, "d_state": 4, "conv_width": 2})]
VARIANTS += [("mamba", {"d_state": 1, "conv_width": 1, "expand": 1, "dt_rank": 7})]
VARIANTS += [(f"ttt-{inner}", {"backbone": "transformer"}) for inner in ("linear", "mlp")]  # 3 tokens a mini-batch
VARIANTS += [("ttt-linear", {"d_model": 24, "n_heads": 3, "mini_batch": 1, "conv_width": 1, "d_mlp": 0})]
VARIANTS += [("ttt-mlp", {"checkpoint": 1})]
VARIANTS += [("qrnn", {"pooling": pooling}) for pooling in ("f", "ifo")]
VARIANTS += [("aft", {"kind": kind}) for kind in ("full", "simple")]
VARIANTS += [("recurrent-depth", {**PRESETS["bad-run-1"], "n_coda": 0}), ("recurrent-depth", {"block": "pre-norm"})]
VARIANTS += [("recurrent-depth", {"recompute": True, "n_prelude": 2})]
VARIANTS = [pytest.param(name, options, id=f"{name} {options or ''}") for name, options in VARIANTS]


def draw_tokens(seed, batch, time, vocab=11):
    return np.random.default_rng([2, seed]).integers(0, vocab, (batch, time))


def place(model, name, tensor):
    """Make this Tensor the parameter of that name."""
    *path, last = name.split(".")
    for key in path:
        model = model[int(key)] if key.isdigit() else getattr(model, key)
    setattr(model, last, tensor)


def read(model, tokens, pieces):
    """Logits of tokens (B, T) read in pieces of these lengths, and the last state; a piece of 1 is a step."""
    state, logits, at = model.initial_state(len(tokens)), [], 0
    for piece in pieces:
        if piece == 1:
            out, state = model.step(tokens[:, at], state)
            logits.append(array_of(out)[:, None])
        else:
            out, state = model.prefill(tokens[:, at : at + piece], state)
            logits.append(array_of(out))
        at += piece
    return np.concatenate(logits, axis=1), state


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_parameter_agrees_with_finite_differences(tiny, name, options):
    model, tokens, targets = tiny(name, **options), draw_tokens(0, 2, 7), draw_tokens(1, 2, 7)
    for key, tensor in parameters(model):

        def loss(w, key=key):
            place(model, key, w)
            return cross_entropy(model(tokens), targets)

        gradcheck(loss, tensor.data, eps=1e-4, tol=1e-7, name=key)  # a larger step shows its own error, eps^4
        place(model, key, tensor)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_parameter_gets_a_gradient(tiny, name, options):
    model, tokens = tiny(name, **options), draw_tokens(2, 3, 12)
    names, tensors = zip(*parameters(model), strict=True)
    gradients = grad(cross_entropy(model(tokens), draw_tokens(3, 3, 12)), tensors)
    assert [key for key, g in zip(names, gradients, strict=True) if not g.any()] == []


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@settings(max_examples=25)
@given(pieces=st.lists(st.integers(1, 7), min_size=1, max_size=5), plain=st.booleans(), seed=st.integers(0, 9))
def test_any_cut_equals_the_parallel_form(tiny, name, options, pieces, plain, seed):
    model, tokens = tiny(name, seed=seed, **options), draw_tokens(seed, 2, sum(pieces))
    with no_grad():
        whole = model(tokens).data
        assert_close(read(without_tape(model) if plain else model, tokens, pieces)[0], whole, 1e-10)


CACHES = ("griffin", "transformer", "recurrent-depth")  # of keys and values, which are constants to later calls


@pytest.mark.parametrize(("name", "options"), [p for p in VARIANTS if p.values[0] not in CACHES])
def test_gradients_cross_a_cut(tiny, name, options):
    if options.get("kind") == "full":
        pytest.skip("keys and values that an earlier call cached are constants, as in attention")
    model, tokens, targets = tiny(name, **options), draw_tokens(4, 2, 9), draw_tokens(5, 2, 9)
    tensors = [tensor for _, tensor in parameters(model)]
    whole = grad(cross_entropy(model(tokens), targets), tensors)
    left, state = model.prefill(tokens[:, :4], model.initial_state(2))
    right, _ = model.prefill(tokens[:, 4:], state)
    for a, b in zip(grad(cross_entropy(concat(left, right, axis=1), targets), tensors), whole, strict=True):
        assert_close(a, b, 1e-11)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_the_decoder_agrees_with_step(tiny, arrays_in, name, options):
    model, tokens = tiny(name, **options), draw_tokens(6, 3, 9)
    plain, fast = without_tape(model), decoder(model)
    assert type(fast) is DECODERS.get(type(model), type(model))
    _, state = plain.prefill(tokens[:, :4], plain.initial_state(3))
    for start in (plain.initial_state(3), state):
        mine = start
        for t in range(4, 9):
            before = [x.copy() for x in arrays_in(mine)]
            expected, theirs = plain.step(tokens[:, t], mine)
            logits, after = fast.step(tokens[:, t], mine)
            assert_close(logits, expected, 1e-12, f"logits of token {t}")
            for a, b in zip(arrays_in(after), arrays_in(theirs), strict=True):
                assert_close(a, b, 1e-12)
            for a, b in zip(arrays_in(mine), before, strict=True):
                assert (a == b).all()  # a state can be gone on from twice
            mine = after


def test_tokens_must_have_two_axes(tiny, any_name):
    with pytest.raises(ValueError, match=r"expected tokens \(B, T\)"):
        tiny(any_name)(np.array([1, 2, 3]))
