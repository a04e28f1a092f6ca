"""One RG-LRU layer with its gates, forward and backward, at the size it has in the models of train_step."""

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Case
from benchmarks.cases.train_step import HEADS, B, E, T


def tinyrec_side() -> Callable[[], object]:
    raise NotImplementedError("tinyrec's side of rglru is not written yet")


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
