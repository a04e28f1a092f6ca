"""Walking the tape back: `grad` and `Tensor.backward`.

Node ids count upward, so "newest first" visits every node after all nodes that use it: no recursion (a recurrence in
depth or time is thousands of nodes deep), no sorting pass, one heap.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any

from .backend import Array, get_xp
from .tape import Node, Op, SecondOrderError, Tensor, array_of, check_finite, make, mode


def backward(y: Tensor, g: Array | None = None) -> None:
    """Add dL/dx into `.grad` of every leaf x that y depends on; g = dL/dy, 1 for a scalar y. Uses up the graph."""
    owned: set[int] = set()
    for leaf, (gx,) in _walk(y, g, None, create_graph=False).values():
        if leaf.grad is not None:
            gx = leaf.grad + gx
        elif gx is g or gx.base is not None or id(gx) in owned:
            gx = gx.copy()  # two leaves may have received one array (x + y), or views of one
        owned.add(id(gx))
        leaf.grad = gx


def grad(y: Tensor, xs: Sequence[Tensor], g: Any = None, create_graph: bool = False) -> list:
    """dL/dx for each x of xs, given g = dL/dy (1 for a scalar y); zeros for an x that y does not depend on.

    Touches no `.grad`. Without create_graph the results are arrays and the graph is used up; with it they are
    Tensors that can be differentiated again, and the graph stays.
    """
    for x in xs:
        if x.node is None:
            raise ValueError(f"grad: no gradient can reach a tensor of shape {x.shape} that does not require one")
    found = _walk(y, g, {x.node.id for x in xs if x.node}, create_graph)
    results = []
    for x in xs:
        cotangent = found[x.node.id][1][x.index] if x.node and x.node.id in found else None
        if cotangent is None:
            cotangent = get_xp(x.data).zeros_like(x.data)
        results.append(Tensor(cotangent) if create_graph and type(cotangent) is not Tensor else cotangent)
    return results


def _walk(y: Tensor, g: Any, wanted: set[int] | None, create_graph: bool) -> dict[int, tuple[Any, list]]:
    """Walk back from y, newest node first, to the nodes whose id is wanted (None: to every leaf).

    Returns {id: (node, [cotangent of each of its outputs])} for them; all other cotangents are dropped on the way.
    """
    if y.node is None:
        raise ValueError("backward: this tensor does not depend on any tensor with requires_grad=True")
    if g is None:
        if y.size != 1:
            raise ValueError(f"backward: a tensor of shape {y.shape} is not a scalar; pass its cotangent g")
        g = get_xp(y.data).ones_like(y.data)
    elif type(g) is not Tensor or not create_graph:
        g = get_xp(y.data).asarray(array_of(g), dtype=y.dtype)  # a Python number, a list, float64 where y is float32
    if g.shape != y.shape:
        raise ValueError(f"backward: cotangent g has shape {g.shape}, the tensor has {y.shape}")

    lowest = 0 if wanted is None else min(wanted, default=y.node.id)  # older than every wanted node: cannot matter
    found: dict[int, tuple[Any, list]] = {}
    pending: dict[int, tuple[Any, list]] = {y.node.id: (y.node, [None] * y.node.n_outputs)}
    pending[y.node.id][1][y.index] = g  # id -> (node, cotangent of each output); complete once it is the newest
    newest = [-y.node.id]  # heap of minus the ids in pending
    while newest:
        node, cotangents = entry = pending.pop(-heappop(newest))
        op = node.op
        if op is None if wanted is None else node.id in wanted:
            found[node.id] = entry
        if op is None or node.id == lowest:
            continue
        if op.backward is None:
            raise TypeError(f"op '{op.name}' has no backward yet: write one under it and mark it @{op.name}.vjp")
        saved = node.saved
        if saved is None:
            raise RuntimeError(
                f"backward through '{op.name}' a second time: its saved arrays are gone. "
                "Run the forward again, or use grad(..., create_graph=True), which keeps them."
            )
        if create_graph:
            saved = _saved_as_tensors(node)
        else:
            node.saved = None
        g = tuple(cotangents) if node.many else cotangents[0]
        parents = node.parents
        if op.selective:
            gs = op.backward(g, *saved, needs=parents)
        else:
            gs = op.backward(g, *saved)
        if mode.checking:
            check_finite(gs, f"the vjp of op '{op.name}'", "gradient")
        if type(gs) is not tuple:
            gs = (gs,)
        if len(gs) != len(parents):
            _check_count(op, gs, len(parents))
        for parent, gx in zip(parents, gs, strict=False):
            if parent is None or gx is None:
                continue
            source, index = parent
            key = source.id
            if key < lowest:
                continue
            if key in pending:
                sums = pending[key][1]
                sums[index] = gx if sums[index] is None else sums[index] + gx  # not +=: gx may be shared
            else:
                sums = [None] * source.n_outputs
                sums[index] = gx
                pending[key] = (source, sums)
                heappush(newest, -key)
    return found


def _check_count(op: Op, gs: tuple, n: int) -> None:
    """One gradient for each of n arguments; beyond them only None, for optional arguments that were left out."""
    if len(gs) < n or any(gx is not None for gx in gs[n:]):
        raise TypeError(f"the vjp of op {op.name!r} gave {len(gs)} gradients for {n} arguments")


def _saved_as_tensors(node: Node) -> list:
    """The saved arrays as Tensors with their history: each must be an input or an output of the op, or not a float."""
    if node.op.twin is not None:
        raise SecondOrderError(
            f"op '{node.op.name}' has a raw array backward, which cannot be differentiated again; "
            f"use its naive twin {node.op.twin.__module__}.{node.op.twin.__name__}"
        )
    ends = [*node.parents, *((node, i) for i in range(node.n_outputs))]  # what array_ids lists
    tensors = []
    for a in node.saved or ():
        if not is_float(a):
            if isinstance(a, (tuple, list)) and any(map(is_float, a)):
                raise SecondOrderError(f"op '{node.op.name}' saves arrays inside a tuple or list; save each by itself")
            tensors.append(a)  # shapes, indices, masks, Python numbers: constants
            continue
        origins = {end for end, known in zip(ends, node.array_ids, strict=True) if known == id(a)}
        if len(origins) != 1:
            what = "one array that is two different inputs" if origins else "an array that is neither input nor output"
            raise SecondOrderError(f"op '{node.op.name}' saves {what}, so its backward cannot be differentiated again")
        end = origins.pop()
        tensors.append(a if end is None else make(a, *end))
    return tensors


def is_float(a: Any) -> bool:
    """Is it an array or a Tensor of floating point numbers, which alone can have gradients?"""
    return getattr(getattr(a, "dtype", None), "kind", "") == "f"
