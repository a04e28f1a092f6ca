"""One RG-LRU layer with its gates, forward and backward, at the size it has in the models of train_step."""

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Case
from benchmarks.cases.train_step import HEADS, B, E, T


def tinyrec_side() -> Callable[[], object]:
    import numpy as np

    from tinyrec import Tensor, grad
    from tinyrec.nn import lecun_normal, zeros
    from tinyrec.ops import block_linear
    from tinyrec.recurrences.rglru import rglru

    rng, k = np.random.default_rng(0), E // HEADS
    w_a, w_x = (lecun_normal(rng, (HEADS, k, k), k) for _ in range(2))
    b_a, b_x, lam = zeros((E,)), zeros((E,)), Tensor(np.full(E, -4.0, np.float32), True)
    u, dh = Tensor(rng.standard_normal((B, T, E), np.float32), True), rng.standard_normal((B, T, E), np.float32)
    h_init, starts = np.zeros((B, E), np.float32), np.broadcast_to(np.arange(T) == 0, (B, T))

    def call() -> None:
        h, _ = rglru(u, block_linear(u, w_a, b_a), block_linear(u, w_x, b_x), lam, h_init, starts=starts)
        grad(h, [u, w_a, b_a, w_x, b_x, lam], g=dh)

    return call


def torch_side(scan: str) -> Callable[[], object]:
    import torch

    from benchmarks.torch_rglru import RGLRU

    layer = RGLRU(E, HEADS, scan)
    u, dh = torch.randn(B, T, E).requires_grad_(), torch.randn(B, T, E)
    positions = torch.arange(T).expand(B, T)

    def call() -> None:
        layer.zero_grad()
        u.grad = None
        layer(u, positions, None)[0].backward(dh)

    return call


CASES = [
    Case(
        "rglru",
        {
            "tinyrec": tinyrec_side,
            "torch": partial(torch_side, "official"),
            "torch-unbind": partial(torch_side, "unbind"),
        },
    )
]
