"""tinyrec: recurrent language models on a tensor library whose every gradient is written by hand, and checked.

    from tinyrec import Tensor, grad, gradcheck, ops
    from tinyrec.recurrences.rglru import rglru, naive
    from tinyrec.models import make_config, build

docs/reading_order.md is a path through the code.
"""

from . import ops
from .check import gradcheck
from .cuda.switch import use_host_kernels
from .tape import Tensor, fused, nan_check, no_grad, op, surrogate
from .walk import grad

__version__ = "0.1.0"
__all__ = [
    "Tensor", "fused", "grad", "gradcheck", "nan_check", "no_grad", "op", "ops", "surrogate", "use_host_kernels",
]  # fmt: skip
