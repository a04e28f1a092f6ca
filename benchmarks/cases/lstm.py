"""One LSTM layer, forward and backward, one thread: torch.nn.LSTM is one compiled kernel, the loop eager PyTorch."""

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Case

B, T, D, H = 8, 256, 256, 256


def tinyrec_side() -> Callable[[], object]:
    import numpy as np

    from tinyrec import Tensor, grad
    from tinyrec.nn import lecun_normal, zeros
    from tinyrec.ops import linear
    from tinyrec.recurrences.lstm import lstm

    rng = np.random.default_rng(0)
    w_x, w_h, b = lecun_normal(rng, (D, 4 * H), D), lecun_normal(rng, (H, 4 * H), H), zeros((4 * H,))
    x, dh = Tensor(rng.standard_normal((B, T, D), np.float32), True), rng.standard_normal((B, T, H), np.float32)
    h_init, c_init = np.zeros((2, B, H), np.float32)

    def call() -> None:
        h, _, _ = lstm(linear(x, w_x, b), w_h, h_init, c_init)
        grad(h, [x, w_x, w_h, b], g=dh)

    return call


def torch_side(kind: str) -> Callable[[], object]:
    import torch

    from benchmarks.torch_lstm import LSTM

    layer = torch.nn.LSTM(D, H, batch_first=True) if kind == "compiled" else LSTM(D, H)
    x, dh = torch.randn(B, T, D).requires_grad_(), torch.randn(B, T, H)
    state = torch.zeros(1, B, H), torch.zeros(1, B, H)

    def call() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x, state)[0].backward(dh)

    return call


CASES = [
    Case(
        "lstm",
        {
            "tinyrec": tinyrec_side,
            "torch": partial(torch_side, "compiled"),
            "torch-unbind": partial(torch_side, "unbind"),
        },
        threads=1,
    )
]
