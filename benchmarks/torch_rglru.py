"""The RG-LRU and its convolution in plain eager PyTorch, as the official Griffin modules compute them.

B batch, T time, E width of the recurrence, n gate blocks of side i = j = E / n.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONV_WIDTH = 4


class BlockDiagonalLinear(nn.Module):
    def __init__(self, width: int, blocks: int):
        super().__init__()
        side = width // blocks
        self.w = nn.Parameter(torch.randn(blocks, side, side) * side**-0.5)
        self.b = nn.Parameter(torch.zeros(blocks, side))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, E) -> (B, T, E)
        x = x.unflatten(-1, self.b.shape)
        return (torch.einsum("...ni,nij->...nj", x, self.w) + self.b).flatten(-2)


class Conv1D(nn.Module):
    """Causal, one filter a channel, as a sum of shifted products; stops at the start of a document."""

    def __init__(self, width: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(CONV_WIDTH, width) * 0.05)
        self.b = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, positions: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        length = x.shape[1]
        past = 0 if state is None else CONV_WIDTH - 1
        if state is not None:
            x = torch.cat([state, x], dim=1)
        inside = (positions != 0).to(x.dtype)
        out = 0.0
        for shift in range(min(CONV_WIDTH, past + length)):
            start, stop = max(past - shift, 0), past + length - shift
            window = x[:, start:stop]
            if state is None:
                mask = torch.ones(window.shape[:2], dtype=x.dtype)
                for ahead in range(1, shift + 1):
                    mask = mask * inside[:, start + ahead : stop + ahead]
                window = window * mask[..., None]
            window = torch.cat([window.new_zeros(len(x), length - window.shape[1], x.shape[2]), window], dim=1)
            out = out + window * self.w[CONV_WIDTH - 1 - shift]
        last = x[:, 1 - CONV_WIDTH :]
        missing = CONV_WIDTH - 1 - last.shape[1]
        return out + self.b, torch.cat([last.new_zeros(len(x), missing, x.shape[2]), last], dim=1)


class SqrtBoundDerivative(torch.autograd.Function):
    """sqrt(x) whose derivative is held below 1000."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sqrt(x)

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g / torch.sqrt(torch.clip(4.0 * x, min=1000.0**-2))


def scan_official(x: Tensor, a: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + x_t the official way, indexing at every step; x, a (B, T, E), h (B, E)."""
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        h = a[:, t].type(torch.float32) * h + x[:, t].type(torch.float32)
        y[:, t] = h.type(x.dtype)
    return y, h


def scan_unbind(x: Tensor, a: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The same recurrence without O(T^2) work in the backward."""
    hs = []
    for a_t, x_t in zip(a.unbind(1), x.unbind(1), strict=True):
        h = a_t * h + x_t
        hs.append(h)
    return torch.stack(hs, dim=1), h


SCANS = {"official": scan_official, "unbind": scan_unbind}


def decay_and_input(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """a and b of h_t = a_t h_{t-1} + b_t, from x and the gates, after their sigmoid (B, T, E); reset (B, T, 1)."""
    log_a = -8.0 * gate_a * F.softplus(a_param)
    a = torch.exp(log_a)
    multiplier = SqrtBoundDerivative.apply(1 - torch.exp(2 * log_a))
    if reset is None:
        return a, x * gate_x * multiplier
    return a * ~reset, x * gate_x * (reset + ~reset * multiplier)


class RGLRU(nn.Module):
    def __init__(self, width: int, blocks: int, scan: str):
        super().__init__()
        radius = torch.empty(width).uniform_(0.9**2, 0.999**2).sqrt()
        self.a_param = nn.Parameter(torch.log(1 / radius - 1))
        self.input_gate = BlockDiagonalLinear(width, blocks)
        self.a_gate = BlockDiagonalLinear(width, blocks)
        self.scan = SCANS[scan]

    def forward(self, x: Tensor, positions: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        reset = (positions == 0)[..., None]  # (B, T, 1)
        gate_x = torch.sigmoid(self.input_gate(x))
        gate_a = torch.sigmoid(self.a_gate(x))
        a, x = decay_and_input(x, gate_x, gate_a, self.a_param, reset)
        if x.shape[1] == 1 and h is not None:
            y = a * h[:, None] + x
            return y, y[:, -1]
        return self.scan(x, a, torch.zeros_like(x[:, 0]) if h is None else h)
