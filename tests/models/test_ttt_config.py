"""Every field of TTT's config does what its comment says; wrong ones are refused in one sentence."""

import re

import numpy as np
import pytest

from tinyrec.models import build, make_config
from tinyrec.models.ttt import TTT
from tinyrec.models.ttt_config import PRESETS, TTTConfig
from tinyrec.nn import count, parameters, without_tape
from tinyrec.tape import no_grad


def draw_tokens(seed, batch=2, time=12):
    return np.random.default_rng([2, seed]).integers(0, 11, (batch, time))


# --- how a fresh model starts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["linear", "mlp"])
@pytest.mark.parametrize("backbone", ["transformer", "mamba"])
def test_initial_values(inner, backbone):
    """Every matrix N(0, 0.02^2), taps uniform in +-1 / sqrt(W), biases and delta 0, gains 1."""
    config = TTTConfig(vocab_size=300, d_model=72, n_layers=2, n_heads=6, inner=inner, backbone=backbone, conv_width=5)
    for name, tensor in parameters(TTT(config, np.random.default_rng(0), "float64")):
        x, (*_, owner, last) = tensor.data, (".", *name.split("."))
        if owner.startswith("conv") and last == "w":
            share = x * 5**0.5
            assert np.abs(share).max() <= 1.0 and share.var() == pytest.approx(1.0 / 3.0, rel=0.25), name
        elif last in ("embedding", "w", "w1", "w2"):
            assert x.mean() == pytest.approx(0.0, abs=6.0 * 0.02 * x.size**-0.5), name
            assert x.std() == pytest.approx(0.02, rel=6.0 * (0.5 / x.size) ** 0.5), name
        else:
            assert (x == (1.0 if last == "gain" else 0.0)).all() and last in ("gain", "bias", "b", "b1", "b2", "delta")


def test_one_seed_gives_one_model_in_every_dtype():
    config = make_config("ttt-mlp")
    wide, narrow = (build("ttt-mlp", config, np.random.default_rng(3), dtype) for dtype in ("float64", "float32"))
    for (_, a), (_, b) in zip(parameters(wide), parameters(narrow), strict=True):
        assert b.dtype == np.float32 and (a.data.astype("float32") == b.data).all()


# --- what the fields do -----------------------------------------------------------------------------------------------


def shapes_of(**options):
    config = TTTConfig(vocab_size=13, d_model=12, n_layers=1, n_heads=3, mini_batch=5, d_mlp=7, **options)
    return {name: tensor.shape for name, tensor in parameters(TTT(config, np.random.default_rng(0)))}


SHAPES = {
    "embedding": (13, 12), "final_norm.gain": (12,),
    "blocks.0.mixer_norm.gain": (12,), "blocks.0.mlp_norm.gain": (12,),
    **{f"blocks.0.mixer.{x}.w": (12, 12) for x in ("q", "v", "out")},
    "blocks.0.mixer.lam.w": (12, 3), "blocks.0.mixer.lam.b": (3,), "blocks.0.mixer.delta": (5,),
    "blocks.0.mixer.inner.gain": (3, 4), "blocks.0.mixer.inner.bias": (3, 4),
    "blocks.0.mixer.norm.gain": (12,), "blocks.0.mixer.norm.bias": (12,),
    "blocks.0.mlp.gate.w": (12, 7), "blocks.0.mlp.up.w": (12, 7), "blocks.0.mlp.down.w": (7, 12),
}  # fmt: skip
INNER = {
    "linear": {"w": (3, 4, 4), "b": (3, 4)},
    "mlp": {"w1": (3, 4, 16), "b1": (3, 16), "w2": (3, 16, 4), "b2": (3, 4)},
}


@pytest.mark.parametrize("inner", ["linear", "mlp"])
def test_sizes_and_backbone_shape_the_parameters(inner):
    both = SHAPES | {f"blocks.0.mixer.inner.{name}": shape for name, shape in INNER[inner].items()}
    assert shapes_of(inner=inner, backbone="transformer") == both | {"blocks.0.mixer.k.w": (12, 12)}
    convolutions = ("conv", "mixer.conv_q", "mixer.conv_k")
    mamba = {f"blocks.0.{x}.w": (6, 12) for x in convolutions} | {f"blocks.0.{x}.bias": (12,) for x in convolutions}
    mamba |= {"blocks.0.conv_norm.gain": (12,), "blocks.0.mixer.gate.w": (12, 12)}
    assert shapes_of(inner=inner, backbone="mamba", conv_width=6) == both | mamba


@pytest.mark.parametrize(("d_model", "width"), [(8, 32), (64, 176), (96, 256), (768, 2048), (1024, 2736), (1536, 4096)])
def test_a_d_mlp_of_0_is_eight_thirds_of_the_width(d_model, width):
    assert TTTConfig(d_model=d_model, n_heads=2).mlp_width == width
    assert TTTConfig(d_model=d_model, n_heads=2, d_mlp=3).mlp_width == 3


@pytest.mark.parametrize(("inner", "rate"), [("linear", 1.0), ("mlp", 0.1)])
def test_a_base_lr_of_0_is_that_of_the_paper_and_so_is_a_warm_up_of_0(inner, rate):
    config = TTTConfig(inner=inner)
    assert (config.inner_lr, config.first_share) == (rate, rate)
    config = TTTConfig(inner=inner, base_lr=0.7, inner_warmup=0.3)
    assert (config.inner_lr, config.first_share) == (0.7, 0.3)


def test_the_rate_of_a_token_is_at_most_base_lr_over_d(tiny):
    model = tiny("ttt-linear", base_lr=0.6)  # heads 6 wide
    assert model.blocks[0].mixer.max_lam == pytest.approx(0.1)


@pytest.mark.parametrize("conv_width", [1, 2, 5])
def test_conv_width_is_the_reach_of_the_convolutions(tiny, conv_width):
    """f does not learn, so that they are all that remembers: one behind the other, each W - 1 tokens back."""
    model, tokens = tiny("ttt-linear", n_layers=1, conv_width=conv_width), draw_tokens(7, 1)
    other = tokens.copy()
    other[0, 3] = (other[0, 3] + 1) % 11
    with no_grad():
        changed = (model(tokens, 0.0).data != model(other, 0.0).data).any(axis=(0, 2))
    assert changed.tolist() == [3 <= s < 3 + 2 * conv_width - 1 for s in range(12)]


@pytest.mark.parametrize("mini_batch", [1, 2, 5, 12])
def test_mini_batch_is_how_long_the_weights_stand_still(tiny, mini_batch):
    model = tiny("ttt-mlp", mini_batch=mini_batch)
    model.blocks[0].mixer.delta.data[:] = 0.0  # or the noise makes the last tau 0, and nothing moves
    plain = without_tape(model)
    state, stood_still = plain.initial_state(1), []
    for token in draw_tokens(8, 1)[0]:
        _, new = plain.step(np.array([token]), state)
        stood_still.append((new.layers[0].weights[0] == state.layers[0].weights[0]).all())
        assert new.at == len(stood_still) % mini_batch
        state = new
    assert stood_still == [(t + 1) % mini_batch != 0 for t in range(12)]


def test_rope_base_and_norm_eps_are_read(tiny):
    usual, tokens = tiny("ttt-linear"), draw_tokens(9)
    for field in ("rope_base", "norm_eps"):
        with no_grad():
            assert np.abs(tiny("ttt-linear", **{field: 0.5})(tokens).data - usual(tokens).data).max() > 1e-3


# --- presets ----------------------------------------------------------------------------------------------------------


def expected_count(c):
    """Section by section, as one would count with a pencil."""
    width, d = c.d_model, c.head_width
    inner = width * d + width if c.inner == "linear" else 8 * width * d + 5 * width
    layer = inner + width * c.n_heads + c.n_heads + c.mini_batch + 4 * width  # f, lam, delta, two norms
    layer += 4 * width**2 + 3 * width * c.mlp_width + 2 * width
    if c.backbone == "mamba":
        layer += 3 * (c.conv_width + 1) * width + width
    return c.vocab_size * width + c.n_layers * layer + width


@pytest.mark.parametrize("name", ["ttt-linear", "ttt-mlp"])
@pytest.mark.parametrize("backbone", ["transformer", "mamba"])
@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_counts(name, preset, backbone, shaped_random):
    config = make_config(name, preset, backbone=backbone)
    assert {key: getattr(config, key) for key in PRESETS[preset]} == PRESETS[preset]
    assert count(TTT(config, shaped_random)) == expected_count(config)


def test_a_count_of_shapes_is_that_of_a_real_model(shaped_random):
    config = make_config("ttt-linear")
    assert count(TTT(config, shaped_random)) == count(TTT(config, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("preset", "millions"), [("ttt-125m", 125), ("ttt-350m", 350), ("ttt-760m", 760), ("ttt-1.3b", 1300)]
)
def test_the_presets_of_the_paper_have_about_the_size_in_their_name(preset, millions):
    assert expected_count(make_config("ttt-linear", preset)) / 1e6 == pytest.approx(millions, rel=1 / 8)


BAD = [
    *(
        ({name: 0}, f"{name} must be at least 1, got 0")
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "mini_batch", "conv_width")
    ),
    ({"inner": "mpl"}, "inner must be 'linear' or 'mlp', got 'mpl'"),
    ({"backbone": "lstm"}, "backbone must be 'transformer' or 'mamba', got 'lstm'"),
    ({"d_model": 10, "n_heads": 3}, "d_model 10 must be n_heads 3 heads of an even width from 4 up"),
    ({"d_model": 15, "n_heads": 3}, "d_model 15 must be n_heads 3 heads of an even width from 4 up"),
    ({"d_model": 6, "n_heads": 3}, "d_model 6 must be n_heads 3 heads of an even width from 4 up"),
    ({"d_mlp": -1}, "d_mlp must be 0 (for 8/3 d_model) or more, got -1"),
    ({"checkpoint": -1}, "checkpoint must be 0 (for keeping all) or more, got -1"),
    ({"base_lr": -0.5}, "base_lr must be 0 (as in the paper) or more and finite, got -0.5"),
    ({"inner_warmup": float("inf")}, "inner_warmup must be 0 (as in the paper) or more and finite, got inf"),
    ({"rope_base": 0.0}, "rope_base must be positive and finite, got 0.0"),
    ({"norm_eps": float("nan")}, "norm_eps must be positive and finite, got nan"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD, ids=str)
def test_a_bad_config_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        TTTConfig(**options)
    assert "\n" not in str(caught.value)
