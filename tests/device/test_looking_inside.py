"""What looks into models on a GPU, and what writes with one of recurrent depth: the numbers of the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.evaluate import evaluate, evaluate_by_steps
from tinyrec.generate import generate
from tinyrec.inspect.recurrent_depth import exit_steps, path_independence, trajectories
from tinyrec.inspect.ttt import eta, inner_losses, weight_path
from tinyrec.models import build, make_config
from tinyrec.models.recurrent_depth_decode import DepthDecoder, speculate
from tinyrec.models.recurrent_depth_draw import draw_state
from tinyrec.models.recurrent_depth_exit import THRESHOLDS
from tinyrec.nn import parameters

TTT = dict(d_model=8, n_layers=2, n_heads=2, mini_batch=3, d_mlp=5, conv_width=3)
DEPTH = dict(d_model=8, n_heads=2, d_mlp=7, n_core=2, mean_steps=3, grad_steps=2)
TOKENS = np.random.default_rng(3).integers(0, 11, (2, 7))


def model_of(name, sizes, move=lambda x: x):
    model = build(name, make_config(name, vocab_size=11, **sizes), np.random.default_rng(4), "float64")
    for _, p in parameters(model):
        p.data = move(p.data + 0.2 * np.random.default_rng(5).standard_normal(p.shape))
    return model


def on_both(name, sizes, placed, look):
    """What look(model, move) gives with the model on the GPU, and on the host."""
    return look(model_of(name, sizes, placed), placed), look(model_of(name, sizes), lambda x: x)


def assert_same(found, tol=1e-9):
    for x, y in zip(*found, strict=True):
        assert isinstance(x, np.ndarray) or np.isscalar(x), "a figure is drawn on the host"
        if np.asarray(x).dtype.kind in "fiub":
            assert_close(x, y, tol)


@pytest.mark.parametrize("inner", ["linear", "mlp"])
@pytest.mark.parametrize(
    "look",
    [inner_losses, lambda *args: weight_path(*args)[:3], lambda *args: [eta(*args)]],
    ids=["inner_losses", "weight_path", "eta"],
)
def test_a_ttt_layer(cupy, placed, inner, look):
    assert_same(on_both(f"ttt-{inner}", TTT, placed, lambda model, move: look(model, move(TOKENS), 1)))


def test_paths(cupy, placed):
    def look(model, move):
        noise = (np.random.default_rng(i) for i in (6, 7))
        starts = [draw_state(rng, model.config, *TOKENS.shape, model.embedding.data) for rng in noise]
        return path_independence(model, move(TOKENS), starts, steps=4, rest=8)

    assert_same(on_both("recurrent-depth", DEPTH, placed, look), 1e-6)


@pytest.mark.parametrize("criterion", THRESHOLDS)
def test_exits(cupy, placed, criterion):
    def look(model, move):
        return exit_steps(model, move(TOKENS), criterion, max_steps=6)

    assert_same(on_both("recurrent-depth", DEPTH, placed, look), 1e-7)


def test_trajectories(cupy, placed):
    def look(model, move):
        return [trajectories(model, move(TOKENS), 6).states]

    assert_same(on_both("recurrent-depth", DEPTH, placed, look))


@pytest.mark.parametrize(
    "rules",
    [dict(steps=5, slots=2), dict(exit="kl", steps=5), dict(warm_start=True), dict(rng=8), dict(exit="latent-diff")],
)
def test_the_depth_decoder(cupy, placed, rules):
    def look(model, move):
        given = rules | ({"rng": np.random.default_rng(rules["rng"])} if "rng" in rules else {})
        return list(generate(model, TOKENS[0], 8, temperature=0.0, reader=DepthDecoder(model, **given)))

    there, here = on_both("recurrent-depth", DEPTH, placed, look)
    assert there == here


@pytest.mark.parametrize("tolerance", [1.0, 0.5])
def test_speculation(cupy, placed, tolerance):
    def look(model, move):
        return list(speculate(model, move(TOKENS[0]), 8, draft_steps=1, draft_tokens=3, tolerance=tolerance))

    there, here = on_both("recurrent-depth", DEPTH, placed, look)
    assert there == here


def test_evaluation(cupy, placed):
    targets = np.where(TOKENS > 8, -1, (TOKENS + 1) % 11)
    batches, devices = [(TOKENS, targets), (TOKENS[:1], targets[:1])], []
    for device, move in (("gpu", placed), ("cpu", lambda x: x)):
        model = model_of("recurrent-depth", DEPTH, move)
        by_steps = evaluate_by_steps(model, batches, (1, 4), device)
        devices.append([evaluate(model, batches, 2, device), by_steps[1], by_steps[4]])
    assert devices[0] == [pytest.approx(pair, rel=1e-9) for pair in devices[1]]
