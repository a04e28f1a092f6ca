"""RWKV-4 against the official code and transformers: logits, loss, every gradient with and without L2Wrap, states."""

from pathlib import Path

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.interop import FAMILIES, from_official, to_official
from tinyrec.models import build, make_config
from tinyrec.nn import parameters, without_tape
from tinyrec.ops import cross_entropy
from tinyrec.parallel import loss_and_grads
from tinyrec.walk import grad

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-10  # of the largest entry; both sides compute in float64
HF_TOLERANCE = 1e-6  # transformers computes WKV and keeps its state in float32
FLOAT32 = 2e-5


def load(name):
    """(everything in the file, weights by official name)."""
    with np.load(GOLDEN / f"rwkv4_{name}_f64_s0.npz", allow_pickle=False) as z:
        z = {key: z[key] for key in z.files}
    return z, {key[2:]: x for key, x in z.items() if key.startswith("w.")}


def official(dtype="float64"):
    z, weights = load("official")
    config = {key: int(z[key]) for key in ("vocab_size", "n_embd", "n_layer")}
    return z, from_official("rwkv4", {key: x.astype(dtype) for key, x in weights.items()}, config)


def transformers():
    z, weights = load("hf")
    return z, from_official("rwkv4-hf", weights, {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 3})


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", TOLERANCE), ("float32", FLOAT32)])
def test_logits_loss_and_every_gradient(dtype, tolerance):
    z, model = official(dtype)
    tokens, targets = z["ids"][:, :-1], z["ids"][:, 1:]
    logits = model(tokens)
    assert logits.dtype == dtype
    assert_close(logits, z["logits"], tolerance)
    loss = cross_entropy(logits, targets)
    assert_close(loss, z["loss"], tolerance)
    loss.backward()
    gradients = to_official(model, "grad")
    assert {f"g.{name}" for name in gradients} == {name for name in z if name.startswith("g.")}
    for name, g in gradients.items():
        assert_close(g, z[f"g.{name}"], tolerance, name)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_gradient_with_l2wrap(threads):
    """As in training: also where the batch is split among threads."""
    z, model = official()
    loss = loss_and_grads(model, z["ids"][:, :-1], z["ids"][:, 1:], threads=threads)
    assert_close(loss, z["loss"], TOLERANCE)  # the value stays
    for name, g in to_official(model, "grad").items():
        assert_close(g, z[f"gl2wrap.{name}"], TOLERANCE, name)
    assert np.abs(z["gl2wrap.head.weight"] - z["g.head.weight"]).max() > 1e-5  # or this file could not tell


def test_one_token_at_a_time_and_the_state_of_the_official_rnn():
    z, model = official()
    plain = without_tape(model)
    state = plain.initial_state(2)
    for t in range(12):
        logits, state = plain.step(z["ids"][:, t], state)
        assert_close(logits, z["logits"][:, t], TOLERANCE)
        assert_close(logits, z["rnn_logits_fp32"][:, t], FLOAT32)
    for layer, ours in enumerate(state):
        for b in range(2):
            aa, bb, pp, att, ffn = (z[f"state.{b}.{x}.{layer}"]
                                    for x in ("aa.att", "bb.att", "pp.att", "xx.att", "xx.ffn"))  # fmt: skip
            assert_close(ours.x_time[b], att, FLOAT32)
            assert_close(ours.x_channel[b], ffn, FLOAT32)
            gauge = np.exp(ours.o[b] - pp)  # the same sums, in another gauge
            assert_close(ours.p[b] * gauge, aa, FLOAT32)
            assert_close(ours.q[b] * gauge, bb, FLOAT32)


def test_transformers():
    z, model = transformers()
    logits = model(z["ids"])
    assert_close(logits, z["logits"], HF_TOLERANCE)
    loss = cross_entropy(logits, z["targets"])
    assert_close(loss, z["loss"], HF_TOLERANCE)
    loss.backward()
    gradients = to_official(model, "grad", family="rwkv4-hf")
    assert {f"g.{name}" for name in gradients} == {name for name in z if name.startswith("g.")}
    for name, g in gradients.items():
        assert_close(g, z[f"g.{name}"], HF_TOLERANCE, name)
    plain = without_tape(model)
    state = plain.initial_state(2)
    for t in range(12):
        logits, state = plain.step(z["ids"][:, t], state)
        assert_close(logits, z["rnn_logits"][:, t], HF_TOLERANCE)
    for layer, ours in enumerate(state):
        x_channel, x_time, p, q, o = (z[f"state.{i}"][:, :, layer] for i in range(5))
        assert_close(ours.x_channel, x_channel, HF_TOLERANCE)
        assert_close(ours.x_time, x_time, HF_TOLERANCE)
        assert_close(ours.p * np.exp(ours.o - o), p, HF_TOLERANCE)
        assert_close(ours.q * np.exp(ours.o - o), q, HF_TOLERANCE)


def test_round_trips_are_exact():
    (_, weights), (_, hf) = load("official"), load("hf")
    _, model = official()
    _, again = transformers()
    for given, back in (
        (weights, to_official(model)),
        (hf, to_official(model, family="rwkv4-hf")),  # the golden files hold the same weights under both names
        (hf, to_official(again, family="rwkv4-hf")),
        (weights, to_official(again)),
    ):
        assert given.keys() == back.keys() and len(given) == 60
        for name, x in given.items():
            assert back[name].shape == x.shape and (back[name] == x).all() and back[name].flags.c_contiguous


def test_the_option_pre_ffn_has_other_names():
    model = build("rwkv", make_config("rwkv", pre_ffn=True), np.random.default_rng(0), "float64")
    for _, tensor in parameters(model):
        tensor.data += 0.1 * np.random.default_rng(1).standard_normal(tensor.shape)
    weights = to_official(model)
    assert len(weights) == 56
    assert "blocks.0.ffnPre.time_mix_r" in weights and "blocks.0.att.key.weight" not in weights
    again = from_official("rwkv4", weights, {"vocab_size": 256, "n_embd": 64, "n_layer": 3, "pre_ffn": 1})
    tokens = np.arange(10).reshape(2, 5)
    assert (again(tokens).data == model(tokens).data).all()
    with pytest.raises(ValueError, match="pre_ffn"):
        to_official(model, family="rwkv4-hf")


def test_widths_that_we_do_not_have_are_refused():
    good = {"vocab_size": 11, "n_embd": 8, "n_layer": 2}
    assert FAMILIES["rwkv4"].config({**good, "dim_ffn": 16})[1].ffn_expansion == 2
    for bad in ({"dim_att": 16}, {"dim_ffn": 12}):
        with pytest.raises(ValueError, match=r"expected time mixing as wide as the model \(8\)"):
            FAMILIES["rwkv4"].config({**good, **bad})


@pytest.mark.parametrize(("field", "value"), [("layer_norm_epsilon", 1e-3), ("tie_word_embeddings", True)])
def test_a_config_that_means_another_function_is_refused(field, value):
    good = {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 3, "layer_norm_epsilon": 1e-5}
    assert FAMILIES["rwkv4-hf"].config(good)[0] == "rwkv"
    with pytest.raises(ValueError, match=f"the only {field} offered is"):
        from_official("rwkv4-hf", {}, {**good, field: value})


def test_what_does_not_fit_is_listed():
    _, weights = load("official")
    del weights["head.weight"]
    weights["blocks.1.att.time_mix_k"] = np.zeros(16)
    with pytest.raises(ValueError) as caught:
        from_official("rwkv4", weights, {"vocab_size": 37, "n_embd": 16, "n_layer": 3})
    assert str(caught.value) == (
        "these weights do not fit a rwkv4 model of that config: missing head.weight; "
        "blocks.1.att.time_mix_k has shape (16,), expected (1, 1, 16)"
    )


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_gradients_of_the_official_loss_through_a_cut(cut):
    z, model = official()
    tokens, targets = z["ids"][:, :-1], z["ids"][:, 1:]
    left, state = model.prefill(tokens[:, :cut], model.initial_state(2))
    right, _ = model.prefill(tokens[:, cut:], state)
    total = cross_entropy(left, targets[:, :cut], reduction="sum") + cross_entropy(
        right, targets[:, cut:], reduction="sum"
    )
    names, tensors = zip(*parameters(model), strict=True)
    for tensor, g in zip(tensors, grad(total * (1 / targets.size), tensors), strict=True):
        tensor.grad = g
    for name, g in to_official(model, "grad").items():
        assert_close(g, z[f"g.{name}"], TOLERANCE, name)
