"""One table of cases for every op: the tests walk it, and so does `tinyrec check`.

A new op needs one line here, `case(op, *arrays, **static)`; the suite fails until it has one. Sizes are pairwise
distinct, and each is larger than another somewhere, (2, 7, 5) and (5, 2, 7): swapped axes cannot pass. Where an op has
kinks, `distinct` keeps its inputs away from them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..ops.block_linear import block_outer
from ..ops.embedding import add_rows
from ..ops.inner_norm import inner_gradient, inner_norm
from ..ops.norm import inner
from ..ops.rope import rope_tables
from ..ops.softmax import softmax_error
from .draw import Draw
from .recurrence_cases import recurrences, wide_recurrences


class Case(NamedTuple):
    """One call of an op.

    gradient: what the backward of a surrogate must give, (g, *args) -> the expected gradients. reads: what is looked at
    instead of the outputs, a function of them; for a state of which only a product means something.
    """

    op: Callable
    args: tuple
    static: dict[str, Any]
    constants: tuple[int, ...] = ()  # numbers of the arguments that are floats and yet have no gradient
    gradient: Callable | None = None
    reads: Callable | None = None


def call_of(case: Case, form: Callable | None = None) -> Callable:
    """The case as a function of its arrays alone; form: the naive twin, say, in place of the op."""
    call = partial(form or case.op, **case.static)
    if case.reads is None:
        return call
    return lambda *args: case.reads(*call(*args))  # type: ignore[misc]


def op_name(op: Callable) -> str:
    """The name under which tape.OPS knows the op."""
    return f"{op.__module__}.{op.__name__}"


def cases(seed: int = 0) -> dict[str, list[Case]]:
    """The cases of every op, by its name in tape.OPS; arrays are float64."""
    return _table(seed, _elementwise, _shape, _reduce, _products, _layers, _attention, recurrences)


def wide_cases(seed: int = 0) -> dict[str, list[Case]]:
    """Larger cases of the recurrences, for their kernels: more than one block or warp, float64."""
    return _table(seed, wide_recurrences)


def _table(seed: int, *families: Callable) -> dict[str, list[Case]]:
    table: dict[str, list[Case]] = {}

    def case(
        op: Callable, *args: Any, constants: tuple = (), gradient: Callable | None = None,
        reads: Callable | None = None, **static: Any,
    ) -> None:  # fmt: skip
        table.setdefault(op_name(op), []).append(Case(op, args, static, constants, gradient, reads))

    for i, family in enumerate(families):
        family(case, Draw(np.random.default_rng([seed, i])))
    return table


def _elementwise(case: Callable, draw: Draw) -> None:
    normal, positive, distinct = draw.normal, draw.positive, draw.distinct
    for op in (ops.add, ops.sub, ops.mul):
        case(op, normal(2, 7, 5), normal(2, 7, 5))
        case(op, normal(5, 1, 7), normal(2, 1))
        case(op, normal(7, 5), normal(2, 7, 5))
        case(op, normal(), normal(2, 7))
        case(op, normal(2, 7), 3.0)
        case(op, 3.0, normal(2, 7))
    for op in (ops.div,):
        case(op, normal(2, 7, 5), positive(2, 7, 5))
        case(op, normal(7, 1), positive(2, 1, 5))
        case(op, normal(2, 7), 3.0)
        case(op, 3.0, positive(2, 7))
    for exponent in (2, 3, -1, 0.5, -0.5):
        case(ops.pow, positive(2, 7, 5), exponent=exponent)
    case(ops.pow, normal(2, 7, 5), exponent=3)
    case(ops.pow, np.zeros((2, 7)), exponent=1)
    for op in (ops.neg, ops.exp, ops.tanh, ops.sigmoid, ops.softplus, ops.silu, ops.gelu):
        case(op, normal(2, 7, 5))
        case(op, normal())
    for op in (ops.log, ops.sqrt, ops.bounded_sqrt):
        case(op, positive(2, 7, 5))
    case(
        ops.bounded_sqrt,
        np.array([0.0, 1e-9, 2.4e-7, 2.6e-7, 0.25]),
        gradient=lambda g, q: (g / np.maximum(2.0 * np.sqrt(q), 1e-3),),
    )
    case(ops.relu, distinct(2, 7, 5))
    case(ops.squared_relu, distinct(2, 7, 5))
    case(ops.softcap, 4.0 * normal(2, 7, 5), cap=3.0)
    case(ops.clip, distinct(2, 7, 5), low=-0.41, high=0.62)
    case(ops.maximum, distinct(2, 7, 5), distinct(7, 5))  # odd multiples of 1/70, even ones: no ties
    case(ops.maximum, distinct(2, 7), 0.0)
    case(ops.maximum, 0.0, distinct(2, 7))
    case(ops.where, normal(2, 7, 5) > 0, normal(2, 7, 5), normal(7, 1))
    case(ops.where, normal(7, 1) > 0, 1.0, normal(2, 7, 5))
    case(ops.where, True, normal(2, 7), 0.0)


def _shape(case: Callable, draw: Draw) -> None:
    normal = draw.normal
    for axis in (None, 0, -1, (0, 2)):
        case(ops.sum, normal(2, 7, 5), axis=axis)
        case(ops.sum, normal(5, 2, 7), axis=axis, keepdims=True)
    case(ops.broadcast_to, normal(7, 1), shape=(2, 7, 5))
    case(ops.reshape, normal(2, 7, 5), shape=(5, 14))
    case(ops.transpose, normal(2, 7, 5))
    case(ops.transpose, normal(2, 7, 5), axes=(2, 0, 1))
    case(ops.transpose, normal(2, 7, 5, 3), axes=(0, -2, 1, -1))
    repeats = np.array([1, 6, 1, 0, 1])
    everything: tuple[Any, ...] = (
        1, -1, slice(None, None, 2), (..., None, 3), (slice(None), slice(5, 1, -1)), (slice(0, 0),),
        np.array([1, 0, 1]), (slice(None), repeats), (np.array([[1], [0]]), repeats), draw.rng.random((2, 7)) > 0.5,
    )  # fmt: skip
    for index in everything:
        x = normal(2, 7, 5)
        case(ops.getitem, x, index=index)
        case(ops.scatter, normal(*x[index].shape), index=index, shape=x.shape)
    case(ops.concat, normal(2, 7, 5), normal(2, 1, 5), normal(2, 3, 5), axis=1)
    case(ops.concat, normal(2, 7), axis=-1)
    for axis in (0, 1, -1):
        case(ops.stack, normal(2, 7), normal(2, 7), normal(2, 7), axis=axis)
    case(ops.split, normal(2, 7, 5), sizes=(1, 4, 2), axis=1)
    case(ops.split, normal(5, 2, 7), sizes=(7,))
    case(ops.pad, normal(2, 7, 5), widths=((0, 0), (3, 1), (2, 0)))


def _reduce(case: Callable, draw: Draw) -> None:
    for axis in (None, 0, -1, (0, 2)):
        for keepdims in (False, True):
            case(ops.mean, draw.normal(2, 7, 5), axis=axis, keepdims=keepdims)
            case(ops.max, draw.distinct(5, 2, 7), axis=axis, keepdims=keepdims)
            case(ops.logsumexp, draw.normal(2, 7, 5), axis=axis, keepdims=keepdims)


def _products(case: Callable, draw: Draw) -> None:
    normal = draw.normal
    case(ops.matmul, normal(2, 7), normal(7, 5))
    case(ops.matmul, normal(5, 2, 7), normal(5, 7, 3))
    case(ops.matmul, normal(3, 1, 2, 7), normal(4, 7, 5))
    case(ops.linear, normal(2, 7, 5), normal(5, 3), normal(3))
    case(ops.linear, normal(5, 2, 7), normal(7, 11))
    case(ops.linear, normal(7), normal(7, 5), None)
    case(ops.block_linear, normal(2, 7, 6), normal(3, 2, 2), normal(6))
    case(ops.block_linear, normal(5, 2, 6), normal(2, 3, 3))
    case(block_outer, normal(2, 7, 6), normal(2, 7, 6), n=3)
    case(inner, normal(2, 7, 5), normal(2, 7, 5))
    case(ops.recompute, normal(2, 7), normal(7, 5), call=lambda x, w: ops.tanh(ops.matmul(x, w)), weights=[])


def _layers(case: Callable, draw: Draw) -> None:
    normal = draw.normal
    tokens = np.array([[3, 0, 3, 10, 3], [7, 7, 0, 1, 2]])
    case(ops.embedding, normal(11, 7), tokens)
    case(add_rows, normal(2, 5, 7), tokens, n_rows=11)
    case(ops.softmax, normal(2, 7, 5))
    case(ops.softmax, normal(5, 2, 7), axis=0)
    targets = np.array([[0, 4, 3, -1, 2, 2, 1], [1, -1, -1, 0, 0, 4, 3]])
    case(ops.cross_entropy, normal(2, 7, 5), targets)
    case(ops.cross_entropy, normal(5, 7), np.array([6, 0, 2, 2, 5]), reduction="sum", ignore_index=2)
    case(softmax_error, normal(2, 7, 5), targets)
    case(softmax_error, normal(2, 7, 5), abs(targets))
    for one_plus in (False, True):
        case(ops.rmsnorm, normal(2, 7, 5), normal(5), one_plus=one_plus)
    case(ops.rmsnorm, normal(5, 2, 7))
    case(ops.rmsnorm, normal(5, 2, 7), None, eps=0.1)
    case(ops.layernorm, normal(2, 7, 5), normal(5), normal(5))
    case(ops.layernorm, normal(5, 2, 7), normal(7), normal(7), eps=0.1)
    for rows, gain in (((2, 3, 7, 5), (3, 5)), ((5, 2, 3), (5, 3))):
        case(inner_norm, normal(*rows), normal(*gain), normal(*gain))
        case(inner_gradient, normal(*rows), normal(*rows), normal(*gain), normal(*gain))
    for gate in (ops.gelu_gate, ops.silu_gate, ops.sigmoid_gate):
        case(gate, normal(2, 7, 5), normal(2, 7, 5))
        case(gate, normal(3, 7000), normal(3, 7000))  # more than one tile
    for shape in ((2, 7, 5), (5, 1, 2), (1, 7, 11000)):  # the last: two steps per tile
        case(ops.token_shift, normal(*shape), normal(shape[0], shape[2]), normal(shape[2]), normal(shape[2]))
    case(ops.l2wrap, normal(2, 7, 5), strength=0.5, gradient=_largest_logit_too)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3], [5, 6, 7, 8, 9, 0, 1]])
    for pairing in ("half", "adjacent"):
        cos, sin = rope_tables(positions, 4, dtype="float64")
        case(ops.rope, normal(2, 7, 3, 6), cos, sin, pairing=pairing, constants=(1, 2))
    case(ops.causal_conv, normal(2, 7, 5), normal(4, 5), normal(5), normal(2, 3, 5))
    case(ops.causal_conv, normal(2, 7, 5), normal(4, 5), normal(5), normal(2, 3, 5), positions=positions)
    case(ops.causal_conv, normal(5, 2, 7), normal(4, 7), normal(7), normal(5, 3, 7))  # shorter than the filter


def _largest_logit_too(g: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray]:
    return (g + np.where(logits == logits.max(axis=-1, keepdims=True), 0.5 * logits, 0.0),)


def _attention(case: Callable, draw: Draw) -> None:
    normal = draw.normal
    case(ops.attention, normal(2, 7, 3, 5), normal(2, 7, 3, 5), normal(2, 7, 3, 5))
    case(ops.attention, normal(5, 2, 6, 3), normal(5, 4, 2, 3), normal(5, 4, 2, 3))  # two keys carried, grouped heads
    reach = draw.integers(9, 2, 7)
    case(ops.attention, normal(2, 7, 4, 5), normal(2, 10, 1, 5), normal(2, 10, 1, 5), reach=reach)
    case(ops.attention, normal(2, 7, 2, 3), normal(2, 9, 2, 3), normal(2, 9, 2, 3), reach=reach, window=3)
    reach = draw.integers(9, 1, 131)
    case(ops.attention, normal(1, 131, 2, 3), normal(1, 133, 1, 3), normal(1, 133, 1, 3), reach=reach)  # three chunks
