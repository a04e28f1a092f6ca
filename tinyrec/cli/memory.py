"""What a training step takes, as `tinyrec info` and `tinyrec train` tell it before it is done."""

from __future__ import annotations

import tracemalloc
from typing import Any, NamedTuple

import numpy as np

from ..nn import parameters
from ..parallel import loss_and_grads


class StepMemory(NamedTuple):
    """Bytes. fixed: parameters four times, for themselves, the gradient, AdamW's m and v. sequence: activations of one.

    total: for the whole batch.
    """

    fixed: int
    sequence: int
    total: int


def step_memory(model: Any, batch: int, context: int) -> StepMemory:
    """Measured on one sequence. The model, on the CPU, is afterwards as it was before its first step."""
    tokens, inputs = np.zeros((1, context), np.int64), {}
    if hasattr(model, "draw"):  # not the r of a chance draw, which may be fewer than the k that are recorded
        inputs = model.draw(np.random.default_rng(0), 1, context, steps=model.config.grad_steps)
    tracemalloc.start()  # NumPy reports its arrays to it
    loss_and_grads(model, tokens, tokens, **inputs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    fixed = sum(p.data.nbytes for _, p in parameters(model))
    for _, p in parameters(model):
        p.grad = None
    sequence = max(0, peak - fixed)  # without the gradients, which are in the peak
    return StepMemory(4 * fixed, sequence, 4 * fixed + batch * sequence)


def megabytes(size: float) -> str:
    """1234567 -> 1.2 MB; whole ones from 10 on."""
    return f"{size / 1e6:.{0 if size >= 1e7 else 1}f} MB"
