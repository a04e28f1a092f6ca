"""Memory for time: forget what a piece of the model computed, and compute it again when the backward comes by.

Known as gradient checkpointing (Chen et al. 2016).
"""

from __future__ import annotations

from ..tape import Tensor, array_of, fused, no_grad
from ..walk import grad


def naive(*inputs, call, weights):
    """call(*inputs), everything kept: the law, and the form to differentiate twice."""
    return call(*inputs[: len(inputs) - len(weights)])


@fused(naive)
def recompute(*inputs, call, weights):
    """y = call(x, ...), where `inputs` are the x, ... and then the weights; only the x, ... are kept.

    call: a function of Tensors that gives one Tensor, the same whenever it is asked. weights: all Tensors that it uses
    besides its arguments; they are also given as inputs, so that the tape knows where their gradients belong.
    """
    xs = inputs[: len(inputs) - len(weights)]
    with no_grad():
        y = array_of(call(*xs))
    return y, (*xs, call, weights)


@recompute.vjp
def recompute_vjp(g, *saved):  # the forward once more, this time recorded, and back through it
    *xs, call, weights = saved
    leaves = [Tensor(x, requires_grad=True) for x in xs]
    return tuple(grad(call(*leaves), [*leaves, *weights], g))
