"""TTT-MLP (Sun et al. 2024, arXiv 2407.04620): the hidden state is an MLP of two layers that learns while it reads.

Equation numbers are those of docs/recurrences/ttt_mlp.md. All is as in ttt_linear.py, but for the inner model and so
its gradients. F = 4 d features lie between the layers.

    f(x) = x + LN(gelu(x w1 + b1) w2 + b2)                       (1)
    Z1 = k w1 + b1, X2 = gelu(Z1), Z2 = X2 w2 + b2               (2)
    G2 = dl / dZ2                                                (3)   as in TTT-Linear
    G1 = dl / dZ1 = (G2 w2^T) gelu'(Z1)                          (4)
    w1 moves against k^T G1, w2 against X2^T G2, the biases against the rows of G1 and G2

Each layer by itself is a linear map that moves, (6) to (8) of TTT-Linear, once with q, k, G1 and once with what they
have become:

    Y1 = (7) of q, w1 and A(q, k) G1                             (5)
    Y2 = (7) of gelu(Y1), w2 and A(gelu(Y1), X2) G2              (6)
    z = q + LN(Y2)                                               (7)
"""

from __future__ import annotations

from ..backend import get_xp
from ..ops.activation import GELU_CUBIC, GELU_SLOPE, gelu, sigmoid, sigmoid_of
from ..ops.inner_norm import inner_gradient, inner_gradient_vjp, inner_norm, inner_norm_vjp, naive_gradient, naive_norm
from ..ops.matmul import matmul
from ..ops.reduce import sum
from ..ops.shape import transpose
from ..tape import fused
from .inner_loop import after, after_vjp, before_vjp, by_the_tape, changes, changes_vjp, read, read_vjp, token_by_token

# --- one token after the other, in ops of the tape --------------------------------------------------------------------


def naive(q, k, v, lam, tau, gain, bias, w1, b1, w2, b2, gw1, gb1, gw2, gb2, *, at=0):
    """The definition, with the tape's inner gradient, as in ttt_linear.py. Slow; needs the tape and gives Tensors."""
    state = (w1, b1, w2, b2, gw1, gb1, gw2, gb2)
    return token_by_token(by_the_tape(loss), f, q, k, v, lam, tau, gain, bias, *state, at=at)


def primal(q, k, v, lam, tau, gain, bias, w1, b1, w2, b2, gw1, gb1, gw2, gb2, *, at=0):
    """The same with the inner gradients in closed form."""
    state = (w1, b1, w2, b2, gw1, gb1, gw2, gb2)
    return token_by_token(closed_form, f, q, k, v, lam, tau, gain, bias, *state, at=at)


def f(x, norm, w1, b1, w2, b2):
    """(1) for rows x (B, H, m, d); w1 (B, H, d, F), b1 (B, H, 1, F), w2 (B, H, F, d), b2 (B, H, 1, d)."""
    return x + naive_norm(matmul(gelu(matmul(x, w1) + b1), w2) + b2, *norm)


def loss(k, v, norm, *weights):
    """|f(k) - v|^2 / 2, summed over sequences and heads."""
    off = f(k, norm, *weights) - v
    return 0.5 * sum(off * off)


def closed_form(k, v, norm, w1, b1, w2, b2):
    """The gradients of the loss in w1, b1, w2, b2, (2) to (4)."""
    z1 = matmul(k, w1) + b1
    x2 = gelu(z1)
    g2 = naive_gradient(matmul(x2, w2) + b2, v - k, *norm)
    g1 = matmul(g2, transpose(w2)) * slope_ops(z1)  # (4)
    return matmul(transpose(k), g1), g1, matmul(transpose(x2), g2), g2


def slope_ops(z):
    """gelu'(z) in ops of the tape."""
    u = GELU_SLOPE * z * (1.0 + GELU_CUBIC * (z * z))
    p = sigmoid(u)
    return p + z * (p * (1.0 - p)) * (GELU_SLOPE * (1.0 + (3.0 * GELU_CUBIC) * (z * z)))


# --- a mini-batch at a time, with the backward by hand ----------------------------------------------------------------


@fused(naive)
def ttt_mlp(q, k, v, lam, tau, gain, bias, w1, b1, w2, b2, gw1, gb1, gw2, gb2, *, at=0, checkpoint=0):
    """z (B, T, H, d), and the state after it, in the order of the arguments.

    q, k, v (B, T, H, d), lam (B, T, H), tau (K,), gain, bias (H, d), at and checkpoint are those of `ttt_linear`. So
    are the two halves of the state: w1 (B, H, d, F), b1 (B, H, F), w2 (B, H, F, d), b2 (B, H, d), and the sums.

    Saves all that the backward needs, with F = 4 d for K tokens the weights and about 50 arrays like q.
    """
    state = (w1, b1, w2, b2, gw1, gb1, gw2, gb2)
    return read(segment, q, k, v, lam, tau, gain, bias, *state, at=at, checkpoint=checkpoint)


@ttt_mlp.vjp
def ttt_mlp_vjp(gs, *saved):
    return read_vjp(segment, segment_vjp, gs, *saved)


def segment(q, k, v, lam, tau, step, norm, weights, sums):
    """N mini-batches, or a part of one (N = 1); see inner_loop.read. In the loop is only what must wait for w1, w2."""
    xp, m, (w1, w2), (s1, s2) = get_xp(q), len(tau), weights, sums or (None, None)
    a, of_a = changes(q, k, lam, tau, step)
    target = v - k[..., :-1]
    out, kept = xp.empty_like(target), []
    for n in range(len(q)):
        z1 = k[n] @ w1
        x2, p = gelu_and_one(z1)  # (2)
        g2, of_g2 = inner_gradient.op.forward(x2 @ w2, target[n], *norm)  # (3)
        r1, slope = g2 @ w2[:, :, :-1].swapaxes(2, 3), inner_slope(z1, p)
        g1 = r1 * slope  # (4)
        change1 = a[n] @ g1
        y1 = q[n] @ w1
        y1 -= change1[:, :, :m]
        if s1 is not None:
            y1 -= tau * (q[n] @ s1)  # (5)
        xq, pq = gelu_and_one(y1)
        a2, of_a2 = changes(xq, x2, lam[n], tau, step)  # these rows have been through w1, so they are made here
        change2 = a2 @ g2
        xp.subtract(xq @ w2, change2[:, :, :m], out=out[n])
        if s2 is not None:
            out[n] -= tau * (xq @ s2)  # (6)
        kept.append((w1, w2, s1, s2, z1, x2, p, g2, of_g2, r1, slope, g1, y1, xq, pq, a2, of_a2))
        w1, s1 = after(w1, s1, change1[:, :, m:], step)
        w2, s2 = after(w2, s2, change2[:, :, m:], step)
    z, of_norm = inner_norm.op.forward(out, *norm)
    z += q[..., :-1]  # (7)
    return z, [w1, w2], None if s1 is None else [s1, s2], (q, k, tau, step, a, of_a, kept, of_norm)


def segment_vjp(dz, dweights, dsums, saved):
    q, k, tau, step, a, of_a, kept, of_norm = saved
    xp, m, (dw1, dw2), (ds1, ds2) = get_xp(dz), len(tau), dweights, dsums or (None, None)
    dout, *dnorm = inner_norm_vjp(dz, *of_norm)  # (8)
    dq, dk, dtarget, da = (xp.empty_like(x) for x in (dz, dz, dz, a))
    dlam, dtau, dstep = xp.empty_like(dz[..., :1]), xp.zeros_like(tau[:, 0]), 0.0
    for n in reversed(range(len(dz))):
        w1, w2, s1, s2, z1, x2, p, g2, of_g2, r1, slope, g1, y1, xq, pq, a2, of_a2 = kept[n]
        # (9): the second layer of the outputs
        dchange = xp.empty((*a2.shape[:3], dz.shape[4]), dz.dtype)
        xp.negative(dout[n], out=dchange[:, :, :m])
        ds2, dstep2 = after_vjp(dw2, ds2, s2, step, dchange[:, :, m:])
        dg2 = a2.swapaxes(2, 3) @ dchange
        dxq, dx2, dlam[n], dtau_a, dstep_a = changes_vjp(dchange @ g2.swapaxes(2, 3).copy(), *of_a2)
        w2_back = w2[:, :, :-1].swapaxes(2, 3).copy()
        dxq += dout[n] @ w2_back
        dw2 += xq.swapaxes(2, 3) @ dout[n]
        dtau += dtau_a
        dstep += dstep2 if step is None else dstep2 + dstep_a
        if s2 is not None:
            dxq_s, dtau_s, ds_s = before_vjp(dout[n], xq, s2, tau)
            dxq += dxq_s
            dtau += dtau_s
            ds2 = ds2 + ds_s
        # (10): the first
        dy1 = gelu_slope(y1, pq)
        dy1 *= dxq
        dchange = xp.empty((*a.shape[1:4], y1.shape[3]), dz.dtype)
        xp.negative(dy1, out=dchange[:, :, :m])
        ds1, dstep1 = after_vjp(dw1, ds1, s1, step, dchange[:, :, m:])
        dg1 = a[n].swapaxes(2, 3) @ dchange
        xp.matmul(dchange, g1.swapaxes(2, 3).copy(), out=da[n])
        w1_back = w1[:, :, :-1].swapaxes(2, 3).copy()
        xp.matmul(dy1, w1_back, out=dq[n])
        dw1 += q[n].swapaxes(2, 3) @ dy1
        dstep += dstep1
        if s1 is not None:
            dq_s, dtau_s, ds_s = before_vjp(dy1, q[n], s1, tau)
            dq[n] += dq_s
            dtau += dtau_s
            ds1 = ds1 + ds_s
        # (11): the backward inside has a backward too
        dr1 = dg1 * slope
        dz1 = inner_curvature(z1, p)
        dz1 *= r1
        dz1 *= dg1
        dg2 += dr1 @ w2[:, :, :-1]
        dw2[:, :, :-1] += dr1.swapaxes(2, 3) @ g2
        # (12): the gradient of G2 is complete now, so on to the layers that learn
        dz2, dtarget[n], *dnorm_n = inner_gradient_vjp(dg2, *of_g2)
        dnorm = [x + y for x, y in zip(dnorm, dnorm_n, strict=True)]
        dx2 += dz2 @ w2_back
        dw2 += x2.swapaxes(2, 3) @ dz2
        dx2 *= gelu_slope(z1, p)
        dz1 += dx2
        xp.matmul(dz1, w1_back, out=dk[n])
        dw1 += k[n].swapaxes(2, 3) @ dz1
    dq_a, dk_a, dlam_a, dtau_a, dstep_a = changes_vjp(da, *of_a)
    dq += dq_a
    dq += dz
    dk += dk_a
    dk -= dtarget
    dlam += dlam_a
    dstep = dstep if step is None else dstep + dstep_a
    return dq, dk, dtarget, dlam, dtau + dtau_a, dstep, dnorm, [dw1, dw2], None if ds1 is None else [ds1, ds2]


# --- GELU and two derivatives, in place; u = 2c (z + a z^3), p = sigmoid(u), gelu(z) = z p ----------------------------


def gelu_and_one(z) -> tuple:
    """gelu(z), after it the feature 1, and p."""
    xp = get_xp(z)
    u = z * z
    u *= GELU_CUBIC
    u += 1.0
    u *= z
    u *= GELU_SLOPE
    p = sigmoid_of(u)
    y = xp.empty((*z.shape[:-1], z.shape[-1] + 1), z.dtype)
    xp.multiply(z, p, out=y[..., :-1])
    y[..., -1] = 1.0
    return y, p


def gelu_slope(z, p):
    """p + z p', p' = p (1 - p) u'."""
    y = z * z
    y *= 3.0 * GELU_CUBIC * GELU_SLOPE
    y += GELU_SLOPE
    y *= z
    y *= p
    y *= 1.0 - p
    y += p
    return y


def inner_slope(z, p):
    """gelu' as the inner backward uses it. The published code rounds the constants of this one; we do not."""
    return gelu_slope(z, p)


def inner_curvature(z, p):
    """(13), the derivative of inner_slope: 2 p' + z p'', p'' = p (1 - p) ((1 - 2 p) u'^2 + u'')."""
    u1 = z * z
    u1 *= 3.0 * GELU_CUBIC * GELU_SLOPE
    u1 += GELU_SLOPE
    rest = 1.0 - p
    bend = rest - p
    rest *= p  # p (1 - p) is 0 far from 0, and comes first: the powers of z there would overflow
    p1 = rest * u1
    y = u1
    y *= p1
    y *= bend
    rest *= z
    rest *= 6.0 * GELU_CUBIC * GELU_SLOPE
    y += rest
    y *= z
    p1 *= 2.0
    y += p1
    return y
