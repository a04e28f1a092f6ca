"""Every field of Mamba's config does what its comment says; wrong ones are refused in one sentence."""

import re

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.models import build, make_config
from tinyrec.models.mamba import Mamba
from tinyrec.models.mamba_config import PRESETS, MambaConfig
from tinyrec.nn import count, parameters, without_tape


def draw_tokens(seed, batch=2, time=12):
    return np.random.default_rng([2, seed]).integers(0, 11, (batch, time))


# --- how a fresh model starts -----------------------------------------------------------------------------------------


def test_initial_values():
    """The released code's: embedding N(0, 0.02^2), the rest uniform in +-1 / sqrt(fan-in), A = -1 .. -N, D = 1."""
    config = MambaConfig(vocab_size=300, d_model=96, n_layers=4, expand=3, d_state=7, dt_rank=25, conv_width=5)
    bounds = {"in_proj.w": 96**-0.5, "gate_proj.w": 96**-0.5, "x_proj.w": 288**-0.5}
    bounds |= {"conv_w": 5**-0.5, "conv_b": 5**-0.5, "dt_proj.w": 25**-0.5, "out_proj.w": (4 * 288) ** -0.5}
    seen = set()
    for name, tensor in parameters(Mamba(config, np.random.default_rng(0), "float64")):
        short, x = name.rpartition(".mixer.")[2], tensor.data
        if short in bounds:
            seen.add(short)
            share = x / bounds[short]  # of a uniform in -1 .. 1: variance 1/3, that of a sample 4/45 / n
            assert np.abs(share).max() <= 1.0 and np.abs(share).max() > 1.0 - 12.0 / x.size, name
            assert share.mean() == pytest.approx(0.0, abs=6.0 * (1.0 / 3.0 / x.size) ** 0.5), name
            assert share.var() == pytest.approx(1.0 / 3.0, abs=6.0 * (4.0 / 45.0 / x.size) ** 0.5), name
        elif short == "a_log":
            assert_close(-np.exp(x), np.tile(-np.arange(1.0, 8.0), (288, 1)), 1e-15)
        elif short == "embedding":
            assert x.std() == pytest.approx(0.02, rel=6.0 * (0.5 / x.size) ** 0.5)
        else:
            assert short == "dt_proj.b" or (x == 1.0).all(), name  # d and the gains
    assert seen == set(bounds)


def test_dt_of_a_fresh_model_is_log_uniform():
    """Between 0.001 and 0.1, for an input of zero."""
    config = MambaConfig(d_model=10, expand=2000, n_layers=1, d_state=1, dt_rank=1)
    model = Mamba(config, np.random.default_rng(0), "float64")
    dt = np.logaddexp(model.blocks[0].mixer.dt_proj.b.data, 0.0)
    share = np.log(dt / 0.001) / np.log(100.0)
    assert -1e-9 <= share.min() < 0.001 and 0.999 < share.max() <= 1.0 + 1e-9
    counts, _ = np.histogram(share, bins=10, range=(-1e-9, 1.0 + 1e-9))
    assert np.abs(counts - 2000).max() < 6 * (20000 * 0.1 * 0.9) ** 0.5


def test_one_seed_gives_one_model_in_every_dtype():
    config = make_config("mamba")
    wide, narrow = (build("mamba", config, np.random.default_rng(3), dtype) for dtype in ("float64", "float32"))
    for (_, a), (_, b) in zip(parameters(wide), parameters(narrow), strict=True):
        assert b.dtype == np.float32 and (a.data.astype("float32") == b.data).all()


# --- what the fields do -----------------------------------------------------------------------------------------------


def test_sizes_shape_the_parameters():
    config = MambaConfig(vocab_size=13, d_model=10, n_layers=2, expand=3, d_state=4, dt_rank=5, conv_width=6)
    shapes = {name: tensor.shape for name, tensor in parameters(Mamba(config, np.random.default_rng(0)))}
    expected = {"embedding": (13, 10), "final_norm.gain": (10,)}
    for i in range(2):
        expected |= {
            f"blocks.{i}.norm.gain": (10,), f"blocks.{i}.mixer.in_proj.w": (10, 30),
            f"blocks.{i}.mixer.gate_proj.w": (10, 30),
            f"blocks.{i}.mixer.conv_w": (6, 30), f"blocks.{i}.mixer.conv_b": (30,),
            f"blocks.{i}.mixer.x_proj.w": (30, 13), f"blocks.{i}.mixer.dt_proj.w": (5, 30),
            f"blocks.{i}.mixer.dt_proj.b": (30,), f"blocks.{i}.mixer.a_log": (30, 4), f"blocks.{i}.mixer.d": (30,),
            f"blocks.{i}.mixer.out_proj.w": (30, 10),
        }  # fmt: skip
    assert shapes == expected


@pytest.mark.parametrize(("d_model", "rank"), [(1, 1), (16, 1), (17, 2), (768, 48), (2560, 160)])
def test_a_rank_of_0_is_a_sixteenth_of_the_width(d_model, rank):
    assert MambaConfig(d_model=d_model).rank == rank
    assert MambaConfig(d_model=d_model, dt_rank=3).rank == 3


@pytest.mark.parametrize("conv_width", [1, 2, 5])
def test_conv_width_is_the_reach_of_the_convolution(tiny, conv_width):
    model, tokens = tiny("mamba", n_layers=1, conv_width=conv_width), draw_tokens(7, 1)
    model.blocks[0].mixer.dt_proj.b.data[:] = -1000.0  # dt = 0: nothing is written to the state
    other = tokens.copy()
    other[0, 3] = (other[0, 3] + 1) % 11
    plain = without_tape(model)
    changed = (plain(tokens) != plain(other)).any(axis=(0, 2))
    assert changed.tolist() == [3 <= s < 3 + conv_width for s in range(12)]


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("tiny", 147_264), ("small", 965_760), ("mamba-130m", 129_135_360), ("mamba-370m", 371_516_416),
        ("mamba-790m", 793_204_224), ("mamba-1.4b", 1_372_178_432), ("mamba-2.8b", 2_768_345_600),
    ],
)  # fmt: skip
def test_parameter_counts(preset, expected, shaped_random):
    """Those of the releases follow from the shapes of their tensors; a name rounds its count."""
    assert count(Mamba(make_config("mamba", preset), shaped_random)) == expected


def test_a_count_of_shapes_is_that_of_a_real_model(shaped_random):
    config = make_config("mamba")
    assert count(Mamba(config, shaped_random)) == count(Mamba(config, np.random.default_rng(0)))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_config(preset):
    config = make_config("mamba", preset)
    assert {key: getattr(config, key) for key in PRESETS[preset]} == PRESETS[preset]
    assert config.d_inner == 2 * config.d_model


BAD = [
    *(({name: 0}, f"{name} must be at least 1, got 0") for name in ("vocab_size", "d_model", "n_layers", "expand")),
    ({"d_state": -2}, "d_state must be at least 1, got -2"),
    ({"conv_width": 0}, "conv_width must be at least 1, got 0"),
    ({"dt_rank": -1}, "dt_rank must be 0 (for d_model / 16, rounded up) or more, got -1"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD, ids=str)
def test_a_bad_config_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        MambaConfig(**options)
    assert "\n" not in str(caught.value)
