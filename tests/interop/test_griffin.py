"""Official weights of the Griffin family: same logits, loss, gradients, decoding and states as the official code.

The golden files are float32 runs of google-deepmind/recurrentgemma (torch), and of its port in transformers (hf/*).
"""

from pathlib import Path

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.interop import FAMILIES, from_official, to_official
from tinyrec.models import build, make_config
from tinyrec.nn import parameters
from tinyrec.ops import cross_entropy
from tinyrec.tape import no_grad

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["hawk", "griffin", "attn_global", "griffin_packed"]
UNPACKED = CASES[:3]
TOLERANCE = 2e-5  # of the largest entry of the reference; the reference itself is float32


def load(case, dtype="float32"):
    """(everything in the file, weights, config) of one official run."""
    with np.load(GOLDEN / f"griffin_{case}.npz", allow_pickle=False) as z:
        z = {name: z[name] for name in z.files}
    weights = {name[2:]: x.astype(dtype) for name, x in z.items() if name.startswith("w/")}
    return z, weights, {name[4:]: x for name, x in z.items() if name.startswith("cfg/")}


def hf_config(z):
    """The same config in the fields of transformers' RecurrentGemmaConfig."""
    return dict(
        vocab_size=61, hidden_size=32, num_attention_heads=4, lru_width=48, logits_soft_cap=30.0,
        intermediate_size=2 * 96, attention_window_size=int(z["cfg/attention_window_size"]) + 1,
        block_types=[str(kind).lower() for kind in z["cfg/block_types"]], num_hidden_layers=len(z["cfg/block_types"]),
    )  # fmt: skip


def hf_model(case, dtype="float32"):
    z, weights, config = load(case, dtype)
    arrays = to_official(from_official("griffin", weights, config), family="recurrentgemma-hf")
    return z, from_official("recurrentgemma-hf", arrays, hf_config(z))


def backward(model, z):
    """The golden loss: across document borders too."""
    logits = model(z["tokens"], z["segment_pos"])
    loss = cross_entropy(logits[:, :-1], z["tokens"][:, 1:])
    loss.backward()
    return logits, loss


# --- google-deepmind/recurrentgemma -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_every_gradient(case, dtype):
    z, weights, config = load(case, dtype)
    model = from_official("griffin", weights, config)
    logits, loss = backward(model, z)
    assert logits.dtype == dtype
    assert_close(logits, z["logits"], TOLERANCE)
    assert_close(loss, z["loss"], TOLERANCE)
    gradients = to_official(model, "grad")
    assert {f"g/{name}" for name in gradients} == {name for name in z if name.startswith("g/")}
    for name, g in gradients.items():
        assert_close(g, z[f"g/{name}"], TOLERANCE, name)


def assert_state_close(state, z, prefix, read):
    """Our state after `read` tokens against the official one: ring of W keys, slot = position mod W."""
    window = int(z["cfg/attention_window_size"])
    assert (state.position == read).all()
    for i, layer in enumerate(state.layers):
        official = {key.rsplit("/")[-1]: x for key, x in z.items() if key.startswith(f"{prefix}/blocks.{i}/")}
        if "keys" in official:
            kept = np.arange(max(0, read - window), read)  # ours may keep one more: the token itself
            for ours, theirs in ((layer.keys, official["keys"]), (layer.values, official["values"])):
                assert ours.shape[1] == min(read, window + 1)
                assert_close(ours[:, -len(kept) :], theirs[:, kept % window], TOLERANCE)
            assert (official["num_tokens"] == read).all()
        else:
            assert_close(layer.h, official["rg_lru_state"], TOLERANCE)
            assert_close(layer.conv, official["conv1d_state"], TOLERANCE)


@pytest.mark.parametrize("case", UNPACKED)
def test_prefill_then_one_token_at_a_time(case):
    z, weights, config = load(case)
    model, n = from_official("griffin", weights, config), int(z["dec/prefill_len"])
    with no_grad():
        logits, state = model.prefill(z["tokens"][:, :n], model.initial_state(2))
        assert_close(logits, z["dec/prefill_logits"], TOLERANCE)
        assert_state_close(state, z, "dec/state", n)
        for t in range(n, 17):
            logits, state = model.step(z["tokens"][:, t], state)
            assert_close(logits, z["dec/step_logits"][:, t - n], TOLERANCE)


@pytest.mark.parametrize("case", UNPACKED)
def test_one_token_at_a_time_from_the_first(case):
    z, weights, config = load(case)
    model = from_official("griffin", weights, config)
    state = model.initial_state(2)
    with no_grad():
        for t in range(17):
            logits, state = model.step(z["tokens"][:, t], state)
            assert_close(logits, z["logits"][:, t], TOLERANCE)
    assert_state_close(state, z, "dec/final_state", 17)


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", UNPACKED)  # not the packed file: HF's convolution reads across the document border
def test_transformers_logits_and_loss(case):
    z, model = hf_model(case)
    logits, loss = backward(model, z)
    assert_close(logits, z["hf/logits"], TOLERANCE)
    assert_close(loss, z["hf/loss"], TOLERANCE)


@pytest.mark.parametrize("case", ["griffin", "attn_global"])
def test_transformers_decoding(case):
    z, model = hf_model(case)
    state = model.initial_state(2)
    with no_grad():
        for t in range(17):
            logits, state = model.step(z["tokens"][:, t], state)
            assert_close(logits, z["hf/dec_logits"][:, t], TOLERANCE)


def test_transformers_gradients():
    z, model = hf_model("attn_global")
    backward(model, z)
    gradients = to_official(model, "grad", family="recurrentgemma-hf")
    assert {f"hf/g/{name}" for name in gradients} == {name for name in z if name.startswith("hf/g/")}
    # HF marks token 0 as padding, whose row of the table gets no gradient from the lookup: that row differs.
    table, expected = gradients.pop("model.embed_tokens.weight"), z["hf/g/model.embed_tokens.weight"]
    assert_close(table[1:], expected[1:], TOLERANCE)
    assert np.abs(table[0] - expected[0]).max() > 0.1
    for name, g in gradients.items():
        assert_close(g, z[f"hf/g/{name}"], TOLERANCE, name)


@pytest.mark.slow
def test_against_transformers_itself():
    transformers = pytest.importorskip("transformers", reason="parity with the real thing needs transformers")
    torch = pytest.importorskip("torch", reason="parity with the real thing needs torch")
    fields = dict(
        vocab_size=31, hidden_size=24, num_attention_heads=3, num_key_value_heads=1, lru_width=36, logits_soft_cap=20.0,
        intermediate_size=2 * 48, attention_window_size=4, num_hidden_layers=5, conv1d_width=3,
        block_types=["recurrent", "attention"], pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.RecurrentGemmaForCausalLM(transformers.RecurrentGemmaConfig(**fields))
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    arrays = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    model = from_official("recurrentgemma-hf", arrays, theirs.config.to_dict())
    tokens = np.random.default_rng(1).integers(1, 31, (2, 13))
    expected = theirs(torch.tensor(tokens), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].reshape(-1, 31), torch.tensor(tokens[:, 1:]).reshape(-1))
    loss.backward()
    logits = model(tokens)
    assert_close(logits, expected.detach().numpy(), TOLERANCE)
    cross_entropy(logits[:, :-1], tokens[:, 1:]).backward()
    for name, g in to_official(model, "grad", family="recurrentgemma-hf").items():
        assert_close(g, dict(theirs.named_parameters())[name].grad.numpy(), TOLERANCE, name)


# --- names and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_round_trips_are_exact(case):
    z, weights, config = load(case)
    model = from_official("griffin", weights, config)
    hf = to_official(model, family="recurrentgemma-hf")
    again = from_official("recurrentgemma-hf", hf, hf_config(z))
    for given, back in (
        (weights, to_official(model)),
        (hf, to_official(again, family="recurrentgemma-hf")),
        (weights, to_official(again)),
    ):
        assert given.keys() == back.keys()
        for name, x in given.items():
            assert back[name].dtype == x.dtype and back[name].flags.c_contiguous
            assert back[name].shape == x.shape and (back[name] == x).all()


def test_the_two_names_of_the_recurrent_tensors():
    """hf/* of the golden files has no such names, so they are told apart here: both codes use nearly the same words."""
    _, weights, config = load("hawk")
    hf = to_official(from_official("griffin", weights, config), family="recurrentgemma-hf")
    renamed = {"rg_lru.input_gate.w": "rg_lru.input_gate_weight", "rg_lru.input_gate.b": "rg_lru.input_gate_bias",
               "rg_lru.a_gate.w": "rg_lru.recurrent_gate_weight", "rg_lru.a_gate.b": "rg_lru.recurrent_gate_bias",
               "rg_lru.a_param": "rg_lru.recurrent_param", "conv_1d.b": "conv_1d.bias"}  # fmt: skip
    same = [f"linear_{x}.{y}" for x in ("x", "y", "out") for y in ("weight", "bias")]
    for theirs, name in [*renamed.items(), *zip(same, same, strict=True)]:
        assert (hf[f"model.layers.1.temporal_block.{name}"] == weights[f"blocks.1.recurrent_block.{theirs}"]).all()
    conv = weights["blocks.1.recurrent_block.conv_1d.w"]  # (W, E); HF has torch's (E, 1, W)
    assert (hf["model.layers.1.temporal_block.conv_1d.weight"] == conv.T[:, None]).all()


def test_the_model_owns_its_numbers():
    _, weights, config = load("griffin")
    before = {name: x.copy() for name, x in weights.items()}
    for _, tensor in parameters(from_official("griffin", weights, config)):
        tensor.data += 1.0
    assert all((weights[name] == x).all() for name, x in before.items())


def test_both_names_of_the_windows_and_sizes_mean_one_config():
    z, weights, config = load("griffin_packed")
    ours, hf = from_official("griffin", weights, config), hf_model("griffin_packed")[1]
    assert ours.config == hf.config and (ours.name, hf.name) == ("griffin", "griffin")
    assert (ours.config.window, ours.config.mlp_expansion, ours.config.gate_blocks) == (5, 3, 4)
    assert ours.config.pattern == ("recurrent", "recurrent", "local")


def test_the_block_types_of_transformers_are_cycled():
    z, _, _ = load("hawk")
    config = {**hf_config(z), "num_hidden_layers": 5, "block_types": ["recurrent", "recurrent", "attention"]}
    config |= {"conv1d_width": 3, "partial_rotary_factor": 0.25}
    name, ours = FAMILIES["recurrentgemma-hf"].config(config)
    assert (name, ours.conv_width, ours.rope_fraction) == ("griffin", 3, 0.25)
    assert ours.kinds == ["recurrent", "recurrent", "local", "recurrent", "recurrent"]


@pytest.mark.parametrize(("case", "name"), [("hawk", "hawk"), ("griffin", "griffin"), ("attn_global", "transformer")])
def test_the_name_follows_the_block_types(case, name):
    _, weights, config = load(case)
    assert from_official("griffin", weights, config).name == name


def test_parameters_without_a_gradient_give_zeros():
    model = build("griffin", make_config("griffin"), np.random.default_rng(0))
    data, gradients = to_official(model), to_official(model, "grad")
    assert data.keys() == gradients.keys()
    assert all(g.shape == data[name].shape and not g.any() for name, g in gradients.items())


def test_all_that_does_not_fit_is_listed_in_one_sentence():
    _, weights, config = load("hawk")
    del weights["final_norm.scale"], weights["blocks.1.recurrent_block.conv_1d.b"]
    weights["final_norm.weight"] = np.zeros(32, "float32")
    weights["blocks.0.recurrent_block.linear_x.weight"] = np.zeros((32, 48), "float32")  # transposed
    with pytest.raises(ValueError) as caught:
        from_official("griffin", weights, config)
    assert str(caught.value) == (
        "these weights do not fit a griffin model of that config: unknown final_norm.weight; missing final_norm.scale; "
        "blocks.0.recurrent_block.linear_x.weight has shape (32, 48), expected (48, 32); "
        "missing blocks.1.recurrent_block.conv_1d.b"
    )


def test_an_unknown_family_is_met_with_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown family 'grifin'; did you mean 'griffin'\?"):
        from_official("grifin", {}, {})
    model = build("hawk", make_config("hawk"), np.random.default_rng(0))
    with pytest.raises(ValueError, match="unknown family 'llama'; known: griffin, recurrentgemma-hf"):
        to_official(model, family="llama")
    with pytest.raises(ValueError, match="what must be 'data' or 'grad', got 'grads'"):
        to_official(model, "grads")
