"""The WKV recurrence of RWKV-4 in plain eager PyTorch, twice: as published, and fused by hand.

B batch, T time, C width; k, v, y (B, T, C), time_decay and time_first (C,).

    y_t = (sum_{i<t} e^{(t-1-i) lam + k_i} v_i + e^{u + k_t} v_t) / (sum_{i<t} e^{(t-1-i) lam + k_i} + e^{u + k_t})

with lam = -e^time_decay and u = time_first: an average of the values so far, older ones fading.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def shift(x: Tensor, back: bool = False) -> Tensor:
    """x (..., T, C) one step later, or one earlier if `back`; zeros fill the gap."""
    return F.pad(x, (0, 0, -1, 1) if back else (0, 0, 1, -1))


def wkv_step(
    lam: Tensor, u: Tensor, k: Tensor, v: Tensor, p: Tensor, q: Tensor, o: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step as published: the sums over the past are p e^o and q e^o; the gauge o keeps every exponent <= 0."""
    top = torch.maximum(o, u + k)
    e1, e2 = torch.exp(o - top), torch.exp(u + k - top)
    y = (e1 * p + e2 * v) / (e1 * q + e2)
    top = torch.maximum(o + lam, k)
    e1, e2 = torch.exp(o + lam - top), torch.exp(k - top)
    return y, e1 * p + e2 * v, e1 * q + e2, top


def wkv_loop(time_decay: Tensor, time_first: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The published recurrence, one step after the other under autograd.

    Steps come from `unbind(1)`, the fair form: the gradient of `k[:, t]` would be a (B, T, C) array of zeros with one
    row set, and the backward O(T^2).
    """
    lam = -torch.exp(time_decay)
    p = q = torch.zeros_like(k[:, 0])  # (B, C)
    o = torch.full_like(p, -1e38)
    ys = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        y, p, q, o = wkv_step(lam, time_first, k_t, v_t, p, q, o)
        ys.append(y)
    return torch.stack(ys, dim=1)


class WKV(torch.autograd.Function):
    """The same, fused by hand: what does not depend on the step before is done for all steps at once.

    y does not depend on the gauge, so it may be any number that keeps the exponents in bounds, and is a constant in
    the backward. With m_t = max(m_{t-1} + lam, u + k_t) all factors are known before the sums are:

        e1_t = e^{m_{t-1} + lam - m_t},  e2_t = e^{u + k_t - m_t},  x_t = (e2_t v_t, e2_t),  c = e^{-u - lam}
        e_t = e1_t s_{t-1},  (num_t, den_t) = c e_t + x_t,  y_t = num_t / den_t,  s_t = e_t + x_t

    Three passes over time are left, of one or two small operations a step: m and s forward, de backward.
    Valid while c is finite: up to about time_decay = 4 in float32, where training starts at 3 at most.
    """

    @staticmethod
    def forward(ctx, time_decay: Tensor, time_first: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lam = -torch.exp(time_decay)
        c = torch.exp(-time_first - lam)
        e2 = k + time_first
        m = e2.clone()
        before, *later = m.unbind(1)  # (B, C)
        for m_t in later:
            before = torch.maximum(m_t, before + lam, out=m_t)
        e1 = shift(m).add_(lam).sub_(m)
        e1[:, 0] = -torch.inf  # nothing came before
        e1.exp_()
        e2.sub_(m).exp_()
        x = torch.stack([e2 * v, e2])  # (2, B, T, C)
        s = x.clone()
        before, *later = s.unbind(2)  # (2, B, C)
        for s_t, e1_t in zip(later, e1.unbind(1)[1:], strict=True):
            before = s_t.addcmul_(e1_t, before)
        e = shift(s).mul_(e1)
        num, den = x.addcmul_(e, c)
        y = num.div_(den)
        ctx.save_for_backward(lam, c, v, e1, e2, e, y, den)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, ...]:
        lam, c, v, e1, e2, e, y, den = ctx.saved_tensors
        dnum = dy / den
        dx = torch.stack([dnum, -dnum * y])  # (2, B, T, C): by way of y, so far; de and ds alike
        de = dx * c
        after, *earlier = reversed(de.unbind(2))  # ds_{t-1} = e1_t de_t
        for de_t, e1_after in zip(earlier, reversed(e1.unbind(1)[1:]), strict=True):
            after = de_t.addcmul_(e1_after, after)
        ds = shift(de.mul_(e1), back=True)
        du = torch.addcmul(dx[1], dx[0], v).mul_(e2)
        dx += ds
        dk = torch.addcmul(dx[1], dx[0], v).mul_(e2)
        dv = dx[0].mul_(e2)
        dlam = ds.mul_(e).sum((0, 1, 2))
        return lam * dlam, du.sum((0, 1)), dk, dv


WKVS = {"loop": wkv_loop, "fused": WKV.apply}
