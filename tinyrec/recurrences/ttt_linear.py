"""TTT-Linear (Sun et al. 2024, arXiv 2407.04620): the hidden state is a linear model that learns while it reads.

Equation numbers are those of docs/recurrences/ttt_linear.md. Each token shows the inner model a training view k, a
label view v and a test view q. Its weights w, b are the state; a step of gradient descent on (2) is the recurrence.

    f(x) = x + LN(x w + b)                                       (1)   LN has a gain and a bias, which do not move
    l_j = |f(k_j) - v_j|^2 / 2                                   (2)   at the weights before the mini-batch
    G_j = dl_j / d(k_j w + b)                                    (3)   in closed form: ops/inner_norm.py
    w_i = w - tau_i sum_{j <= i} lam_j k_j^T G_j                 (4)   b_i = b - tau_i sum_{j <= i} lam_j G_j
    z_i = q_i + LN(q_i w_i + b_i)                                (5)   the output; after K tokens w_{K-1} becomes w

The K tokens of a mini-batch take their gradients at the same weights, so they can be read together, and no w_i is ever
written down. With a last feature 1 in q and k, and b as the last row of w, all that the rows of G change is A G:

    A = | tau_i lam_j q_i k_j^T, 0 where j > i |     m rows      (6)   like causal attention
        | tau_{K-1} (lam_j k_j)^T              |     d + 1 rows        1, not tau_{K-1}, if no mini-batch ends
    Z = q w - tau (q gw) - (upper rows of A G)                   (7)   of which row i is q_i w_i + b_i
    w <- w - tau_{K-1} gw - (lower rows), or gw <- gw + (them)   (8)  gw: the sum of (4) from before these m tokens
"""

from __future__ import annotations

from ..backend import get_xp
from ..cuda import ttt_linear as kernels
from ..cuda.switch import kernels_wanted
from ..ops.inner_norm import inner_gradient, inner_gradient_vjp, inner_norm, inner_norm_vjp, naive_gradient, naive_norm
from ..ops.matmul import matmul
from ..ops.reduce import sum
from ..ops.shape import transpose
from ..tape import fused
from .inner_loop import (
    after,
    after_vjp,
    before_vjp,
    by_the_tape,
    changes,
    changes_vjp,
    check,
    read,
    read_vjp,
    token_by_token,
)

# --- one token after the other, in ops of the tape --------------------------------------------------------------------


def naive(q, k, v, lam, tau, gain, bias, w, b, gw, gb, *, at=0):
    """The definition; shapes as in `ttt_linear`. The inner gradient is the tape's own, of the loss as it is written,
    and the outer gradient goes through it: a gradient of a gradient. Slow; needs the tape and gives Tensors."""
    return token_by_token(by_the_tape(loss), f, q, k, v, lam, tau, gain, bias, w, b, gw, gb, at=at)


def primal(q, k, v, lam, tau, gain, bias, w, b, gw, gb, *, at=0):
    """The same with the inner gradient in closed form."""
    return token_by_token(closed_form, f, q, k, v, lam, tau, gain, bias, w, b, gw, gb, at=at)


def f(x, norm, w, b):
    """(1) for rows x (B, H, m, d); w (B, H, d, d), b (B, H, 1, d); norm: gain and bias (H, d)."""
    return x + naive_norm(matmul(x, w) + b, *norm)


def loss(k, v, norm, w, b):
    """(2), summed over sequences and heads: they do not meet, so each gets its own gradient."""
    off = f(k, norm, w, b) - v
    return 0.5 * sum(off * off)


def closed_form(k, v, norm, w, b):
    """The gradients of (2) in w and b: k^T G and G, with G of (3)."""
    g = naive_gradient(matmul(k, w) + b, v - k, *norm)
    return matmul(transpose(k), g), g


# --- a mini-batch at a time, with the backward by hand ----------------------------------------------------------------


@fused(naive)
def ttt_linear(q, k, v, lam, tau, gain, bias, w, b, gw, gb, *, at=0, checkpoint=0):
    """z (B, T, H, d), and the state after it: w, b, gw, gb.

    q, k, v (B, T, H, d), lam (B, T, H) the rate of each token, tau (K,) that of each place in a mini-batch; gain, bias
    (H, d) of the LayerNorm. w (B, H, d, d), b (B, H, d): the weights at the start of the current mini-batch; gw, gb
    like them: the sums of (4) in it, 0 at its start; at: how many of its tokens have been read, 0 to K - 1. Afterwards
    that is (at + T) % K.

    Saves all that the backward needs, for K tokens the weights and about ten arrays like q. With checkpoint = n it is
    the weights before every n mini-batches, from which the backward reads them again.
    """
    if kernels_wanted(get_xp(q), "ttt_linear"):
        check(q, k, v, lam, tau, gain, bias, (w, b, gw, gb), at, checkpoint)
        return kernels.forward(q, k, v, lam, tau, gain, bias, w, b, gw, gb, at=at, checkpoint=checkpoint)
    return read(segment, q, k, v, lam, tau, gain, bias, w, b, gw, gb, at=at, checkpoint=checkpoint)


@ttt_linear.vjp
def ttt_linear_vjp(gs, *saved):
    if isinstance(saved[7], tuple):  # what the kernel kept; a list of segments otherwise
        return kernels.backward(gs, *saved)
    return read_vjp(segment, segment_vjp, gs, *saved)


def segment(q, k, v, lam, tau, step, norm, weights, sums):
    """N mini-batches, or a part of one (N = 1); see inner_loop.read. In the loop is only what must wait for w."""
    xp, m, (w,), s = get_xp(q), len(tau), weights, sums and sums[0]
    a, of_a = changes(q, k, lam, tau, step)
    target = v - k[..., :-1]
    out, kept = xp.empty_like(target), []
    for n in range(len(q)):
        g, of_g = inner_gradient.op.forward(k[n] @ w, target[n], *norm)  # (3)
        kept.append((w, s, g, of_g))
        change = a[n] @ g
        xp.subtract(q[n] @ w, change[:, :, :m], out=out[n])
        if s is not None:
            out[n] -= tau * (q[n] @ s)  # (7)
        w, s = after(w, s, change[:, :, m:], step)
    z, of_norm = inner_norm.op.forward(out, *norm)
    z += q[..., :-1]  # (5)
    return z, [w], None if s is None else [s], (q, k, tau, step, a, of_a, kept, of_norm)


def segment_vjp(dz, dweights, dsums, saved):
    q, k, tau, step, a, of_a, kept, of_norm = saved
    xp, m, (dw,), ds = get_xp(dz), len(tau), dweights, dsums and dsums[0]
    dout, *dnorm = inner_norm_vjp(dz, *of_norm)  # (9)
    dq, dk, dtarget, da = (xp.empty_like(x) for x in (dz, dz, dz, a))
    dchange = xp.empty((*dz.shape[:3], a.shape[3], dz.shape[4]), dz.dtype)
    xp.negative(dout, out=dchange[:, :, :, :m])
    dtau, dstep = xp.zeros_like(tau[:, 0]), 0.0
    for n in reversed(range(len(dz))):
        w, s, g, of_g = kept[n]
        ds, dstep_n = after_vjp(dw, ds, s, step, dchange[n, :, :, m:])  # (10)
        dstep += dstep_n
        dg = a[n].swapaxes(2, 3) @ dchange[n]  # (11)
        xp.matmul(dchange[n], g.swapaxes(2, 3).copy(), out=da[n])  # a product with a contiguous matrix is worth a copy
        dinner, dtarget[n], *dnorm_n = inner_gradient_vjp(dg, *of_g)
        dnorm = [x + y for x, y in zip(dnorm, dnorm_n, strict=True)]
        w_back = w[:, :, :-1].swapaxes(2, 3).copy()  # (13)
        xp.matmul(dout[n], w_back, out=dq[n])
        xp.matmul(dinner, w_back, out=dk[n])
        dw += q[n].swapaxes(2, 3) @ dout[n]
        dw += k[n].swapaxes(2, 3) @ dinner
        if s is not None:
            dq_s, dtau_s, ds_s = before_vjp(dout[n], q[n], s, tau)
            dq[n] += dq_s
            dtau += dtau_s
            ds = ds + ds_s
    dq_a, dk_a, dlam, dtau_a, dstep_a = changes_vjp(da, *of_a)  # (12)
    dq += dq_a
    dq += dz
    dk += dk_a
    dk -= dtarget
    dstep = dstep if step is None else dstep + dstep_a
    return dq, dk, dtarget, dlam, dtau + dtau_a, dstep, dnorm, [dw], None if ds is None else [ds]
