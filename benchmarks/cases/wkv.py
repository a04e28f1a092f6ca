"""WKV over (B, T, C) = (8, 512, 512), float32, forward and backward, one thread, beside the floor that memory sets.

The floor is the copy of nine arrays of this size: forward reads k, v and writes y, backward reads k, v, y, dy and
writes dk, dv. torch-loop is the published loop under autograd, torch-fused the same fused by hand (torch_wkv.py).
"""

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Case

B, T, C = 8, 512, 512


def tinyrec_side() -> Callable[[], object]:
    import numpy as np

    from tinyrec import Tensor, grad
    from tinyrec.recurrences.wkv import fresh_state, wkv

    rng = np.random.default_rng(0)
    k, v, dy = (rng.standard_normal((B, T, C), np.float32) for _ in range(3))
    leaves = [Tensor(x, True) for x in (k, v, np.linspace(-5, 3, C, dtype=np.float32), np.full(C, -1.2, np.float32))]
    state = fresh_state(B, C, k)
    return lambda: grad(wkv(*leaves, *state)[0], leaves, g=dy)


def floor_side() -> Callable[[], object]:
    import numpy as np

    pairs = [(np.ones((B, T, C), np.float32), np.ones((B, T, C), np.float32)) for _ in range(9)]

    def call() -> None:
        for source, target in pairs:
            np.copyto(target, source)

    return call


def torch_side(form: str) -> Callable[[], object]:
    import torch

    from benchmarks.torch_wkv import WKVS

    k, v, dy = (torch.randn(B, T, C) for _ in range(3))
    leaves = [x.requires_grad_() for x in (torch.linspace(-5, 3, C), torch.full((C,), -1.2), k, v)]

    def call() -> None:
        for x in leaves:
            x.grad = None
        WKVS[form](*leaves).backward(dy)

    return call


CASES = [
    Case(
        "wkv",
        {
            "tinyrec": tinyrec_side,
            "floor": floor_side,
            "torch-loop": partial(torch_side, "loop"),
            "torch-fused": partial(torch_side, "fused"),
        },
        threads=1,
    )
]
