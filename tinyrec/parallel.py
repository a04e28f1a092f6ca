"""The loss and its gradients with the batch split over threads, or over processes.

NumPy releases Python's lock inside of its loops, so two threads that each run forward and backward on half of the batch
keep two cores busy with elementwise work that NumPy itself does on one. Each has its own tape; the shards' gradients
are added in a fixed order.

Threads still wait for each other: every short call gives the lock up and has to get it back. Processes do not. They
are forked from this one, so they know the model; parameters and gradients lie in memory that all of them share.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn

import numpy as np
from threadpoolctl import ThreadpoolController

from .backend import Array, get_xp, on_gpu
from .nn import parameters
from .ops import cross_entropy, l2wrap
from .tape import Tensor, mode
from .walk import grad


def loss_and_grads(
    model: Any, tokens: Array, targets: Array, threads: int = 1, scale: float = 1.0, **inputs: Any
) -> float | Array:
    """Mean cross entropy in nats of model(tokens, **inputs) against targets != -1; tokens, targets (B, T) integers.

    With a model on a GPU it is an array () there, so that nobody waits: see backend.to_floats. tokens and targets may
    well be NumPy arrays then: the targets are counted, and both copied.

    Adds scale * gradient into `.grad` of every parameter, for a model with `l2wrap` that of the penalty too (see
    ops/l2wrap.py). inputs: arrays (B, ...), which are split as the batch is, and anything else, which every thread is
    given as it is. Raises ValueError if nothing is scored.
    """
    tensors = [tensor for _, tensor in parameters(model)]
    threads = 1 if on_gpu(tensors[0].data) else threads  # they would only take turns at it
    shards = _split(tokens, targets, scale, inputs, threads)
    checking, floating_point = mode.checking, np.geterr()  # such modes belong to a thread: hand them on

    def work(shard: tuple) -> tuple[float, list[Array]]:
        mode.checking = checking
        with np.errstate(**floating_point):
            return _one(model, tensors, *shard)

    results = [work(shards[0])] if len(shards) == 1 else _in_threads(work, shards)
    return _add_up(tensors, results)


def _split(tokens: Array, targets: Array, scale: float, inputs: dict, parts: int) -> list[tuple]:
    """The arguments of `_one` for nearly equal parts of the batch, fewer if the batch is smaller."""
    scored = int((targets != -1).sum())
    if not scored:
        raise ValueError("no target is scored: every entry of targets is -1")
    n = max(1, min(len(tokens), parts))
    stops = [len(tokens) * i // n for i in range(n + 1)]
    return [
        (tokens[a:b], targets[a:b], scored, scale, {k: x[a:b] if hasattr(x, "shape") else x for k, x in inputs.items()})
        for a, b in pairwise(stops)
    ]


def _one(
    model: Any, tensors: list[Tensor], tokens: Array, targets: Array, scored: int, scale: float, inputs: dict
) -> tuple[float | Array, list[Array]]:
    """What one part of the batch adds to the loss, and scale times what it adds to the gradients."""
    xp = get_xp(tensors[0].data)
    logits = model(xp.asarray(tokens), **inputs)
    if penalty := getattr(model, "l2wrap", 0.0):
        logits = l2wrap(logits, strength=penalty * scale / scored)
    total = cross_entropy(logits, xp.asarray(targets), reduction="sum") * (1.0 / scored)
    loss = total.data.astype("float64") if on_gpu(total.data) else total.item()
    return loss, grad(total * scale, tensors)


def _add_up(tensors: list[Tensor], results: list[tuple[float, list[Array]]]) -> float:
    for i, tensor in enumerate(tensors):
        for _, gradients in results:
            tensor.grad = gradients[i] if tensor.grad is None else tensor.grad + gradients[i]
    return sum(loss for loss, _ in results)


_blas: ThreadpoolController | None = None  # looking for the loaded BLAS libraries takes milliseconds: once is enough


def _one_blas_thread() -> Any:
    global _blas
    _blas = _blas or ThreadpoolController()
    return _blas.limit(limits=1, user_api="blas")


def _in_threads(work: Any, shards: list[tuple]) -> list:
    """[work(shard) ...], each in a thread of its own with one BLAS thread."""
    with _one_blas_thread(), ThreadPoolExecutor(len(shards)) as pool:
        return list(pool.map(work, shards))


# --- processes --------------------------------------------------------------------------------------------------------


class WorkerError(RuntimeError):
    """A worker process is gone."""


@contextmanager
def sharing(model: Any, workers: int) -> Iterator[Callable[..., float]]:
    """A function like loss_and_grads, of (tokens, targets, scale, **inputs), that splits every batch among `workers`.

    In processes on Linux, with the arrays in host memory; otherwise in threads, and not at all on a GPU. The parameters
    must be changed in place while it lasts, as an optimizer does; afterwards they are ordinary arrays again.
    """
    tensors = [tensor for _, tensor in parameters(model)]
    if workers == 1 or sys.platform != "linux" or not all(isinstance(t.data, np.ndarray) for t in tensors):
        yield partial(loss_and_grads, model, threads=workers)
        return
    processes: list[_Process] = []
    for tensor, array in zip(tensors, _shared_like(tensors), strict=True):
        array[...] = tensor.data
        tensor.data = array
    try:
        for _ in range(workers - 1):
            processes.append(_Process(model, tensors, processes))
        yield partial(_in_processes, model, tensors, processes)
    finally:
        for process in processes:
            process.end()
        for tensor in tensors:
            tensor.data = tensor.data.copy()


def _in_processes(
    model: Any, tensors: list[Tensor], processes: list[_Process], tokens: Array, targets: Array, *, scale: float = 1.0,
    **inputs: Any,
) -> float:  # fmt: skip
    """loss_and_grads, with the first part of the batch done here and the others in the processes."""
    mine, *others = _split(tokens, targets, scale, inputs, 1 + len(processes))
    busy = processes[: len(others)]
    for process, shard in zip(busy, others, strict=True):
        process.ask((shard, np.geterr()))
    try:
        with _one_blas_thread():
            results = [_one(model, tensors, *mine)]
    finally:
        answers = [process.answer() for process in busy]  # whatever happens here, nothing is left in the pipes
    for process, answer in zip(busy, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        results.append((answer, process.gradients))
    return _add_up(tensors, results)


class _Process:
    """A fork of this process that waits for parts of batches, and ends when this one does, however that happens."""

    def __init__(self, model: Any, tensors: list[Tensor], earlier: list[_Process]):
        self.gradients = _shared_like(tensors)
        self.pipe, there = Pipe()
        # Ctrl-C reaches all processes of a terminal, and one decides: the fork keeps it blocked, from its first moment.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with warnings.catch_warnings():  # Python warns of forks beside threads; ours only computes, and leaves by _exit
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _serve(there, [process.pipe for process in (*earlier, self)], model, tensors, self.gradients)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        there.close()

    def ask(self, question: Any) -> None:
        try:
            self.pipe.send(question)
        except OSError as error:
            raise WorkerError(f"worker process {self.pid} is gone: {error}") from error

    def answer(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return WorkerError(f"worker process {self.pid} has died, perhaps for lack of memory")

    def end(self) -> None:
        self.pipe.close()
        os.waitpid(self.pid, 0)


def _serve(
    pipe: Connection, others: list[Connection], model: Any, tensors: list[Tensor], gradients: list[Array]
) -> NoReturn:
    """The life of a worker process. others: ends of pipes that belong to the process that was forked."""
    try:
        for end in others:  # or the end of that process would not close them
            end.close()
        with _one_blas_thread():
            while True:
                shard, floating_point = pipe.recv()
                try:
                    with np.errstate(**floating_point):
                        loss, found = _one(model, tensors, *shard)
                    for here, g in zip(gradients, found, strict=True):
                        here[...] = g
                    pipe.send(loss)
                except Exception as error:  # noqa: BLE001 - it is raised on the other side
                    pipe.send(error)
    except (EOFError, OSError):  # the other end is closed
        pass
    finally:
        os._exit(0)  # no clean-up of what belongs to the process that was forked


def _shared_like(tensors: list[Tensor]) -> list[Array]:
    """Arrays like those of the tensors, filled with 0, in memory that stays shared when this process is forked."""
    memory, at, arrays = mmap.mmap(-1, max(1, sum(t.data.nbytes + 64 for t in tensors))), 0, []
    for t in tensors:
        arrays.append(np.frombuffer(memory, t.dtype, t.size, at).reshape(t.shape))
        at += -(-t.data.nbytes // 64) * 64  # each on a cache line of its own
    return arrays
