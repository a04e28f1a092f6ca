"""Differentiable primitives, one file per family; here they become operators and methods of Tensor."""

from __future__ import annotations

from typing import Any

from ..tape import Tensor
from ..walk import backward
from .activation import gelu, relu, sigmoid, silu, softcap, softplus, squared_relu, tanh
from .attention import attention
from .block_linear import block_linear
from .conv import causal_conv
from .elementwise import add, bounded_sqrt, clip, div, exp, log, maximum, mul, neg, pow, sqrt, sub, where
from .embedding import embedding
from .gates import gelu_gate, sigmoid_gate, silu_gate
from .l2wrap import l2wrap
from .matmul import linear, matmul
from .norm import layernorm, rmsnorm
from .recompute import recompute
from .reduce import logsumexp, max, mean, sum
from .rope import rope, rope_tables
from .shape import broadcast_to, concat, getitem, pad, reshape, scatter, split, stack, transpose
from .softmax import cross_entropy, softmax
from .token_shift import token_shift


def _shape_args(args: tuple) -> tuple[int, ...]:
    """Both x.reshape(2, 3) and x.reshape((2, 3))."""
    return tuple(args[0]) if len(args) == 1 and not isinstance(args[0], int) else args


_METHODS: dict[str, Any] = {
    "__add__": add,
    "__sub__": sub,
    "__mul__": mul,
    "__truediv__": div,
    "__matmul__": matmul,
    "__neg__": neg,
    "__radd__": lambda x, y: add(y, x),
    "__rsub__": lambda x, y: sub(y, x),
    "__rmul__": lambda x, y: mul(y, x),
    "__rtruediv__": lambda x, y: div(y, x),
    "__rmatmul__": lambda x, y: matmul(y, x),
    "__pow__": lambda x, exponent: pow(x, exponent=exponent),
    "__getitem__": lambda x, index: getitem(x, index=index),
    "sum": sum,
    "mean": mean,
    "max": max,
    "reshape": lambda x, *shape: reshape(x, shape=_shape_args(shape)),
    "transpose": lambda x, *axes: transpose(x, axes=_shape_args(axes) if axes else None),
    "backward": backward,
}
for _name, _function in _METHODS.items():
    setattr(Tensor, _name, _function)
