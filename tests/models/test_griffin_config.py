"""Every switch of the Griffin family does what its comment says; wrong ones are refused in one sentence."""

import re

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.models import build, make_config
from tinyrec.models.griffin import bfloat16, initial_lam
from tinyrec.models.griffin_config import GriffinConfig
from tinyrec.nn import parameters
from tinyrec.tape import no_grad


def logits_of(model, tokens, positions=None):
    with no_grad():
        return model(tokens, positions).data


def draw_tokens(seed, batch=2, time=12):
    return np.random.default_rng([2, seed]).integers(0, 11, (batch, time))


def test_embed_scale_multiplies_the_embedding_by_a_rounded_root(tiny, name):
    tokens, d = draw_tokens(0), 12  # sqrt(12) = 3.4641 becomes 3.46875
    scaled, plain = (tiny(name, d_model=d, n_heads=3, embed_scale=scale) for scale in (True, False))
    plain.embedding.data *= 3.46875  # the head shares the table, so the logits grow as much
    assert_close(logits_of(scaled, tokens) * 3.46875, logits_of(plain, tokens), 1e-12)


def test_bfloat16_rounds_half_to_even():
    assert bfloat16(32**0.5) == 5.65625 and bfloat16(2560**0.5) == 50.5
    for x in np.random.default_rng(0).uniform(0.01, 300.0, 500).astype(np.float32):
        bits = int(x.view(np.uint32))
        low, rest = bits & 0xFFFF0000, bits & 0xFFFF
        up = rest > 0x8000 or (rest == 0x8000 and low & 0x10000)
        assert bfloat16(float(x)) == np.uint32(low + 0x10000 * bool(up)).view(np.float32)
    assert bfloat16(1.0 + 2**-8) == 1.0 and bfloat16(1.0 + 3 * 2**-8) == 1.0 + 2**-6


def test_logit_cap_squashes_the_logits(tiny, name):
    tokens = draw_tokens(1)
    raw, capped = (logits_of(tiny(name, logit_cap=cap), tokens) for cap in (0.0, 0.7))
    assert np.abs(raw).max() > 0.7
    assert_close(capped, 0.7 * np.tanh(raw / 0.7), 1e-12)


@pytest.mark.parametrize(("kind", "power"), [("code", 2), ("paper", 8)])
def test_decay_init(tiny, kind, power):
    """a = sigmoid(-lam): "code" a^2 uniform in (0.9^2, 0.999^2), "paper" a^8 uniform in (0.9, 0.999)."""
    uniform = (1.0 / (1.0 + np.exp(initial_lam(np.random.default_rng(0), 20000, kind)))) ** power
    low, high = (0.9**2, 0.999**2) if kind == "code" else (0.9, 0.999)
    share = (uniform - low) / (high - low)
    assert 0.0 <= share.min() < 0.001 and 0.999 < share.max() <= 1.0
    counts, _ = np.histogram(share, bins=10, range=(0.0, 1.0))
    assert np.abs(counts - 2000).max() < 250  # 6 standard deviations
    model = tiny("hawk", d_rnn=3000, gate_blocks=100, decay_init=kind)  # which asks for the kind of its config
    lam = model.blocks[0].mixer.lam.data
    assert (1.0 / (1.0 + np.exp(lam))).min() ** power == pytest.approx(low, abs=0.001)


@pytest.mark.parametrize("gate_init", ["torch", "jax"])
def test_initial_variances(gate_init):
    sizes = dict(vocab_size=400, d_model=96, n_layers=5, d_rnn=160, n_heads=4, gate_blocks=4, mlp_expansion=2)
    config = make_config("griffin", gate_init=gate_init, conv_width=50, **sizes)
    expected = {
        "embedding": 1 / 96, "branch.w": 1 / 96, "mixer.gate.w": 1 / 96,
        "q.w": 1 / 96, "k.w": 1 / 96, "v.w": 1 / 96, "conv_w": 0.01 / 50,
        "w_a": 1 / 40, "w_x": 1 / 40, "mlp.gate.w": 1 / 96, "mlp.up.w": 1 / 96,
        "mlp.down.w": 2 / 5 / 192, "blocks.2.mixer.out.w": 2 / 5 / 96,
    }  # fmt: skip
    expected |= {f"blocks.{i}.mixer.out.w": 2 / 5 / 160 for i in (0, 1, 3, 4)}
    if gate_init == "jax":  # the official einsum weights (4, 40, 40) and (2, 96, 192) count their leading axis
        expected |= {"w_a": 1 / 160, "w_x": 1 / 160, "mlp.gate.w": 1 / 192, "mlp.up.w": 1 / 192}
    seen = set()
    for name, tensor in parameters(build("griffin", config, np.random.default_rng(1), "float64")):
        key = next((key for key in expected if name.endswith(key)), None)
        if key is None:
            assert name.endswith("lam") or (tensor.data == 0.0).all(), name  # biases and gains
        else:
            seen.add(key)
            tolerance = 6.0 * (2.0 / tensor.size) ** 0.5  # 6 standard deviations of a sample variance
            assert tensor.data.var() == pytest.approx(expected[key], rel=tolerance), name
            assert tensor.data.mean() == pytest.approx(0.0, abs=6.0 * (expected[key] / tensor.size) ** 0.5)
    assert seen == set(expected)


@pytest.mark.parametrize("reset", [True, False])
def test_reset_decides_whether_a_state_crosses_a_document_start(tiny, reset):
    model = tiny("hawk", reset=reset, conv_width=1)  # the convolution is cut at starts in any case
    tokens, positions = draw_tokens(2, 1), np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    other = tokens.copy()
    other[:, :5] = (other[:, :5] + 1) % 11
    changed = (logits_of(model, tokens, positions) != logits_of(model, other, positions)).any(axis=(0, 2))
    assert changed.tolist() == [True] * 5 + [not reset] * 7


def test_without_reset_the_first_input_is_scaled(tiny):
    """With it m = 1 at a start, so one token alone gives another h."""
    assert (logits_of(tiny("hawk"), draw_tokens(3)) != logits_of(tiny("hawk", reset=False), draw_tokens(3))).any()


def test_rope_fraction_and_base(tiny):
    """Without rotation attention is blind to the order of what it sees; with it, it is not."""
    tokens = draw_tokens(4, 1)
    turned = np.concatenate([tokens[:, -2::-1], tokens[:, -1:]], axis=1)  # what the last token sees, backwards
    last = {}
    for fraction in (0.0, 0.5, 1.0):
        model = tiny("transformer", n_layers=1, rope_fraction=fraction)
        assert model.config.rotated == 4 * fraction
        last[fraction], moved = (logits_of(model, x)[:, -1] for x in (tokens, turned))
        if fraction == 0.0:
            assert_close(moved, last[fraction], 1e-13)
        else:
            assert np.abs(moved - last[fraction]).max() > 1e-3
    assert np.abs(last[0.5] - last[1.0]).max() > 1e-4
    based = logits_of(tiny("transformer", n_layers=1, rope_base=10.0, rope_fraction=1.0), tokens)[:, -1]
    assert np.abs(based - last[1.0]).max() > 1e-4


@pytest.mark.parametrize("window", [0, 1, 4])
def test_window_counts_past_tokens_besides_the_token_itself(tiny, window):
    model, tokens = tiny("griffin", pattern=("local",), n_layers=1, window=window), draw_tokens(5, 1)
    for t in range(12):
        other = tokens.copy()
        other[0, t] = (other[0, t] + 1) % 11
        changed = (logits_of(model, tokens) != logits_of(model, other)).any(axis=(0, 2))
        assert changed.tolist() == [t <= s <= t + window for s in range(12)]


def test_global_attention_sees_all(tiny):
    model, tokens = tiny("transformer", n_layers=1, window=1), draw_tokens(6, 1)
    other = tokens.copy()
    other[0, 0] = (other[0, 0] + 1) % 11
    assert (logits_of(model, tokens) != logits_of(model, other)).any(axis=(0, 2)).all()


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("hawk", ["recurrent"] * 5),
        ("griffin", ["recurrent", "recurrent", "local", "recurrent", "recurrent"]),
        ("transformer", ["global"] * 5),
    ],
)
def test_the_pattern_is_cycled_over_the_layers(tiny, name, kinds):
    model = tiny(name, n_layers=5)
    assert model.config.kinds == kinds
    assert [type(block.mixer).__name__ for block in model.blocks] == [
        "RecurrentMixer" if kind == "recurrent" else "Attention" for kind in kinds
    ]
    assert [getattr(block.mixer, "window", None) for block in model.blocks] == [
        3 if kind == "local" else None for kind in kinds
    ]


@pytest.mark.parametrize("conv_width", [1, 2, 5])
def test_conv_width_is_the_reach_of_the_convolution(tiny, conv_width):
    model, tokens = tiny("hawk", n_layers=1, conv_width=conv_width), draw_tokens(7, 1)
    model.blocks[0].mixer.lam.data[:] = 400.0  # the recurrence forgets at once
    other = tokens.copy()
    other[0, 3] = (other[0, 3] + 1) % 11
    changed = (logits_of(model, tokens) != logits_of(model, other)).any(axis=(0, 2))
    assert changed.tolist() == [3 <= s < 3 + conv_width for s in range(12)]
    assert model.initial_state(2).layers[0].conv.shape == (2, conv_width - 1, 12)


def test_sizes_shape_the_parameters(tiny):
    shapes = {name: tensor.shape for name, tensor in parameters(tiny("griffin"))}
    expected = {
        "embedding": (11, 8), "final_norm.gain": (8,), "blocks.0.mixer_norm.gain": (8,), "blocks.2.mlp_norm.gain": (8,),
        "blocks.0.mixer.branch.w": (8, 12), "blocks.0.mixer.gate.w": (8, 12), "blocks.0.mixer.gate.b": (12,),
        "blocks.0.mixer.conv_w": (4, 12), "blocks.0.mixer.conv_b": (12,), "blocks.0.mixer.w_a": (3, 4, 4),
        "blocks.0.mixer.w_x": (3, 4, 4), "blocks.0.mixer.lam": (12,), "blocks.0.mixer.out.w": (12, 8),
        "blocks.2.mixer.q.w": (8, 8), "blocks.2.mixer.k.w": (8, 4), "blocks.2.mixer.v.w": (8, 4),
        "blocks.2.mixer.out.w": (8, 8), "blocks.2.mixer.out.b": (8,), "blocks.1.mlp.gate.w": (8, 16),
        "blocks.1.mlp.up.b": (16,), "blocks.1.mlp.down.w": (16, 8), "blocks.1.mlp.down.b": (8,),
    }  # fmt: skip
    assert {name: shapes[name] for name in expected} == expected
    assert not {"blocks.2.mixer.q.b", "blocks.2.mixer.k.b", "blocks.2.mixer.v.b"} & shapes.keys()


def test_one_seed_gives_one_model_in_every_dtype():
    config = make_config("griffin")
    wide, narrow = (build("griffin", config, np.random.default_rng(3), dtype) for dtype in ("float64", "float32"))
    for (_, a), (_, b) in zip(parameters(wide), parameters(narrow), strict=True):
        assert b.dtype == np.float32 and (a.data.astype("float32") == b.data).all()


BAD = [
    ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
    ({"n_layers": -1}, "n_layers must be at least 1, got -1"),
    ({"conv_width": 0}, "conv_width must be at least 1, got 0"),
    ({"mlp_expansion": 0}, "mlp_expansion must be at least 1, got 0"),
    ({"pattern": ()}, "pattern must list kinds out of recurrent, local, global, got ()"),
    ({"pattern": ("recurent",)}, "pattern must list kinds out of recurrent, local, global, got ('recurent',)"),
    ({"n_heads": 3}, "d_model 64 must be a multiple of n_heads 3"),
    ({"gate_blocks": 5}, "d_rnn 96 must be a multiple of gate_blocks 5"),
    ({"rope_fraction": 1.5}, "rope_fraction 1.5 must rotate an even part of a head of 16"),
    ({"rope_fraction": -0.5}, "rope_fraction -0.5 must rotate"),
    ({"rope_fraction": 0.3}, "rope_fraction 0.3 must rotate an even part of a head of 16"),
    ({"window": -1}, "window and logit_cap must not be negative, got -1 and 0.0"),
    ({"logit_cap": -2.0}, "window and logit_cap must not be negative, got 32 and -2.0"),
    ({"decay_init": "papers"}, "decay_init must be 'code' or 'paper', got 'papers'"),
    ({"gate_init": "tf"}, "gate_init must be 'torch' or 'jax', got 'tf'"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_a_bad_config_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        GriffinConfig(**options)
    assert "\n" not in str(caught.value)
