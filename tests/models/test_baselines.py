"""The baselines: each mixer against its paper's formulas in plain NumPy, how it starts, and what is refused."""

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.models import build, make_config
from tinyrec.models.baselines import _newest
from tinyrec.nn import parameters


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def mixer_of(tiny, name, **options):
    """A mixer, its parameters as arrays, an input x (B, T, D), and its output."""
    model = tiny(name, n_layers=1, **options)
    mixer = model.blocks[0].mixer
    x = np.random.default_rng(5).standard_normal((2, 9, 6))
    y, _ = mixer(x, mixer.initial_state(np.zeros((2, 6))))
    return {key: tensor.data for key, tensor in parameters(mixer)}, x, y.data


def test_lstm(tiny):
    p, x, y = mixer_of(tiny, "lstm")
    h = c = np.zeros((2, 6))
    for t in range(9):
        i, f, g, o = np.split(x[:, t] @ p["inputs.w"] + p["inputs.b"] + h @ p["w_h"], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        assert_close(y[:, t], h, 1e-13)


@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
def test_qrnn(tiny, pooling):
    p, x, y = mixer_of(tiny, "qrnn", pooling=pooling)
    before, now = p["conv.w"][:6], p["conv.w"][6:]
    c, last = np.zeros((2, 6)), np.zeros((2, 6))
    for t in range(9):
        gates = np.split(last @ before + x[:, t] @ now + p["conv.b"], len(pooling) + 1, axis=1)
        z, f = np.tanh(gates[0]), sigmoid(gates[1])
        c = f * c + (sigmoid(gates[3]) if pooling == "ifo" else 1.0 - f) * z
        assert_close(y[:, t], c if pooling == "f" else sigmoid(gates[2]) * c, 1e-13)
        last = x[:, t]


@pytest.mark.parametrize("kind", ["full", "local", "simple"])
def test_aft(tiny, kind):
    p, x, y = mixer_of(tiny, "aft", kind=kind)
    q, k, v = (x @ p[f"{name}.w"] for name in "qkv")
    for t in range(9):
        w = np.zeros(t + 1)
        if kind == "full":
            w = p["now"][t] @ p["before"][: t + 1].T
        if kind == "local":  # a window of 3; further back a bias of 0
            for back in range(min(3, t + 1)):
                w[t - back] = p["w"][t, back]
        weights = np.exp(k[:, : t + 1] + w[:, None])
        mean = (weights * v[:, : t + 1]).sum(axis=1) / weights.sum(axis=1)
        assert_close(y[:, t], (sigmoid(q[:, t]) * mean) @ p["out.w"] + p["out.b"], 1e-12)


def test_initial_values():
    model = build("lstm", make_config("lstm", forget_bias=1.5), np.random.default_rng(0), "float64")
    p = dict(parameters(model.blocks[0].mixer))
    assert p["inputs.b"].data.reshape(4, 64).tolist() == [[0.0] * 64, [1.5] * 64, [0.0] * 64, [0.0] * 64]
    for name in ("inputs.w", "w_h"):
        assert abs(p[name].data).max() == pytest.approx(1 / 8, rel=1e-3)
    p = dict(parameters(build("aft", make_config("aft"), np.random.default_rng(0)).blocks[0].mixer))
    assert p["w"].shape == (1024, 32) and p["w"].data.std() == pytest.approx(0.01, rel=0.02)


def test_longer_than_the_table_of_places_is_refused(tiny):
    for kind in ("full", "local"):
        model = tiny("aft", kind=kind, max_length=8)
        assert model.config.longest == 8
        _, state = model.prefill(np.zeros((1, 8), int), model.initial_state(1))
        with pytest.raises(ValueError, match=rf"AFT \({kind}\) has biases for max_length = 8 tokens, got 9"):
            model.step(np.zeros(1, int), state)
    assert tiny("aft", kind="simple").config.longest is None and tiny("lstm").config.longest is None


def test_the_newest_tokens():
    old, new = np.arange(3.0).reshape(1, 3, 1), np.arange(3.0, 5.0).reshape(1, 2, 1)
    for n, expected in ((2, [3, 4]), (4, [1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (0, [])):
        assert _newest(old, new, n).ravel().tolist() == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"kind": "conv"}, "kind must be one of full, local, simple, got 'conv'"),
        ({"pooling": "fi"}, "pooling must be one of f, fo, ifo, got 'fi'"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_config("aft", **options)
