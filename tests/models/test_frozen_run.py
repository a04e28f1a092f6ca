"""Ten training steps of each model, from one seed, must give the numbers of tests/golden/frozen_runs.json.

    python tests/models/test_frozen_run.py        # writes the file anew, when a change of the numbers is meant

In float64: rounding then differs between machines (BLAS, SIMD) by about 1e-16 an operation, and ten steps blow that up
to about 1e-13. 1e-9 leaves room, and any change of a formula, an initial value or the optimizer is far larger.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tinyrec.models import MODELS, build, make_config
from tinyrec.nn import parameters
from tinyrec.optim import clip_by_global_norm, optimizer_for
from tinyrec.parallel import loss_and_grads

FILE = Path(__file__).parents[1] / "golden" / "frozen_runs.json"
SIZES = dict(vocab_size=13, d_model=16)
OPTIONS = {
    "griffin": dict(n_layers=3, d_rnn=24, n_heads=2, gate_blocks=2, window=5, logit_cap=30.0),
    "huginn": dict(n_heads=2, d_mlp=40, n_core=2, mean_steps=3),
    "rwkv4": dict(n_layers=3),
    "mamba": dict(n_layers=3, d_state=4),
    "ttt": dict(d_model=32, n_layers=2, n_heads=2, mini_batch=8),  # all matrices start small: a narrow one learns late
    "baseline": dict(n_layers=3, window=5, max_length=20, rank=4),
}


def run(name: str) -> dict[str, list[float]]:
    """Losses and gradient norms of ten steps on one random batch, B = 3, T = 20."""
    rng = np.random.default_rng(2024)
    model = build(name, make_config(name, **{**SIZES, **OPTIONS[MODELS[name].family]}), rng, "float64")
    tokens = rng.integers(0, 13, (3, 21))
    optimizer = optimizer_for(model, lr=3e-3, weight_decay=0.1)
    losses, norms = [], []
    for _ in range(10):
        optimizer.zero_grad()
        losses.append(loss_and_grads(model, tokens[:, :-1], tokens[:, 1:]))
        norms.append(clip_by_global_norm(parameters(model), 1.0))
        optimizer.step()
    return {"loss": losses, "norm": norms}


@pytest.mark.parametrize("name", MODELS)
def test_ten_steps_give_the_frozen_numbers(name):
    frozen, now = json.loads(FILE.read_text())[name], run(name)
    assert len(frozen["loss"]) == len(frozen["norm"]) == 10
    np.testing.assert_allclose(now["loss"], frozen["loss"], rtol=1e-9)
    np.testing.assert_allclose(now["norm"], frozen["norm"], rtol=1e-9)


def test_the_frozen_numbers_are_those_of_learning():
    runs = json.loads(FILE.read_text())
    assert set(runs) == set(MODELS)
    for frozen in runs.values():
        assert frozen["loss"][0] == pytest.approx(math.log(13), rel=0.3)  # as good as guessing
        assert frozen["loss"][-1] < 0.9 * frozen["loss"][0]


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: run(name) for name in MODELS}, indent=1) + "\n")
