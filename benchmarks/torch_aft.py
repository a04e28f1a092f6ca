"""AFT's weighted means in plain eager PyTorch, in the forms that one would write; without the gate sigmoid(q).

B batch, T time, C channels, s window. All start from an empty past.
"""

import math

import torch
from torch import Tensor


def full(k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Two matrix products, of e^(w - largest of a query) and e^(k - largest of a channel). k, v (B, T, C), w (T, T).

    Fails, as float32, where the keys of a channel lie 88 or more apart; tinyrec looks before it takes this form.
    """
    w = w.masked_fill(torch.ones_like(w, dtype=torch.bool).triu(1), -math.inf)
    a = torch.exp(w - w.amax(dim=1, keepdim=True))
    e = torch.exp(k - k.amax(dim=1, keepdim=True))
    return (a @ (e * v)) / (a @ e)


def local_dense(k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """`full` with the matrix (T, T) of all biases, 0 beyond the window; w (T, s). O(T^2 C), in few calls."""
    time, window = w.shape
    back = torch.arange(time)[:, None] - torch.arange(time)
    near = w.gather(1, back.clamp(0, window - 1))
    return full(k, v, torch.where((back >= 0) & (back < window), near, 0.0))


def local_shifts(k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Running sums, s steps late, and s shifted products for the window; w (T, s). O(T s C)."""
    time, window = w.shape
    e = torch.exp(k - k.amax(dim=1, keepdim=True))
    x = torch.cat([e * v, e], dim=2)
    top = w.amax(dim=1).clamp(min=0.0)
    weights = torch.exp(w - top[:, None])
    late = x.cumsum(dim=1)[:, : max(0, time - window)]
    sums = torch.cat([torch.zeros_like(x[:, : min(window, time)]), late], dim=1) * torch.exp(-top)[:, None]
    for j in range(min(window, time)):
        near = x[:, : time - j] * weights[j:, j, None]
        sums = sums + torch.cat([torch.zeros_like(x[:, :j]), near], dim=1)
    num, den = sums.chunk(2, dim=2)
    return num / den


def simple_cumsum(k: Tensor, v: Tensor) -> Tensor:
    """Two running sums under the largest k of all times; fails like `full` where k rises by 88 or more."""
    e = torch.exp(k - k.amax(dim=1, keepdim=True))
    return (e * v).cumsum(dim=1) / e.cumsum(dim=1)


def simple_unbind(k: Tensor, v: Tensor) -> Tensor:
    """A loop over time under the running maximum: right for any k."""
    p, q, o = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], -1e38)
    ns = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        top = torch.maximum(o, k_t.detach())  # it cancels in n: no gradient
        keep, new = torch.exp(o - top), torch.exp(k_t - top)
        p, q, o = keep * p + new * v_t, keep * q + new, top
        ns.append(p / q)
    return torch.stack(ns, dim=1)
