"""The layer of TTT: three views of every token, an inner model for each head that learns from them, and a gate.

        .--> product --> conv_q * --> RoPE --> q --.
    u --+--> product --> conv_k * --> RoPE --> k --+--> f --> z --> LayerNorm --(o)--> out
        |--> product -----------------------> v ---|                             |
        |--> product --> sigmoid ----------> lam --'                             |
        '--> product --> gelu ---------------------------------------------------' *

    * with backbone "mamba" only, where q and k also share one product. RoPE counts 0 to K - 1 in every mini-batch.

    paper               here           shape
    theta_Q x, _K, _V   q, k, v        (B, T, H, d)   test, training and label view: what is asked, what is learned
    eta_ij              tau_i lam_j    (K,), (B, T, H)   j where the gradient is from, i the place where it is used
    W_0, b_0            inner.w, .b    (H, d, d), (H, d); mlp: w1, b1, w2, b2 (H, d, 4 d), (H, 4 d), (H, 4 d, d), (H, d)
    gamma, beta         inner.gain, .bias   (H, d)    of the LayerNorm in f; they do not move with the tokens

f and its steps of gradient descent are derived in docs/recurrences/ttt_linear.md and ttt_mlp.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import get_xp
from ..nn import LayerNorm, Linear, full, normal, uniform, zeros
from ..ops import broadcast_to, causal_conv, gelu_gate, maximum, reshape, rope, sigmoid
from ..recurrences.ttt_linear import ttt_linear
from ..recurrences.ttt_mlp import ttt_mlp
from ..tape import Tensor, array_of
from .ttt_config import TTTConfig

STD = 0.02  # of every matrix at the start


class BlockState(NamedTuple):
    """What one layer remembers of B sequences; the convolutions only with backbone "mamba", None without.

    before, qk (B, W - 1, C): the last inputs of the convolution before the layer, and of the two inside, oldest first.
    weights: the inner models when the mini-batch began, (w, b) or (w1, b1, w2, b2) as in the table, each (B, H, ...).
    sums: lam_j times the gradient of each of them, summed over the tokens of the mini-batch so far.
    """

    before: Any
    qk: Any
    weights: tuple
    sums: tuple


class Mixer:
    """The figure above."""

    def __init__(self, config: TTTConfig, rng: Any, dtype: Any):
        c, self.heads = config.d_model, config.n_heads
        mamba = config.backbone == "mamba"
        self.q, self.v, self.out = (matrix(rng, c, c, dtype) for _ in range(3))
        self.k: Any = None if mamba else matrix(rng, c, c, dtype)
        self.gate: Any = matrix(rng, c, c, dtype) if mamba else None
        self.conv_q: Any = Conv(config, rng, dtype) if mamba else None
        self.conv_k: Any = Conv(config, rng, dtype) if mamba else None
        self.lam = Linear.of(normal(rng, (c, config.n_heads), STD, dtype), zeros((config.n_heads,), dtype))
        self.max_lam = config.inner_lr / config.head_width  # / d: the inner loss is a mean over the head
        self.delta = zeros((config.mini_batch,), dtype)
        self.inner = Inner(config, rng, dtype)
        self.norm = LayerNorm(c, dtype, eps=1e-6)

    def __call__(
        self, u: Tensor, state: BlockState, at: int, rotation: Any, inner_rate: float
    ) -> tuple[Tensor, BlockState]:
        """u (B, T, C) -> (B, T, C) and the state after the last token."""
        shape = (*u.shape[:2], self.heads, u.shape[2] // self.heads)  # (B, T, H, d)
        q, k, qk = self.views(u, state.qk)
        q, k = (rope(reshape(x, shape=shape), *rotation, pairing="adjacent") for x in (q, k))
        v = reshape(self.v(u), shape=shape)
        lam = sigmoid(self.lam(u)) * (self.max_lam * inner_rate)  # (B, T, H)
        z, weights, sums = self.inner(q, k, v, lam, self.tau(), state.weights, state.sums, at)
        o = self.norm(reshape(z, shape=u.shape))
        if self.gate is not None:
            o = gelu_gate(self.gate(u), o)
        return self.out(o), BlockState(state.before, qk, weights, sums)

    def initial_state(self, batch: int) -> BlockState:
        """That of `batch` sequences before their first token; gradients flow through it to where f starts."""
        qk = None if self.conv_q is None else self.conv_q.nothing(batch)
        weights, sums = [], []
        for w in self.inner.weights():
            weights.append(broadcast_to(w, shape=(batch, *w.shape)))
            sums.append(get_xp(array_of(w)).zeros((batch, *w.shape), w.dtype))
        return BlockState(qk, qk, tuple(weights), tuple(sums))

    def views(self, u: Tensor, last: Any) -> tuple[Tensor, Tensor, Any]:
        """q and k (B, T, C) of all heads, before RoPE, and the last inputs of their convolutions."""
        if self.k is not None:
            return self.q(u), self.k(u), None
        p = self.q(u)
        q, _ = self.conv_q(p, last)
        k, last = self.conv_k(p, last)
        return q, k, last

    def tau(self) -> Tensor:
        """(K,): 1 / (i + 1), the mean of the gradients so far, plus delta; never below 0, where f would unlearn."""
        like = array_of(self.delta)
        mean = 1.0 / get_xp(like).arange(1, len(like) + 1)
        return maximum(self.delta + mean.astype(like.dtype), 0.0)


class Inner:
    """The inner models of all heads: the weights they start from, and the gain and bias of the LayerNorm inside."""

    def __init__(self, config: TTTConfig, rng: Any, dtype: Any):
        h, d = config.n_heads, config.head_width
        self.gain, self.bias, self.kind = full((h, d), 1.0, dtype), zeros((h, d), dtype), config.inner
        self.checkpoint = config.checkpoint
        if self.kind == "linear":
            self.w, self.b = normal(rng, (h, d, d), STD, dtype), zeros((h, d), dtype)
        else:
            self.w1, self.b1 = normal(rng, (h, d, 4 * d), STD, dtype), zeros((h, 4 * d), dtype)
            self.w2, self.b2 = normal(rng, (h, 4 * d, d), STD, dtype), zeros((h, d), dtype)

    def weights(self) -> tuple:
        return (self.w, self.b) if self.kind == "linear" else (self.w1, self.b1, self.w2, self.b2)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, tau: Tensor, weights: tuple, sums: tuple, at: int
    ) -> tuple[Tensor, tuple, tuple]:
        """z (B, T, H, d), and the weights and sums after it: see docs/recurrences/ttt_linear.md and ttt_mlp.md."""
        read = ttt_linear if self.kind == "linear" else ttt_mlp
        z, *after = read(q, k, v, lam, tau, self.gain, self.bias, *weights, *sums, at=at, checkpoint=self.checkpoint)
        return z, tuple(after[: len(weights)]), tuple(after[len(weights) :])


class Conv:
    """A causal convolution over W tokens, each channel on its own."""

    def __init__(self, config: TTTConfig, rng: Any, dtype: Any):
        width, c = config.conv_width, config.d_model
        self.w, self.bias = uniform(rng, (width, c), width**-0.5, dtype), zeros((c,), dtype)

    def __call__(self, x: Tensor, last: Any) -> tuple[Tensor, Any]:
        """x (B, T, C), its last inputs before (B, W - 1, C) -> (B, T, C) and the last inputs after it."""
        return causal_conv(x, self.w, self.bias, last)

    def nothing(self, batch: int) -> Any:
        like = array_of(self.w)
        return get_xp(like).zeros((batch, like.shape[0] - 1, like.shape[1]), like.dtype)


def matrix(rng: Any, n: int, m: int, dtype: Any) -> Linear:
    """A product with a matrix (n, m), as it starts."""
    return Linear.of(normal(rng, (n, m), STD, dtype))
