"""What one small op costs, forward and backward: a chain of multiplications, additions and tanh on 4 x 8 numbers."""

from collections.abc import Callable

from benchmarks.cases import Case

SHAPE, LINKS = (4, 8), 50
OPS_PER_LINK = 3


def tinyrec_side() -> Callable[[], object]:
    import numpy as np

    from tinyrec import Tensor, grad, ops

    rng = np.random.default_rng(0)
    x, scale, shift = (Tensor(rng.random(SHAPE, dtype=np.float32), True) for _ in range(3))
    g = rng.random(SHAPE, dtype=np.float32)

    def call() -> None:
        h = x
        for _ in range(LINKS):
            h = ops.tanh(h * scale + shift)
        grad(h, [x, scale, shift], g=g)

    return call


def torch_side() -> Callable[[], object]:
    import torch

    x, scale, shift = (torch.rand(SHAPE, requires_grad=True) for _ in range(3))
    g = torch.rand(SHAPE)

    def call() -> None:
        h = x
        for _ in range(LINKS):
            h = torch.tanh(h * scale + shift)
        x.grad = scale.grad = shift.grad = None
        h.backward(g)

    return call


CASES = [
    Case(
        "op_overhead",
        {"tinyrec": tinyrec_side, "torch": torch_side},
        threads=1,
        per_call=LINKS * OPS_PER_LINK,
        unit="op",
    )
]
