"""RWKV-4: how a fresh model starts, what its switches do, its size; the official numbers are in tests/interop."""

from pathlib import Path

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.generate import state_bytes
from tinyrec.models import build, make_config
from tinyrec.models.rwkv_config import PRESETS, RWKVConfig
from tinyrec.nn import count, parameters
from tinyrec.ops import cross_entropy
from tinyrec.parallel import loss_and_grads
from tinyrec.walk import grad

GOLDEN = Path(__file__).parents[1] / "golden" / "rwkv4_official_f64_s0.npz"


def fresh(dtype="float64", **options):
    return build("rwkv", make_config("rwkv", **options), np.random.default_rng(0), dtype)


def layernorm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_vectors_start_as_in_the_published_code():
    """Those of the untouched official initialisation, which the golden file holds in float32."""
    names = {"att.time_decay": "time_mixing.time_decay", "att.time_first": "time_mixing.time_first"}
    names |= {f"att.time_mix_{x}": f"time_mixing.mix_{x}" for x in "kvr"}
    names |= {f"ffn.time_mix_{x}": f"channel_mixing.mix_{x}" for x in "kr"}
    ours = {name: tensor.data for name, tensor in parameters(fresh(vocab_size=37, d_model=16))}
    with np.load(GOLDEN, allow_pickle=False) as z:
        for layer in range(3):
            for theirs, name in names.items():
                expected = z[f"init.blocks.{layer}.{theirs}"].reshape(-1)
                assert_close(ours[f"blocks.{layer}.{name}"], expected, 1e-6, theirs)


def test_matrices_start_as_the_readme_says():
    p = {name: tensor.data for name, tensor in parameters(fresh(vocab_size=300, d_model=16, n_layers=2))}
    assert abs(p["embedding"]).max() <= 1e-4 and abs(p["embedding"]).max() > 0.9e-4
    for layer in ("blocks.0", "blocks.1"):
        zero = ["time_mixing.key", "time_mixing.receptance", "time_mixing.output"]
        zero += ["channel_mixing.receptance", "channel_mixing.value"]
        assert not any(p[f"{layer}.{name}.w"].any() for name in zero)
        value, key = p[f"{layer}.time_mixing.value.w"], p[f"{layer}.channel_mixing.key.w"]
        assert_close(value @ value.T, np.eye(16), 1e-12)
        assert_close(key @ key.T, 4.0 * np.eye(16), 1e-12)  # (C, F), gain sqrt(F / C) = 2
    assert_close(p["head.w"] @ p["head.w"].T, 0.25 * 300 / 16 * np.eye(16), 1e-12)  # gain sqrt(V / C) / 2


def test_a_fresh_model_is_the_identity_in_every_block():
    model, tokens = fresh(), np.random.default_rng(1).integers(0, 256, (2, 9))
    x = layernorm(model.embedding.data[tokens])
    assert abs(x).max() < 0.04  # small still: the eps of LN0 is larger than the variance
    assert_close(model(tokens), layernorm(x) @ model.head.w.data, 1e-12)
    names, tensors = zip(*parameters(model), strict=True)
    gradients = grad(cross_entropy(model(tokens), tokens), tensors)
    learning = {name for name, g in zip(names, gradients, strict=True) if g.any() and name.startswith("blocks")}
    assert learning == {f"blocks.{i}.{w}" for i in range(3)
                        for w in ("time_mixing.output.w", "channel_mixing.value.w")}  # fmt: skip


@pytest.mark.parametrize(("kind", "std"), [("small", 1e-4 / 3**0.5), ("normal", 0.02), ("unit", 1.0)])
def test_the_embedding_has_three_starts(kind, std):
    assert fresh(embedding_init=kind).embedding.data.std() == pytest.approx(std, rel=0.02)


def test_without_ln0_the_embedding_goes_in_as_it_is():
    model, tokens = fresh(ln0=False, embedding_init="normal"), np.array([[3, 1]])
    assert model.ln0 is None
    assert_close(model(tokens), layernorm(model.embedding.data[tokens]) @ model.head.w.data, 1e-12)


def test_l2wrap_is_part_of_training_and_scales_with_the_batch():
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(0, 11, (2, 4, 7))

    def gradient(l2wrap, threads=1, scale=1.0):
        model = fresh(vocab_size=11, d_model=8, n_layers=1, l2wrap=l2wrap)
        loss_and_grads(model, tokens, targets, threads=threads, scale=scale)
        return model.head.w.grad

    without, with_penalty = gradient(0.0), gradient(0.1)
    model = fresh(vocab_size=11, d_model=8, n_layers=1)
    penalty = (model(tokens).max(axis=-1) ** 2).sum() * (0.5 * 0.1 / tokens.size)
    assert_close(with_penalty - without, grad(penalty, [model.head.w])[0], 1e-12)
    assert_close(gradient(0.1, threads=3), with_penalty, 1e-12)
    assert_close(gradient(0.1, scale=0.5), 0.5 * with_penalty, 1e-12)  # as one of two batches of an update


def test_rates_of_its_own():
    assert fresh().lr_scales == {"time_decay": 2.0, "time_first": 3.0}
    assert fresh(layerwise_lr=False).lr_scales == {}


@pytest.mark.parametrize("sizes", [(11, 8, 1), (11, 8, 3), (300, 16, 2)])
def test_parameter_counts(sizes):
    def formula(v, c, n):
        return 2 * v * c + 13 * c * c * n + c * (11 * n + 4)

    v, c, n = sizes
    assert count(fresh(vocab_size=v, d_model=c, n_layers=n)) == formula(v, c, n)
    pile = RWKVConfig(**PRESETS["pile-169m"])
    assert formula(pile.vocab_size, pile.d_model, pile.n_layers) == 169_342_464


def test_the_state_is_five_vectors_a_layer_however_long_the_text():
    model = fresh("float32", d_model=16)
    for time in (1, 50):
        _, state = model.prefill(np.zeros((2, time), int), model.initial_state(2))
        assert state_bytes(state) == 2 * 3 * 5 * 16 * 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"embedding_init": "tiny"}, "embedding_init must be 'small', 'normal' or 'unit', got 'tiny'"),
        ({"l2wrap": -1.0}, "l2wrap must be 0 or more and finite, got -1.0"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_config("rwkv", **options)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset):
    assert make_config("rwkv", preset) == RWKVConfig(**PRESETS[preset])
