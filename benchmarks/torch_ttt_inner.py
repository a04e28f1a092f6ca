"""The inner loop of TTT-Linear and TTT-MLP in plain eager PyTorch, and one token of it: no kernel of its own.

The weights of a small model f are the state. All tokens of a mini-batch take their gradients at the weights with which
it starts, which makes them one product of matrices (the dual form). Two forms, the same numbers:

- `ttt_linear` and `ttt_mlp`, operation for operation as the official ttt-lm-pytorch: everything inside of the loop over
  mini-batches, LayerNorm and its gradient in elementwise operations. One thing differs: mini-batches come from `unbind`
  and leave by `stack`. The official loop indexes arrays and fills one; since the gradient of each such slice is an
  array of zeros with one slice set, its backward costs O(N^2).
- `ttt_linear_hoisted` and `ttt_mlp_hoisted`, the fastest eager form found: what does not depend on the state is
  computed before the loop, for all mini-batches at once; k and q share one product with the weights, and all that is
  taken from the first weights is another one; LayerNorm, gelu and their gradients are PyTorch's own fused operations.

`linear_token` and `mlp_token` are the primal form of one token, which decoding needs.

B batch, H heads, N mini-batches, K tokens in each, D width of a head, F = 4 D width inside of the MLP.
q, k, v (B, H, N, K, D), eta (B, H, N, K, K), gain and bias (H, 1, D); w (B, H, D, D), b (B, H, 1, D), or, for the MLP,
w1 (B, H, D, F), b1 (B, H, 1, F), w2 (B, H, F, D), b2 (B, H, 1, D) -> z (B, H, N, K, D) and the last weights.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6  # of the LayerNorm inside of f
Weights = tuple[Tensor, ...]  # w, b or w1, b1, w2, b2


def step_sizes(lam: Tensor, tau: Tensor) -> Tensor:
    """lam (B, H, N, K) of the token that makes a gradient, tau (K,) of the one that reads -> eta (B, H, N, K, K)."""
    return tau[:, None] * lam[..., None, :]


def normalised(z: Tensor) -> tuple[Tensor, Tensor]:
    """LayerNorm without gain and bias, and the deviation that it divides by."""
    centred = z - z.mean(-1, keepdim=True)
    deviation = torch.sqrt(z.var(-1, keepdim=True, unbiased=False) + EPS)
    return centred / deviation, deviation


def layer_norm(z: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return gain * normalised(z)[0] + bias


def loss_gradient(z: Tensor, target: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """The gradient by z of |LayerNorm(z) - target|^2 / 2."""
    h, deviation = normalised(z)
    g = gain * (gain * h + bias - target)
    width = z.shape[-1]
    inner = width * g - g.sum(-1, keepdim=True) - h * (g * h).sum(-1, keepdim=True)
    return inner / (width * deviation)


def gelu(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


def gelu_slope(z: Tensor) -> Tensor:
    """The derivative of gelu, with the rounded constants of the official code."""
    t = torch.tanh(0.79788456 * z * (1 + 0.044715 * z * z))
    return 0.5 * z * ((1 - t * t) * (0.79788456 + 0.1070322243 * z * z)) + 0.5 * (1 + t)


def mini_batches(*arrays: Tensor) -> zip:
    """One after the other, each contiguous: that is a tenth faster."""
    return zip(*(x.movedim(2, 0).contiguous().unbind() for x in arrays), strict=True)


def ttt_linear(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, gain: Tensor, bias: Tensor, w: Tensor, b: Tensor
) -> tuple[Tensor, ...]:
    out = []
    for q_n, k_n, v_n, eta_n in mini_batches(q, k, v, eta):
        g = loss_gradient(k_n @ w + b, v_n - k_n, gain, bias)  # (B, H, K, D)
        scores = torch.tril(q_n @ k_n.mT)  # (B, H, K, K)
        b_bar = b - torch.tril(eta_n) @ g
        z_bar = q_n @ w - (eta_n * scores) @ g + b_bar
        last = eta_n[:, :, -1, :, None]  # (B, H, K, 1)
        w = w - (last * k_n).mT @ g
        b = b - (last * g).sum(2, keepdim=True)
        out.append(q_n + layer_norm(z_bar, gain, bias))
    return torch.stack(out, dim=2), w, b


def ttt_mlp(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, gain: Tensor, bias: Tensor,
    w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
) -> tuple[Tensor, ...]:
    out = []
    for q_n, k_n, v_n, eta_n in mini_batches(q, k, v, eta):
        z1 = k_n @ w1 + b1  # (B, H, K, F)
        x2 = gelu(z1)
        g2 = loss_gradient(x2 @ w2 + b2, v_n - k_n, gain, bias)  # (B, H, K, D)
        g1 = g2 @ w2.mT * gelu_slope(z1)
        scores = torch.tril(q_n @ k_n.mT)  # (B, H, K, K)
        b1_bar = b1 - torch.tril(eta_n) @ g1
        x2_bar = gelu(q_n @ w1 - (eta_n * scores) @ g1 + b1_bar)
        scores = torch.tril(x2_bar @ x2.mT)
        b2_bar = b2 - torch.tril(eta_n) @ g2
        z2_bar = x2_bar @ w2 - (eta_n * scores) @ g2 + b2_bar
        last = eta_n[:, :, -1, :, None]  # (B, H, K, 1)
        w1 = w1 - (last * k_n).mT @ g1
        b1 = b1 - (last * g1).sum(2, keepdim=True)
        w2 = w2 - (last * x2).mT @ g2
        b2 = b2 - (last * g2).sum(2, keepdim=True)
        out.append(q_n + layer_norm(z2_bar, gain, bias))
    return torch.stack(out, dim=2), w1, b1, w2, b2


def fused_layer_norm(z: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(bias, F.layer_norm(z, z.shape[-1:], eps=EPS), gain)


def fused_loss_gradient(z: Tensor, target: Tensor, gain: Tensor) -> Tensor:
    """`loss_gradient`, given target less bias, by the backward of LayerNorm, which has a derivative itself."""
    h, mean, inverse = torch.ops.aten.native_layer_norm(z, z.shape[-1:], None, None, EPS)
    g = gain * (gain * h - target)
    backward = torch.ops.aten.native_layer_norm_backward
    return backward(g, z, z.shape[-1:], mean, inverse, None, None, [True, False, False])[0]


def hoisted(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, bias: Tensor) -> zip:
    """All that is known before the loop, by mini-batch: targets (B, H, K, D) less the bias, k above q (B, H, 2 K, D),
    eta, and (B, H, K + D + 1, K), which times the gradients is what they change in outputs, weights and biases."""
    eta = torch.tril(eta)
    last = eta[..., -1:, :]
    change = torch.cat([eta * (q @ k.mT + 1), last * k.mT, last], dim=3)
    arrays = v - k - bias[:, None], torch.cat([k, q], dim=3), eta, change
    return zip(*(x.unbind(2) for x in arrays), strict=True)


def ttt_linear_hoisted(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, gain: Tensor, bias: Tensor, w: Tensor, b: Tensor
) -> tuple[Tensor, ...]:
    tokens, width, z_bars = *q.shape[3:], []
    for target_n, kq_n, _, change_n in hoisted(q, k, v, eta, bias):
        z, z_bar = (kq_n @ w + b).split(tokens, dim=2)
        g = fused_loss_gradient(z, target_n, gain)
        dz, dw, db = (change_n @ g).split([tokens, width, 1], dim=2)
        w, b = w - dw, b - db
        z_bars.append(z_bar - dz)
    return q + fused_layer_norm(torch.stack(z_bars, dim=2), gain[:, None], bias[:, None]), w, b


def ttt_mlp_hoisted(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, gain: Tensor, bias: Tensor,
    w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
) -> tuple[Tensor, ...]:
    tokens, width, z_bars = *q.shape[3:], []
    for target_n, kq_n, eta_n, change_n in hoisted(q, k, v, eta, bias):
        z1, z1_bar = (kq_n @ w1 + b1).split(tokens, dim=2)
        x2 = gelu(z1)
        g2 = fused_loss_gradient(x2 @ w2 + b2, target_n, gain)
        g1 = torch.ops.aten.gelu_backward(g2 @ w2.mT, z1, approximate="tanh")
        dz, dw, db = (change_n @ g1).split([tokens, width, 1], dim=2)
        x2_bar = gelu(z1_bar - dz)
        z_bars.append(x2_bar @ w2 + b2 - (eta_n * (x2_bar @ x2.mT + 1)) @ g2)
        last = eta_n[:, :, -1:]  # (B, H, 1, K)
        w1, b1, w2, b2 = w1 - dw, b1 - db, w2 - (last * x2.mT) @ g2, b2 - last @ g2
    return q + fused_layer_norm(torch.stack(z_bars, dim=2), gain[:, None], bias[:, None]), w1, b1, w2, b2


def linear_token(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, tau: Tensor, gain: Tensor, bias: Tensor,
    weights: Weights, sums: Weights,
) -> tuple[Tensor, Weights, Weights]:
    """One token: q, k, v (B, H, 1, D), lam (B, H, 1, 1), tau (); the weights that the mini-batch started with, and the
    sums of lam times gradient so far -> z (B, H, 1, D), the new sums and the weights that z was read with."""
    (w, b), (gw, gb) = weights, sums
    g = loss_gradient(k @ w + b, v - k, gain, bias)
    gw, gb = gw + (lam * k).mT @ g, gb + lam * g
    w, b = w - tau * gw, b - tau * gb
    return q + layer_norm(q @ w + b, gain, bias), (gw, gb), (w, b)


def mlp_token(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, tau: Tensor, gain: Tensor, bias: Tensor,
    weights: Weights, sums: Weights,
) -> tuple[Tensor, Weights, Weights]:
    (w1, b1, w2, b2), (gw1, gb1, gw2, gb2) = weights, sums
    z1 = k @ w1 + b1
    x2 = gelu(z1)
    g2 = loss_gradient(x2 @ w2 + b2, v - k, gain, bias)
    g1 = g2 @ w2.mT * gelu_slope(z1)
    sums = gw1 + (lam * k).mT @ g1, gb1 + lam * g1, gw2 + (lam * x2).mT @ g2, gb2 + lam * g2
    w1, b1, w2, b2 = weights = tuple(x - tau * s for x, s in zip(weights, sums, strict=True))
    return q + layer_norm(gelu(q @ w1 + b1) @ w2 + b2, gain, bias), sums, weights


LOOPS = {
    ("linear", "official"): ttt_linear,
    ("linear", "hoisted"): ttt_linear_hoisted,
    ("mlp", "official"): ttt_mlp,
    ("mlp", "hoisted"): ttt_mlp_hoisted,
}
TOKENS = {"linear": linear_token, "mlp": mlp_token}
