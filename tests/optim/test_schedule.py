"""The shape of the learning rate over a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec.optim import learning_rate

RUN = {"peak": 0.5, "warmup": 9, "steps": 109, "floor": 0.1}


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("cosine", 0.3, 0.1), ("linear", 0.3, 0.1), ("constant", 0.5, 0.5)]
)
def test_the_corners_of_a_schedule(schedule, middle, end):
    rates = [learning_rate(step, schedule=schedule, **RUN) for step in range(120)]
    np.testing.assert_allclose(rates[:10], 0.05 * np.arange(1, 11), rtol=1e-12)  # up to the peak at step 9
    assert rates[59] == pytest.approx(middle) and rates[109] == pytest.approx(end) and set(rates[109:]) == {rates[109]}
    assert max(rates) == rates[9] == 0.5


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant", "trapezoid"]),
    warmup=st.integers(0, 30),
    steps=st.integers(1, 60),
    share=st.floats(0, 1),
)
def test_a_schedule_rises_then_falls_and_stays_between(schedule, warmup, steps, share):
    rates = [
        learning_rate(step, schedule=schedule, peak=2.0, warmup=warmup, steps=steps, floor=2.0 * share)
        for step in range(steps + 5)
    ]
    assert all(type(rate) is float for rate in rates)
    assert all(0 < rate <= 2.0 for rate in rates[:steps])
    assert (np.diff(rates[: warmup + 1]) > 0).all() and (np.diff(rates[warmup:]) <= 0).all()
    if schedule in ("cosine", "linear") and steps > warmup:
        assert rates[-1] == pytest.approx(2.0 * share)
    if warmup < steps:
        assert rates[warmup] == 2.0


def test_cosine_is_slow_at_both_ends():
    cosine = [learning_rate(s, schedule="cosine", peak=1.0, warmup=0, steps=100) for s in range(101)]
    linear = [learning_rate(s, schedule="linear", peak=1.0, warmup=0, steps=100) for s in range(101)]
    assert cosine[25] == pytest.approx(0.5 + math.sqrt(0.125)) and linear[25] == pytest.approx(0.75)
    np.testing.assert_allclose(np.add(cosine, cosine[::-1]), 1.0, rtol=1e-12)


def trapezoid(**given):
    run = dict(schedule="trapezoid", peak=1.0, warmup=3, steps=12, cooldown=4) | given
    return [learning_rate(step, **run) for step in range(14)]


def test_a_trapezoid_by_hand():
    up, down = [0.25, 0.5, 0.75], [1.0, 0.75, 0.5, 0.25]  # the last four of twelve steps fall, the first from the peak
    np.testing.assert_allclose(trapezoid(), up + [1.0] * 5 + down + [0.0] * 2, rtol=1e-15)
    np.testing.assert_allclose(trapezoid(floor=0.2)[8:], [1.0, 0.8, 0.6, 0.4, 0.2, 0.2], rtol=1e-15)
    np.testing.assert_allclose(trapezoid(cooldown=1), up + [1.0] * 9 + [0.0] * 2, rtol=1e-15)
    assert trapezoid(cooldown=0) == trapezoid(schedule="constant", cooldown=0) == [*up, *[1.0] * 11]


def test_where_warmup_and_cooldown_overlap_the_lower_line_counts():
    rates = trapezoid(steps=6, cooldown=6, warmup=5)
    np.testing.assert_allclose(rates[:7], [1 / 6, 2 / 6, 3 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0], rtol=1e-15)


@given(
    warmup=st.integers(0, 30),
    steps=st.integers(1, 60),
    cooldown=st.integers(0, 70),
    share=st.floats(0, 1),
)
def test_a_trapezoid_rises_once_and_falls_once(warmup, steps, cooldown, share):
    two = np.float64(2.0)  # the rate is a Python float all the same
    floor = two * share
    rates = [
        learning_rate(s, schedule="trapezoid", peak=two, warmup=warmup, steps=steps, cooldown=cooldown, floor=floor)
        for s in range(steps + 5)
    ]
    top = int(np.argmax(rates))
    assert all(type(rate) is float for rate in rates) and all(0 < rate <= 2.0 for rate in rates[:steps])
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) <= 0).all()
    if warmup + cooldown < steps:
        assert rates[warmup : steps - cooldown + 1] == [2.0] * (steps - cooldown + 1 - warmup)
        assert rates[steps:] == [floor if cooldown else 2.0] * 5


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin', expected one of cosine, linear, constant, trapezoid"),
        ({"step": -1}, "step >= 0"),
        ({"steps": 0}, "steps >= 1"),
        ({"warmup": -1}, "warmup >= 0"),
        ({"cooldown": -1}, "expected cooldown >= 0, got -1"),
        ({"floor": 0.6}, "floor <= peak"),
        ({"peak": math.nan}, "floor <= peak"),
    ],
)
def test_a_bad_schedule_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        learning_rate(**{"step": 3, **RUN} | change)
