"""How well a model predicts: nats and right answers per token, of a text or a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from . import ops
from .backend import Array, to_cpu, to_gpu
from .data import IGNORE_INDEX
from .tape import array_of, no_grad

Batch = tuple[Any, Any]  # tokens (B, T) and targets (B, T), integers
Scores = tuple[np.ndarray, np.ndarray, np.ndarray]  # nats, right, scored, (B, T) each


def score(model: Any, tokens: Any, targets: Any, **inputs: Any) -> Scores:
    """-log p(target), 0 where not scored; whether it had the largest logit; whether it is scored: (B, T) each.

    inputs: what else the model's call takes.
    """
    with no_grad():
        return score_logits(model(tokens, **inputs), targets)


def score_logits(logits: Any, targets: Any) -> Scores:
    """`score` of logits (B, T, V), a Tensor or an array."""
    logits = to_cpu(array_of(logits)).astype(np.float64)
    targets = to_cpu(targets)
    scored = targets != IGNORE_INDEX
    picked = np.take_along_axis(logits, np.where(scored, targets, 0)[..., None], axis=-1)[..., 0]  # (B, T)
    nats = scored * (ops.logsumexp(logits, axis=-1) - picked)
    return nats, scored & (logits.argmax(-1) == targets), scored


def scores(
    model: Any, batches: Iterable[Batch], threads: int = 1, device: str = "cpu", steps: int | None = None
) -> Iterator[Scores]:
    """`score` of each batch; several batches at a time, each in a thread of its own.

    steps: iterations of a model of recurrent depth (None: its config's mean_steps), which starts from the same noise
    whenever it is asked.
    """
    rng = np.random.default_rng(0)

    def calls() -> Iterator[tuple]:
        for batch in batches:
            tokens, targets = batch
            yield placed(tokens, device), targets, fixed_inputs(model, rng, tokens, steps)

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda call: score(model, *call[:2], **call[2]), calls())


def evaluate(
    model: Any, batches: Iterable[Batch], threads: int = 1, device: str = "cpu", steps: int | None = None
) -> tuple[float, float]:
    """Return (nats per scored token, share of them predicted right)."""
    return means(scores(model, batches, threads, device, steps))


def evaluate_by_steps(
    model: Any, batches: Iterable[Batch], steps: Sequence[int], device: str = "cpu"
) -> dict[int, tuple[float, float]]:
    """`evaluate` of a model of recurrent depth after each of these numbers of iterations: {steps: (nats, right)}.

    The iterations are run once, up to the largest number, and read out on the way.
    """
    rng = np.random.default_rng(0)
    found: dict[int, list[Scores]] = {r: [] for r in sorted(set(steps))}
    for batch in batches:
        tokens, targets = batch
        inputs = fixed_inputs(model, rng, tokens, max(found))
        with no_grad():
            for r, logits in model.logits_by_steps(placed(tokens, device), list(found), inputs["initial_state"]):
                found[r].append(score_logits(logits, targets))
    return {r: means(of_batches) for r, of_batches in found.items()}


def means(of_batches: Iterable[Scores]) -> tuple[float, float]:
    """(nats per scored token, share of them predicted right) over all batches."""
    sums = np.zeros(3)
    for arrays in of_batches:
        sums += [array.sum() for array in arrays]
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])


def fixed_inputs(model: Any, rng: Any, tokens: Any, steps: int | None) -> dict[str, Any]:
    """What the model's call takes besides tokens (B, T) when nothing is trained."""
    if hasattr(model, "draw"):
        return model.draw(rng, *tokens.shape, steps=model.config.mean_steps if steps is None else steps)
    if steps is not None:
        raise ValueError("only a model of recurrent depth takes a number of steps")
    return {}


def placed(tokens: Array, device: str) -> Array:
    """The tokens on that device. Targets stay with the host, which counts and scores."""
    return to_gpu(tokens) if device == "gpu" else tokens
