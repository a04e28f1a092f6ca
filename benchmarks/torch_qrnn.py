"""QRNN pooling in plain eager PyTorch: gates for all t at once, then a loop over time in its fair form, unbound."""

import torch
from torch import Tensor


def pool(z: Tensor, f: Tensor, i: Tensor | None, c: Tensor) -> tuple[Tensor, Tensor]:
    """z, f, i (B, T, C), c (B, C) -> all cells (B, T, C), the last one (B, C)."""
    f = torch.sigmoid(f)
    b = (1 - f if i is None else torch.sigmoid(i)) * torch.tanh(z)
    cells = []
    for f_t, b_t in zip(f.unbind(1), b.unbind(1), strict=True):
        c = f_t * c + b_t
        cells.append(c)
    return torch.stack(cells, dim=1), c
