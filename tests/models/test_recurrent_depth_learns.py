"""What recurrent depth is for: after training, more iterations give more right answers, and too many do no harm."""

import time

import numpy as np
import pytest

from tinyrec.cli.models import model_config
from tinyrec.cli.parser import load_preset
from tinyrec.evaluate import evaluate_by_steps
from tinyrec.options import Options
from tinyrec.train import open_source, start, train

STEPS = (1, 2, 4, 8, 12, 16, 32, 64)


def accuracies(preset: str, seed: int) -> dict[int, float]:
    """By iterations, on 1000 fresh sequences of the trained length."""
    given, of_model = load_preset(preset, Options)
    options = Options(**{**given, "seed": seed, "valid_every": given["steps"]})
    source = open_source(options)
    state = start("recurrent-depth", model_config("recurrent-depth", of_model, source.vocab_size), options)
    for _ in train(state, source, options):
        pass
    rng = np.random.default_rng(1)
    found = evaluate_by_steps(state.model, [source.sample(100, rng) for _ in range(10)], STEPS)
    return {r: accuracy for r, (_, accuracy) in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prefix_parity_needs_iterations(seed):
    began = time.monotonic()
    right = accuracies("parity", seed)
    print(f"seed {seed}, {time.monotonic() - began:.0f} s: " + ", ".join(f"r={r} {a:.3f}" for r, a in right.items()))
    assert right[8] - right[1] > 0.15
    assert right[32] > max(right.values()) - 0.02
    assert right[8] > 0.75


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pointer_chasing_needs_iterations(seed):
    right = accuracies("chase", seed)
    print(f"seed {seed}: " + ", ".join(f"r={r} {a:.3f}" for r, a in right.items()))
    assert right[8] - right[1] > 0.15
    assert right[32] > max(right.values()) - 0.02
