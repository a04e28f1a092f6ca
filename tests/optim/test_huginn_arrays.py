"""HuginnAdam: the dtype, the memory and the saved state of what it works on."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from tinyrec.optim import HuginnAdam
from tinyrec.tape import Tensor

SHAPES = {"w": (4, 3), "b": (5,), "scale": (), "kernel": (2, 3, 2)}
SWITCHES = ("running_init", "update_clipping", "atan2")
EVERY_WAY = [dict(zip(SWITCHES, on, strict=True)) for on in itertools.product([False, True], repeat=3)]
ALL_ON, ALL_OFF = EVERY_WAY[-1], EVERY_WAY[0]


def random_params(rng, dtype=np.float64):
    return [(name, Tensor(np.asarray(rng.normal(size=s), dtype), requires_grad=True)) for name, s in SHAPES.items()]


def one(values, dtype=np.float64):
    return Tensor(np.asarray(values, dtype), requires_grad=True)


def set_grads(params, rng, scale=1.0):
    """A third of the entries has no gradient, the same ones each time; and some more, each time others."""
    for _, tensor in params:
        g = scale * rng.normal(size=tensor.shape) * (rng.random(tensor.shape) < 0.8)
        tensor.grad = np.asarray(g * (np.arange(g.size).reshape(g.shape) % 3 != 1), tensor.dtype)


@pytest.mark.parametrize("switches", EVERY_WAY, ids=str)
def test_float32_stays_float32_whatever_the_settings_are(switches):
    rng, x = np.random.default_rng(6), np.float64(0.1)
    params = random_params(rng, np.float32)
    optimizer = HuginnAdam(params, x, (np.float64(0.9), np.float64(0.95)), np.float64(1e-6), x, **switches)
    for _ in range(3):
        set_grads(params, rng)
        optimizer.step(x)
    assert {tensor.dtype for _, tensor in params} == {np.dtype(np.float32)}
    assert {a.dtype for key, a in optimizer.state().items() if not key.startswith("t.")} == {np.dtype(np.float32)}


@pytest.mark.parametrize("switches", [ALL_ON, ALL_OFF], ids=["on", "off"])
def test_a_step_works_in_place_and_allocates_nothing_large(switches):
    w = one(np.random.default_rng(7).normal(size=(300, 400)), np.float32)
    w.grad, array = np.ones_like(w.data), w.data
    optimizer = HuginnAdam([("w", w)], 0.1, skip_first=False, **switches)
    optimizer.step()  # makes the scratch buffer
    tracemalloc.start()
    optimizer.step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000 and w.data is array  # bytes; w has 480,000


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_state_goes_on_bit_for_bit(steps):
    def run(steps, params, optimizer, rng):
        for _ in range(steps):
            set_grads(params, rng)
            optimizer.step()

    rng = np.random.default_rng(8)
    params = random_params(rng, np.float32)
    optimizer = HuginnAdam(params, 0.1)
    run(steps, params, optimizer, rng)
    saved, then, rng_then = optimizer.state(), [t.data.copy() for _, t in params], rng.bit_generator.state
    assert {key[:2] for key in saved} == {"m.", "v.", "t."} and saved["t.w"] == steps - 1  # -1: none skipped yet
    run(3, params, optimizer, rng)

    again = [(name, one(array, np.float32)) for (name, _), array in zip(params, then, strict=True)]
    other = HuginnAdam(again, 0.1)
    other.load_state(saved)
    rng.bit_generator.state = rng_then
    run(3, again, other, rng)
    assert all(a.data.tobytes() == b.data.tobytes() for (_, a), (_, b) in zip(params, again, strict=True))
