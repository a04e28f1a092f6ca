"""The selective scan of Mamba in plain eager PyTorch, three ways; none of them is a fused kernel.

B batch, T time, D channels, N states. u, dt (B, T, D), a (D, N), b, c (B, T, N), d (D,), h (B, D, N) -> y, last h.
"""

import torch
from torch import Tensor


def scan_indexed(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """As the path without kernels of the transformers library has it: all decays first, indexed at every step. The
    backward of an index fills an array of all steps with zeros, so it costs O(T^2)."""
    decay, x = discretise(u, dt, a, b)
    ys = []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + x[:, t]
        ys.append(torch.matmul(h, c[:, t].unsqueeze(-1))[..., 0])
    return torch.stack(ys, dim=1) + d * u, h


def scan_unbind(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The fair form: unbound over time, so that the backward is linear in T, and one product for all of y."""
    decay, x = discretise(u, dt, a, b)
    hs = []
    for decay_t, x_t in zip(decay.unbind(1), x.unbind(1), strict=True):
        h = decay_t * h + x_t
        hs.append(h)
    return torch.matmul(torch.stack(hs, dim=1), c[..., None])[..., 0] + d * u, h


def scan_steps(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The other fair form: every step makes its own decay, so that no array of all decays is ever built."""
    ys = []
    for u_t, dt_t, b_t, c_t in zip(u.unbind(1), dt.unbind(1), b.unbind(1), c.unbind(1), strict=True):
        h = torch.exp(dt_t[..., None] * a) * h + (dt_t * u_t)[..., None] * b_t[:, None]
        ys.append(torch.matmul(h, c_t[..., None])[..., 0])
    return torch.stack(ys, dim=1) + d * u, h


def discretise(u: Tensor, dt: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and input of all steps, (B, T, D, N) each."""
    return torch.exp(dt[..., None] * a), (dt * u)[..., None] * b[:, :, None]


SCANS = {"indexed": scan_indexed, "unbind": scan_unbind, "steps": scan_steps}
