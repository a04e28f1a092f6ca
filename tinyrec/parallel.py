"""The loss and its gradients with the batch split over threads.

NumPy releases Python's lock inside of its loops, so two threads that each run forward and backward on half of the batch
keep two cores busy with elementwise work that NumPy itself does on one. Each thread has its own tape; the shards'
gradients are added in a fixed order.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from .backend import Array
from .nn import parameters
from .ops import cross_entropy, l2wrap
from .tape import mode
from .walk import grad


def loss_and_grads(
    model: Any, tokens: Array, targets: Array, threads: int = 1, scale: float = 1.0, **inputs: Any
) -> float:
    """Mean cross entropy in nats of model(tokens, **inputs) against targets != -1; tokens, targets (B, T) integers.

    Adds scale * gradient into `.grad` of every parameter, for a model with `l2wrap` that of the penalty too (see
    ops/l2wrap.py). inputs: arrays (B, ...), which are split as the batch is, and anything else, which every thread is
    given as it is. Raises ValueError if nothing is scored.
    """
    scored = int((targets != -1).sum())
    if not scored:
        raise ValueError("no target is scored: every entry of targets is -1")
    tensors, penalty = [tensor for _, tensor in parameters(model)], getattr(model, "l2wrap", 0.0)
    checking, floating_point = mode.checking, np.geterr()  # such modes belong to a thread: hand them on

    def shard(rows: slice) -> tuple[float, list[Array]]:
        mode.checking = checking
        with np.errstate(**floating_point):
            logits = model(tokens[rows], **{k: x[rows] if hasattr(x, "shape") else x for k, x in inputs.items()})
            if penalty:
                logits = l2wrap(logits, strength=penalty * scale / scored)
            total = cross_entropy(logits, targets[rows], reduction="sum") * (1.0 / scored)
            return total.item(), grad(total * scale, tensors)

    results = _in_threads(shard, _shards(len(tokens), threads))
    for i, tensor in enumerate(tensors):
        for _, gradients in results:
            tensor.grad = gradients[i] if tensor.grad is None else tensor.grad + gradients[i]
    return sum(loss for loss, _ in results)


def _shards(batch: int, threads: int) -> list[slice]:
    """`threads` slices of nearly equal size (fewer if the batch is smaller) that cover the batch."""
    n = max(1, min(batch, threads))
    stops = [batch * i // n for i in range(n + 1)]
    return [slice(a, b) for a, b in pairwise(stops)]


_blas: ThreadpoolController | None = None  # looking for the loaded BLAS libraries takes milliseconds: once is enough


def _in_threads(work: Any, shards: list[slice]) -> list:
    """[work(shard) ...]; with several shards each in a thread of its own, and one BLAS thread in each."""
    global _blas
    if len(shards) == 1:
        return [work(shards[0])]
    _blas = _blas or ThreadpoolController()
    with _blas.limit(limits=1, user_api="blas"), ThreadPoolExecutor(len(shards)) as pool:
        return list(pool.map(work, shards))
