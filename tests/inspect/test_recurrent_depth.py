"""Watching a recurrent-depth model: distances, exits and trajectories against what they are by definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tinyrec.evaluate import score_logits
from tinyrec.inspect import exit_steps, path_independence, trajectories
from tinyrec.inspect.recurrent_depth import SETTLED, habits, principal
from tinyrec.models import build, make_config
from tinyrec.models.recurrent_depth import Unrolling
from tinyrec.models.recurrent_depth_exit import THRESHOLDS, ExitWatch
from tinyrec.nn import without_tape

B, T, H, V = 2, 7, 8, 11
CONFIG = make_config("recurrent-depth", vocab_size=V, d_model=H, n_heads=2, d_mlp=12, mean_steps=3)
TOKENS = np.random.default_rng(1).integers(0, V, (B, T))


def model_of(config=CONFIG, wild=1.0):
    """In float64; wild: times the weights that the state is read with, so that it comes to no rest."""
    model = build("recurrent-depth", config, np.random.default_rng(0), np.float64)
    model.adapter_s.data *= wild
    return model


def start(seed, model):
    return model.draw(np.random.default_rng(seed), B, T)["initial_state"]


def states(model, s0, steps):
    """s_i (steps + 1, B, T, H) and logits (steps + 1, B, T, V) after each, one run of the model for each i."""
    runs = []
    for i in range(steps + 1):
        thought = Unrolling(without_tape(model), TOKENS, start=s0)
        for _ in range(i):
            thought.iterate()
        runs.append((thought.s, thought.latent(), thought.logits()))
    return [np.stack(arrays) for arrays in zip(*runs, strict=True)]


# --- path independence ------------------------------------------------------------------------------------------------


def test_distances_are_those_between_the_states():
    model = model_of()
    starts = [start(seed, model) for seed in (1, 2, 3)]
    found = path_independence(model, TOKENS, starts, steps=4, rest=6)
    assert found.apart.shape == (5, 2, B, T) and found.to_rest.shape == (5, 3, B, T)
    rest = states(model, starts[0], 6)[0][-1]
    first, second, third = (states(model, s0, 4)[0] for s0 in starts)
    length = np.linalg.norm
    for other, distances in ((second, found.apart[:, 0]), (third, found.apart[:, 1])):
        expected = length(first - other, axis=-1) / np.maximum(length(first, axis=-1), length(other, axis=-1))
        np.testing.assert_allclose(distances, expected, rtol=1e-12)
    expected = length(third - rest, axis=-1) / np.maximum(length(third, axis=-1), length(rest, axis=-1))
    np.testing.assert_allclose(found.to_rest[:, 2], expected, rtol=1e-12)


def test_a_contracting_model_forgets_its_start_and_a_wild_one_does_not():
    for wild, forgets in ((1.0, True), (12.0, False)):
        model = model_of(wild=wild)
        found = path_independence(model, TOKENS, [start(1, model), start(2, model)], steps=60, rest=60)
        assert (found.apart[0] > 0.3).all()
        assert found.apart[-1].mean() < 1e-3 if forgets else found.apart[-1].mean() > 0.3
        assert (found.to_rest[-1, 0] == 0).all()  # s* itself


def test_a_start_of_zeros_is_at_distance_one():
    model = model_of()
    found = path_independence(model, TOKENS, [np.zeros((B, T, H)), start(1, model), np.zeros((B, T, H))], steps=2)
    np.testing.assert_allclose(found.apart[0, 0], 1.0)
    assert (found.apart[:, 1] == 0).all() and np.isfinite(found.to_rest).all()


def test_paths_need_two_starts():
    with pytest.raises(ValueError, match="expected 2 starts or more"):
        path_independence(model_of(), TOKENS, [np.zeros((B, T, H))])


# --- exits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", THRESHOLDS)
def test_a_token_says_what_it_would_after_so_many_iterations(criterion):
    model = model_of()
    s0 = start(4, model)
    thought = Unrolling(without_tape(model), TOKENS, start=s0)
    watch = ExitWatch(criterion, None, thought)
    for _ in range(4):
        thought.iterate()
        value = watch.look()
    threshold = float(np.quantile(value, 0.2))  # so that some leave before the fifth iteration, and some do not
    found = exit_steps(model, TOKENS, criterion, threshold, 9, s0)
    assert found.steps.shape == (B, T) and found.steps.min() >= 1 and found.steps.max() <= 9
    assert found.steps.min() <= 4 < found.steps.max()
    logits = states(model, s0, 9)[2]
    expected = np.take_along_axis(logits, found.steps[None, ..., None], axis=0)[0]
    np.testing.assert_allclose(found.logits, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.final, logits[9], rtol=1e-12, atol=1e-13)


def test_a_token_leaves_at_the_first_value_below_the_threshold():
    model = model_of()
    s0 = start(4, model)
    s = states(model, s0, 12)[0]
    moved = np.linalg.norm(s[1:] - s[:-1], axis=-1) / np.linalg.norm(s[1:], axis=-1)  # (12, B, T)
    found = exit_steps(model, TOKENS, "latent-diff", 0.1, 12, s0)
    below = moved <= 0.1
    np.testing.assert_array_equal(found.steps, np.where(below.any(0), 1 + below.argmax(0), 12))
    assert below.any(0).any() and not below.any(0).all()


@pytest.mark.parametrize(("threshold", "steps"), [(np.inf, 1), (-np.inf, 5)])
@pytest.mark.parametrize("criterion", ["kl", "latent-diff"])
def test_at_once_and_never(criterion, threshold, steps):
    found = exit_steps(model_of(), TOKENS, criterion, threshold, 5)
    assert (found.steps == steps).all()
    expected = states(model_of(), None, 5)[2]
    np.testing.assert_allclose(found.logits, expected[steps], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.final, expected[5], rtol=1e-12, atol=1e-13)


def test_exits_can_be_scored():
    found = exit_steps(model_of(), TOKENS, "kl", max_steps=4)
    nats, right, scored = score_logits(found.logits, TOKENS)
    assert nats.shape == right.shape == (B, T) and scored.all()


def test_wrong_requests_of_exits_are_refused():
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        exit_steps(model_of(), TOKENS, max_steps=0)
    with pytest.raises(ValueError, match="unknown exit criterion 'lk'; known: kl"):
        exit_steps(model_of(), TOKENS, "lk")


# --- trajectories -----------------------------------------------------------------------------------------------------


def test_trajectories_are_the_normed_states_in_their_principal_directions():
    model = model_of()
    s0 = start(5, model)
    found = trajectories(model, TOKENS, steps=6, components=3, start=s0)
    expected = states(model, s0, 6)[1]
    np.testing.assert_allclose(found.states, expected, rtol=1e-12, atol=1e-13)
    assert found.coordinates.shape == (7, B, T, 3) and found.explained.shape == (3,)
    np.testing.assert_allclose(found.coordinates.mean(0), 0.0, atol=1e-12)
    rows = expected.reshape(-1, H) - expected.reshape(-1, H).mean(0)
    _, singular, axes = np.linalg.svd(rows, full_matrices=False)  # of all rows: more memory, the same directions
    np.testing.assert_allclose(found.explained, singular[:3] ** 2 / (singular**2).sum(), rtol=1e-9)
    along = (rows @ axes[:3].T).reshape(7, B, T, 3)
    np.testing.assert_allclose(abs(found.coordinates), abs(along - along.mean(0)), atol=1e-9)


def test_all_components_keep_all_distances():
    x = np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32)
    found, explained = principal(x, 6)
    assert found.shape == (5, 4, 3) and explained.sum() == pytest.approx(1.0)
    distances = [np.linalg.norm(y[:, None] - y[None], axis=-1) for y in (x.reshape(-1, 3), found.reshape(-1, 3))]
    np.testing.assert_allclose(*distances, atol=1e-5)


def test_the_habits_of_a_model():
    model = model_of()
    found = trajectories(model, TOKENS, 100, start=start(5, model)).habits
    assert (found.kind == "settles").all() and found.kind.shape == (B, T) and found.settled.max() < 50
    model = model_of(wild=12.0)
    assert (trajectories(model, TOKENS, 100, start=start(5, model)).habits.kind != "settles").any()


def in_space(plane, h=5, seed=3):
    """A trajectory (I, 2) somewhere in h dimensions, (I, h)."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.standard_normal((h, 2)))
    return plane @ axes.T + rng.standard_normal(h)


def turning(turns, radius=1.0, steps=128):
    """`turns` in the second half."""
    angle = 4 * np.pi * turns * np.arange(steps + 1) / steps
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


I = np.arange(129)[:, None]  # noqa: E741 - as in the docstrings
SYNTHETIC = {
    "a point, straight": ("settles", 0.8**I * [3.0, 1.0]),
    "a point, in a spiral": ("settles", turning(20, 0.9**I)),
    "a point, from side to side": ("settles", (-0.9) ** I * [1.0, 2.0]),
    "at rest from the start": ("settles", 0.0 * I * [1.0, 1.0]),
    "a circle": ("orbit", turning(8)),
    "a circle, reached from afar": ("orbit", turning(8) + 30 * 0.7**I),
    "two places in turn": ("orbit", (-1.0) ** I * [1.0, 0.5]),
    "0.7 turns": ("orbit", turning(0.7)),
    "a growing circle": ("orbit", turning(8, 1.02**I)),
    "a line": ("slider", I * [0.1, 0.2]),
    "a line, of ever smaller steps": ("slider", np.log(1 + I) * [1.0, -1.0]),
    "a line with wiggles": ("slider", I * [0.1, 0.0] + 0.05 * np.sin(I) * [0.0, 1.0]),
    "0.5 turns": ("slider", turning(0.5)),
    "a drift after a jump": ("slider", I * [0.05, 0.05] + 20 * 0.5**I),
}


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_habits_of_known_trajectories(name, scale):
    kind, plane = SYNTHETIC[name]
    assert habits(scale * in_space(plane)).kind == kind


def test_habits_of_many_at_once_are_those_of_each():
    every = np.stack([in_space(plane) for _, plane in SYNTHETIC.values()], axis=1)  # (I, n, h)
    found = habits(every.reshape(129, 2, -1, 5))
    assert found.kind.ravel().tolist() == [kind for kind, _ in SYNTHETIC.values()]
    for i in range(every.shape[1]):
        for whole, one in zip(found[1:], habits(every[:, i])[1:], strict=True):
            assert whole.ravel()[i] == pytest.approx(float(one))


def test_unrest_straightness_and_when_it_settled():
    found = habits(in_space(turning(8)))
    assert found.unrest == pytest.approx(1.0) and found.straight < 1e-10
    assert habits(in_space(turning(0.5))).straight == pytest.approx(2 / np.pi, rel=1e-3)  # diameter over half a turn
    found = habits(in_space(I * [0.1, 0.2]))
    assert found.straight == pytest.approx(1.0) and found.unrest == pytest.approx(0.5)
    found = habits(in_space(0.5**I * [1.0, 1.0]))
    assert found.settled == 6 and 0.5**6 < SETTLED < 0.5**5


def test_wrong_requests_of_trajectories_are_refused():
    for wrong in ({"steps": 1}, {"components": 0}):
        with pytest.raises(ValueError, match="steps must be at least 2 and components at least 1"):
            trajectories(model_of(), TOKENS, **wrong)


# --- for all three ----------------------------------------------------------------------------------------------------


def test_a_model_that_recomputes_is_watched_like_any_other():
    plain, again = model_of(), model_of(dataclasses.replace(CONFIG, recompute=True))
    for found, expected in zip(trajectories(again, TOKENS, 4)[:2], trajectories(plain, TOKENS, 4)[:2], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_model_is_left_as_it_was():
    model = model_of()
    before = model.embedding.data.copy()
    exit_steps(model, TOKENS, max_steps=2)
    trajectories(model, TOKENS, 2)
    np.testing.assert_array_equal(model.embedding.data, before)
    assert model(TOKENS, steps=1).requires_grad
