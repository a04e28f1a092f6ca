"""PyTorch's forms of the recurrences, from the arguments of our ops: what benchmarks/gpu.py measures them beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Form = Callable[[], tuple["Tensor", ...]]


def scan(leaves: list) -> Form:
    from benchmarks.torch_rglru import SCANS

    a, b, h = leaves  # time first, where our scan has it
    return lambda: SCANS["unbind"](b.swapaxes(0, 1), a.swapaxes(0, 1), h)


def rglru(leaves: list) -> Form:
    import torch

    from benchmarks.torch_rglru import SCANS, decay_and_input

    u, zr, zi, lam, h = leaves

    def call() -> tuple:
        a, x = decay_and_input(u, torch.sigmoid(zi), torch.sigmoid(zr), lam)
        return SCANS["unbind"](x, a, h)

    return call


def wkv(leaves: list) -> Form:
    from benchmarks.torch_wkv import WKVS

    k, v, time_decay, time_first, *_ = leaves  # from an empty state
    return lambda: (WKVS["fused"](time_decay, time_first, k, v),)


def selective_scan(leaves: list) -> Form:
    from benchmarks.torch_selective_scan import SCANS

    return lambda: SCANS["unbind"](*leaves)


def qrnn(leaves: list) -> Form:
    from benchmarks.torch_qrnn import pool

    return lambda: pool(*leaves)


def lstm(leaves: list) -> Form:
    """cuDNN's, with inputs of width 1: the product with them costs nothing, as in our op, which is handed it."""
    import torch

    z, _, h, c = leaves
    layer = torch.nn.LSTM(1, h.shape[1], batch_first=True, device=z.device)
    x = z[..., :1].detach().contiguous()
    return lambda: layer(x, (h[None], c[None]))


def ttt_linear(leaves: list) -> Form:
    from benchmarks.torch_ttt_inner import LOOPS, step_sizes

    q, k, v, lam, tau, gain, bias, w, b, *_ = leaves

    def by_mini_batch(x: Any) -> Any:  # (B, T, H, ...) -> (B, H, N, K, ...)
        return x.unflatten(1, (-1, len(tau))).movedim(3, 1)

    def call() -> tuple:
        eta = step_sizes(by_mini_batch(lam), tau)
        views = (by_mini_batch(x) for x in (q, k, v))
        return LOOPS["linear", "hoisted"](*views, eta, gain[:, None], bias[:, None], w, b[:, :, None])

    return call


FORMS: dict[str, Callable[[list], Form]] = {
    form.__name__: form for form in (scan, rglru, wkv, selective_scan, qrnn, lstm, ttt_linear)
}
