"""QRNN pooling, forward and backward, on one thread, beside eager PyTorch: with the gate f alone, and with f and i."""

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Case

B, T, C = 8, 512, 512


def tinyrec_side(arguments: int) -> Callable[[], object]:
    import numpy as np

    from tinyrec import Tensor, grad
    from tinyrec.recurrences.qrnn import qrnn

    rng = np.random.default_rng(0)
    leaves = [Tensor(rng.standard_normal((B, T, C), np.float32), True) for _ in range(arguments)]
    z, f, i = leaves if arguments == 3 else (*leaves, None)
    c_init, dc = np.zeros((B, C), np.float32), rng.standard_normal((B, T, C), np.float32)
    return lambda: grad(qrnn(z, f, i, c_init)[0], leaves, g=dc)


def torch_side(arguments: int) -> Callable[[], object]:
    import torch

    from benchmarks.torch_qrnn import pool

    leaves = [torch.randn(B, T, C).requires_grad_() for _ in range(arguments)]
    z, f, i = leaves if arguments == 3 else (*leaves, None)
    c_init, dc = torch.zeros(B, C), torch.randn(B, T, C)

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        pool(z, f, i, c_init)[0].backward(dc)

    return call


CASES = [
    Case(
        f"qrnn/{name}",
        {"tinyrec": partial(tinyrec_side, arguments), "torch-unbind": partial(torch_side, arguments)},
        threads=1,
    )
    for name, arguments in (("f", 2), ("ifo", 3))
]
