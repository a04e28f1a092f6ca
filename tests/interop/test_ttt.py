"""TTT against the published PyTorch code: logits, loss, hidden states, every gradient, decoding, states, names."""

import json
from pathlib import Path

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.interop import FAMILIES, from_official, to_official
from tinyrec.models import decoder, make_config
from tinyrec.nn import without_tape
from tinyrec.ops import cross_entropy, embedding
from tinyrec.recurrences import ttt_mlp

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = [f"{inner}_{backbone}" for inner in ("linear", "mlp") for backbone in "TM"]
TOLERANCE = 1e-11  # of the largest entry; both sides compute in float64
FLOAT32 = 2e-5
PARTS = ("W1", "b1", "W2", "b2")  # their names of the inner model's arrays, in the order of ours
SLOPE, CUBIC = 0.79788456, 0.1070322243  # sqrt(2 / pi) and 3 * 0.044715 sqrt(2 / pi), cut to nine digits


def load(file, dtype="float64"):
    """(everything in the file, their config, weights by their name)."""
    with np.load(GOLDEN / f"ttt_{file}_f64.npz", allow_pickle=False) as z:
        z = {key: z[key] for key in z.files}
    weights = {key[2:]: x.astype(dtype) for key, x in z.items() if key.startswith("w/")}
    return z, json.loads(str(z["config"])), weights


def published_slope(z, _=None):
    """Their derivative of GELU, which only the inner gradient uses: TTT-MLP differs by it in the ninth digit."""
    t = np.tanh(SLOPE * z * (1.0 + 0.044715 * z * z))
    return 0.5 * z * (1.0 - t * t) * (SLOPE + CUBIC * z * z) + 0.5 * (1.0 + t)


def published_curvature(z, _=None):
    """The derivative of that."""
    t = np.tanh(SLOPE * z * (1.0 + 0.044715 * z * z))
    dt = (1.0 - t * t) * SLOPE * (1.0 + 3 * 0.044715 * z * z)
    return 0.5 * (1.0 - t * t) * (SLOPE + 3.0 * CUBIC * z * z) - z * t * dt * (SLOPE + CUBIC * z * z) + 0.5 * dt


@pytest.fixture
def their_gelu(monkeypatch):
    monkeypatch.setattr(ttt_mlp, "inner_slope", published_slope)
    monkeypatch.setattr(ttt_mlp, "inner_curvature", published_curvature)


def check_call(file, dtype, tolerance):
    """Logits, loss, every gradient."""
    z, config, weights = load(file, dtype)
    model = from_official("ttt", weights, config)
    logits = model(z["ids"])
    assert logits.dtype == dtype
    assert_close(logits, z["logits"], tolerance)
    loss = cross_entropy(logits[:, :-1], z["ids"][:, 1:])
    assert_close(loss, z["loss"], tolerance)
    loss.backward()
    gradients = to_official(model, "grad")
    assert {f"g/{name}" for name in gradients} == {name for name in z if name.startswith("g/")}
    for name, g in gradients.items():
        assert_close(g, z[f"g/{name}"], tolerance, name)


@pytest.mark.parametrize("file", FILES)
def test_logits_loss_and_every_gradient(file, their_gelu):
    check_call(file, "float64", TOLERANCE)


@pytest.mark.parametrize("file", FILES)
def test_our_own_gelu_differs_in_the_ninth_digit(file):
    check_call(file, "float64", 1e-8)


@pytest.mark.parametrize("file", FILES)
def test_in_float32(file):
    check_call(file, "float32", FLOAT32)


@pytest.mark.parametrize("file", FILES)
def test_hidden_states(file, their_gelu):
    z, config, weights = load(file)
    model = without_tape(from_official("ttt", weights, config))
    state = model.initial_state(2)
    x = embedding(model.embedding, z["ids"])
    for i, (block, layer) in enumerate(zip(model.blocks, state.layers, strict=True)):
        x, _ = block(x, layer, 0, model.rotation(0, 14), 1.0)
        assert_close(x, z[f"hidden/{i}"], TOLERANCE)
    assert_close(model.final_norm(x), z["hidden/2"], TOLERANCE)


@pytest.mark.parametrize("form", [without_tape, decoder])
@pytest.mark.parametrize("file", FILES)
def test_one_token_at_a_time_and_the_state_inside_of_a_mini_batch(file, form, their_gelu):
    z, config, weights = load(file)
    model = from_official("ttt", weights, config)
    reader, state = form(model), without_tape(model).initial_state(2)
    for t in range(14):
        logits, state = reader.step(z["ids"][:, t], state)
        assert_close(logits, z["decode_from_scratch_logits"][:, t], TOLERANCE)
        if t == 8:  # one token after the second mini-batch of four
            assert state.at == 1
            for part, ours, sums in zip(PARTS, state.layers[0].weights, state.layers[0].sums, strict=False):
                assert_close(ours, z[f"cache_t8/{part}_states"].reshape(ours.shape), TOLERANCE)
                assert_close(sums, z[f"cache_t8/{part}_grad"].reshape(ours.shape), TOLERANCE)


@pytest.mark.parametrize("form", [without_tape, decoder])
@pytest.mark.parametrize("file", FILES)
def test_one_token_at_a_time_after_a_prompt(file, form, their_gelu):
    z, config, weights = load(file)
    model, n = from_official("ttt", weights, config), int(z["n_prefill"])
    plain = without_tape(model)
    logits, state = plain.prefill(z["ids"][:, :n], plain.initial_state(2))
    assert_close(logits, z["decode_logits"][:, :n], TOLERANCE)
    for t in range(n, 14):
        logits, state = form(model).step(z["ids"][:, t], state)
        assert_close(logits, z["decode_logits"][:, t], TOLERANCE)


# --- names and configs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_round_trips_are_exact(file):
    _, config, weights = load(file)
    model = from_official("ttt", weights, config)
    assert model.name == f"ttt-{config['ttt_layer_type']}"
    back = to_official(model)
    head = back.pop("lm_head.weight")
    assert (head == weights["model.embed_tokens.weight"]).all()
    assert back.keys() == weights.keys()
    for name, x in weights.items():
        assert back[name].shape == x.shape and (back[name] == x).all() and back[name].flags.c_contiguous


def test_the_tied_head_may_be_given_and_must_be_equal():
    _, config, weights = load("linear_M")
    head = weights["model.embed_tokens.weight"]
    model = from_official("ttt", {**weights, "lm_head.weight": head}, config)
    assert "lm_head.weight" not in to_official(model, "grad")
    with pytest.raises(ValueError, match=r"lm_head\.weight is not equal to model\.embed_tokens\.weight, to which"):
        from_official("ttt", {**weights, "lm_head.weight": head + 1.0}, config)


PUBLISHED = dict(
    vocab_size=32000, hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=32,
    hidden_act="silu", max_position_embeddings=2048, initializer_range=0.02, rms_norm_eps=1e-5, use_cache=False,
    tie_word_embeddings=True, rope_theta=500.0, use_gate=True, share_qk=True, ttt_layer_type="mlp", ttt_base_lr=0.1,
    mini_batch_size=8, pre_conv=True, conv_kernel=3, scan_checkpoint_group_size=4,
)  # fmt: skip


def test_every_field_of_their_config_is_read():
    name, config = FAMILIES["ttt"].config(PUBLISHED)
    assert name == "ttt-mlp"
    assert config == make_config(
        "ttt-mlp", "ttt-1.3b", mini_batch=8, conv_width=3, rope_base=500.0, norm_eps=1e-5, base_lr=0.1
    )
    sizes = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
    name, config = FAMILIES["ttt"].config({field: PUBLISHED[field] for field in sizes})  # the rest is as by default
    assert name == "ttt-linear"
    assert config == make_config("ttt-linear", "ttt-1.3b", backbone="transformer", base_lr=1.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_act": "gelu"}, "the only hidden_act offered is 'silu', this config has 'gelu'"),
        ({"tie_word_embeddings": False}, "the only tie_word_embeddings offered is True, this config has False"),
        ({"use_gate": False}, "use_gate are offered together only, this config has pre_conv and share_qk"),
        ({"ttt_layer_type": "conv"}, "inner must be 'linear' or 'mlp', got 'conv'"),
    ],
)
def test_what_we_do_not_have_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_official("ttt", {}, {**PUBLISHED, **changes})


def test_what_does_not_fit_is_listed():
    _, config, weights = load("linear_T")
    del weights["model.layers.1.seq_modeling_block.b1"]
    weights["model.layers.0.mlp.down_proj.weight"] = np.zeros((40, 24))  # transposed
    weights["model.layers.0.seq_modeling_block.W2"] = np.zeros((3, 32, 8))  # of the other inner model
    with pytest.raises(ValueError) as caught:
        from_official("ttt", weights, config)
    assert str(caught.value) == (
        "these weights do not fit a ttt model of that config: unknown model.layers.0.seq_modeling_block.W2; "
        "model.layers.0.mlp.down_proj.weight has shape (40, 24), expected (24, 40); "
        "missing model.layers.1.seq_modeling_block.b1"
    )
