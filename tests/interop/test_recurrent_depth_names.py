"""Weights and configs of the recurrent-depth transformer under official names, in both directions, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.interop import FAMILIES, from_official, to_official
from tinyrec.models import build, make_config
from tinyrec.models.recurrent_depth_config import PRESETS, RecurrentDepthConfig
from tinyrec.nn import parameters

GOLDEN = Path(__file__).parents[1] / "golden" / "recurrent_depth.npz"
# The file config.json of the published checkpoint, as far as it says something about the function.
PUBLISHED = {
    "n_embd": 5280, "n_heads": 55, "num_key_value_heads": 55, "head_dim": 96, "intermediate_size": 17920,
    "vocab_size": 65536, "padded_vocab_size": 65536, "n_layers": 8, "n_layers_in_prelude": 2,
    "n_layers_in_recurrent_block": 4, "n_layers_in_coda": 2, "injection_type": "linear", "state_init": "like-init",
    "mean_recurrence": 32, "mean_backprop_depth": 8, "block_class_name": "SandwichBlock", "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU", "norm_class_name": "RMSNorm_llama", "norm_eps": 1e-06, "qk_bias": True,
    "tie_embeddings": True, "rope_base": 50000, "block_size": 4096, "bias": False, "init_strategy": "takase",
}  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    """(weights by official name, config, the table of rotations)."""
    with np.load(GOLDEN, allow_pickle=False) as z:
        weights = {key[2:]: z[key] for key in z.files if key.startswith("w/")}
        return weights, json.loads(str(z["config_json"])), z["buf/freqs_cis"]


def tiny(**options):
    sizes = dict(vocab_size=11, d_model=8, n_heads=2, d_mlp=7, n_core=2)
    model = build("recurrent-depth", make_config("recurrent-depth", **sizes | options), np.random.default_rng(0))
    for _, tensor in parameters(model):
        tensor.data += np.random.default_rng(1).standard_normal(tensor.shape).astype("float32")
    return model


def test_round_trips_are_exact(golden):
    weights, config, _ = golden
    back = to_official(from_official("huginn", weights, config))
    assert back.keys() == {*weights, "lm_head.weight"} and len(weights) == 39
    for name, x in {**weights, "lm_head.weight": weights["transformer.wte.weight"]}.items():
        assert back[name].shape == x.shape and (back[name] == x).all() and back[name].flags.c_contiguous


@pytest.mark.parametrize("options", [{}, {"qk_bias": False}, {"n_prelude": 0, "n_coda": 0, "n_core": 3}])
def test_round_trips_of_our_own_models_are_exact(options):
    model = tiny(**options)
    of = model.config
    config = {
        **PUBLISHED, "n_embd": 8, "n_heads": 2, "num_key_value_heads": 2, "intermediate_size": 7, "vocab_size": 11,
        "padded_vocab_size": 11, "n_layers_in_prelude": of.n_prelude, "n_layers_in_recurrent_block": of.n_core,
        "n_layers_in_coda": of.n_coda, "qk_bias": of.qk_bias, "mean_recurrence": 8, "mean_backprop_depth": 4,
    }  # fmt: skip
    again = from_official("huginn", to_official(model), config)
    assert again.config == model.config and again.name == "recurrent-depth"
    ours = dict(parameters(again))
    for name, tensor in parameters(model):
        assert (ours[name].data == tensor.data).all(), name


def test_the_thirds_and_halves_of_the_stacked_matrices(golden):
    weights, config, _ = golden
    model, names = from_official("huginn", weights, config), "transformer.core_block.1"
    stacked, block = weights[f"{names}.attn.Wqkv.weight"], model.core[1]
    for i, linear in enumerate((block.attention.q, block.attention.k, block.attention.v)):
        assert (linear.w.data == stacked[32 * i : 32 * i + 32].T).all()
    assert (block.mlp.gate.w.data == weights[f"{names}.mlp.fc.weight"][:56].T).all()  # what goes through SiLU is first
    assert (model.adapter_s.data == weights["transformer.adapter.weight"][:, :32].T).all()  # the state is first
    assert (block.attention.k.b.data == weights[f"{names}.attn.qk_bias"][1].reshape(-1)).all()


def test_the_head_and_the_table_of_rotations_may_be_given_too(golden):
    weights, config, table = golden
    head = weights["transformer.wte.weight"]
    both = {**weights, "lm_head.weight": head, "freqs_cis": table.astype("float32")}
    plain, given = (from_official("huginn", arrays, config) for arrays in (weights, both))
    tokens = np.arange(10).reshape(2, 5)
    assert (plain(tokens).data == given(tokens).data).all()
    assert "freqs_cis" not in to_official(given) and "lm_head.weight" not in to_official(given, "grad")
    with pytest.raises(ValueError, match=r"lm_head\.weight is not equal to transformer\.wte\.weight, to which"):
        from_official("huginn", {**both, "lm_head.weight": head + 1.0}, config)


def test_what_does_not_fit_is_listed(golden):
    weights, config, _ = golden
    weights = dict(weights)
    del weights["transformer.ln_f.weight"]
    weights["transformer.coda.0.attn.qk_bias"] = np.zeros((2, 32))
    weights["transformer.core_block.2.norm_1.weight"] = np.ones(32)
    with pytest.raises(ValueError) as caught:
        from_official("huginn", weights, config)
    assert str(caught.value) == (
        "these weights do not fit a huginn model of that config: unknown transformer.core_block.2.norm_1.weight; "
        "missing transformer.ln_f.weight; transformer.coda.0.attn.qk_bias has shape (2, 32), expected (2, 1, 4, 8)"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", True), ("tie_embeddings", False), ("tie_word_embeddings", False), ("injection_type", "add"),
        ("block_class_name", "TransformerPreNormBlock"), ("mlp_class_name", "BaseMLP"), ("nonlin_name", "ReLU2"),
        ("test_time_noise", 0.1),
    ],
)  # fmt: skip
def test_a_config_that_means_another_function_is_refused(field, value):
    with pytest.raises(ValueError, match=f"the only {field} offered is .*, this config has {value!r}"):
        FAMILIES["huginn"].config({**PUBLISHED, field: value})


def test_fewer_key_heads_are_refused():
    with pytest.raises(ValueError, match=r"expected as many key heads as query heads \(55\), got 11"):
        FAMILIES["huginn"].config({**PUBLISHED, "num_key_value_heads": 11})


def test_the_config_of_the_published_checkpoint():
    name, config = FAMILIES["huginn"].config(PUBLISHED)
    assert (name, config) == ("recurrent-depth", RecurrentDepthConfig(**PRESETS["huginn-0125"]))
    assert config.depth == 132 and config.head_width == 96  # their effective_expected_depth, head_dim
    ours = [config.std, config.out_std, config.gamma]
    theirs = [0.008703882797784892, 0.0005356869554443541, 72.6636084983398]  # their init_values
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_the_published_names():
    rules = FAMILIES["huginn"].rules(make_config("recurrent-depth", "huginn-0125"))
    names = {rule.official for rule in rules}
    assert len(names) == len(rules) == 75  # and the head and the table of rotations: the 77 of the checkpoint
    assert {name.split(".")[1] for name in names} == {"wte", "prelude", "adapter", "core_block", "coda", "ln_f"}


def test_the_start_of_the_golden_config(golden):
    _, cfg, _ = golden
    _, config = FAMILIES["huginn"].config(cfg)
    ours = [config.std, config.out_std, config.std, config.gamma]
    assert_close(np.array(ours), np.array(list(cfg["init_values"].values())), 1e-15)
    assert config.depth == cfg["effective_expected_depth"] == 14


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (PRESETS["bad-run-1"], "norm_gain = True, this is False"),
        (PRESETS["bad-run-2"], "block = 'sandwich', this is 'pre-norm'"),
        ({"injection": "add"}, "injection = 'adapter', this is 'add'"),
        ({"scaled_embedding": False}, "scaled_embedding = True, this is False"),
    ],
)
def test_the_bad_runs_have_no_published_names(options, what):
    with pytest.raises(ValueError, match=f"the published names are for {what}"):
        to_official(tiny(**options))
