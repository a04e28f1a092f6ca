"""Mamba against transformers, equal to mamba-minimal: logits, loss, every gradient, decoding, states, names."""

from pathlib import Path

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.interop import FAMILIES, from_official, to_official
from tinyrec.models import decoder
from tinyrec.nn import without_tape
from tinyrec.ops import cross_entropy

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-10  # of the largest entry; both sides compute in float64
FLOAT32 = 2e-5
HF_CONFIG = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=8, time_step_rank=3, expand=2, conv_kernel=4
)
CONFIG = dict(vocab_size=40, d_model=16, n_layer=2, ssm_cfg={"d_state": 8, "dt_rank": 3, "expand": 2, "d_conv": 4})


def load(dtype="float64"):
    """(everything in the file, weights by transformers' name)."""
    with np.load(GOLDEN / "mamba_f64_s0.npz", allow_pickle=False) as z:
        z = {key: z[key] for key in z.files}
    for field, theirs in (("d_model", "hidden_size"), ("n_layer", "num_hidden_layers"), ("d_state", "state_size")):
        assert z[field] == HF_CONFIG[theirs]
    return z, {key[2:]: x.astype(dtype) for key, x in z.items() if key.startswith("w.")}


def official_names(weights):
    return {key.replace("embeddings", "embedding"): x for key, x in weights.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", TOLERANCE), ("float32", FLOAT32)])
def test_logits_loss_and_every_gradient(dtype, tolerance):
    z, weights = load(dtype)
    model = from_official("mamba-hf", weights, HF_CONFIG)
    logits = model(z["ids"][:, :-1])
    assert logits.dtype == dtype
    assert_close(logits, z["logits"], tolerance)
    loss = cross_entropy(logits, z["ids"][:, 1:])
    assert_close(loss, z["loss"], tolerance)
    loss.backward()
    gradients = to_official(model, "grad", family="mamba-hf")
    assert {f"g.{name}" for name in gradients} == {name for name in z if name.startswith("g.")}
    for name, g in gradients.items():
        assert_close(g, z[f"g.{name}"], tolerance, name)


@pytest.mark.parametrize("form", [without_tape, decoder])
def test_one_token_at_a_time_and_the_states(form):
    z, weights = load()
    model = from_official("mamba-hf", weights, HF_CONFIG)
    reader, state = form(model), without_tape(model).initial_state(2)
    for t in range(12):
        logits, state = reader.step(z["ids"][:, t], state)
        assert_close(logits, z["rnn_logits"][:, t], TOLERANCE)
    for layer, ours in enumerate(state):
        assert_close(ours.conv, z[f"state.{layer}.conv"].swapaxes(1, 2)[:, 1:], TOLERANCE)  # they keep one more
        assert_close(ours.h, z[f"state.{layer}.ssm"], TOLERANCE)


def test_round_trips_are_exact_under_both_names():
    _, hf = load()
    official = official_names(hf)
    one, other = from_official("mamba-hf", hf, HF_CONFIG), from_official("mamba", official, CONFIG)
    assert one.config == other.config
    for given, back in (
        (hf, to_official(one, family="mamba-hf")),
        (official, to_official(one)),
        (hf, to_official(other, family="mamba-hf")),
        (official, to_official(other)),
    ):
        assert given.keys() == back.keys()
        for name, x in given.items():
            assert back[name].shape == x.shape and (back[name] == x).all() and back[name].flags.c_contiguous


def test_the_tied_head_may_be_left_out_and_must_be_equal():
    _, weights = load()
    head = weights.pop("lm_head.weight")
    model = from_official("mamba-hf", weights, HF_CONFIG)
    assert (to_official(model, family="mamba-hf")["lm_head.weight"] == head).all()
    assert "lm_head.weight" not in to_official(model, "grad")
    weights["lm_head.weight"] = head + 1.0
    with pytest.raises(ValueError, match=r"lm_head\.weight is not equal to backbone\.embeddings\.weight, to which"):
        from_official("mamba-hf", weights, HF_CONFIG)


def test_configs_of_the_published_checkpoints():
    published = {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "pad_vocab_size_multiple": 8}
    name, config = FAMILIES["mamba"].config(published)
    assert (name, config.vocab_size, config.d_inner, config.rank, config.d_state) == ("mamba", 50280, 1536, 48, 16)
    hf = {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24, "time_step_rank": 48}
    assert FAMILIES["mamba-hf"].config(hf)[1].rank == config.rank
    assert FAMILIES["mamba-hf"].config({**hf, "time_step_rank": "auto"})[1] == config


@pytest.mark.parametrize(
    ("family", "config", "field"),
    [
        ("mamba-hf", {**HF_CONFIG, "hidden_act": "gelu"}, "hidden_act"),
        ("mamba", {**CONFIG, "rms_norm": False}, "rms_norm"),
        ("mamba", {**CONFIG, "ssm_cfg": {"layer": "Mamba2"}}, "layer"),
    ],
)
def test_what_we_do_not_have_is_refused(family, config, field):
    with pytest.raises(ValueError, match=f"the only {field} offered is"):
        from_official(family, {}, config)


def test_the_epsilon_of_the_norms_is_read():
    assert FAMILIES["mamba-hf"].config({**HF_CONFIG, "layer_norm_epsilon": 1e-3})[1].norm_eps == 1e-3


def test_what_does_not_fit_is_listed():
    _, weights = load()
    del weights["backbone.layers.1.mixer.D"]
    weights["backbone.layers.0.mixer.in_proj.weight"] = np.zeros((16, 64))  # transposed
    with pytest.raises(ValueError) as caught:
        from_official("mamba-hf", weights, HF_CONFIG)
    assert str(caught.value) == (
        "these weights do not fit a mamba-hf model of that config: backbone.layers.0.mixer.in_proj.weight has shape "
        "(16, 64), expected (64, 16); missing backbone.layers.1.mixer.D"
    )
