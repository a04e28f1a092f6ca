"""The blocks of the recurrent-depth transformer, the same in prelude, core and coda: section 3 of the paper.

h d_model, m d_mlp, H n_heads; x (B, T, h). `cache` is the KVCache of the tokens before, None where there are none.
"""

from __future__ import annotations

from typing import Any

from ..nn import KVCache, Linear, RMSNorm, extended, orthogonal, truncated_normal, zeros
from ..ops import attention, reshape, rope, silu_gate
from ..tape import Tensor
from .recurrent_depth_config import RecurrentDepthConfig


def run(blocks: list, x: Tensor, rotation: Any, caches: Any) -> tuple[Tensor, tuple]:
    """x (B, T, h) through the blocks, and their caches."""
    after = []
    for block, cache in zip(blocks, caches or [None] * len(blocks), strict=True):
        x, cache = block(x, rotation, cache)
        after.append(cache)
    return x, tuple(after)


class SandwichBlock:
    """x' = norm_2(x + attention(norm_1(x))), x'' = norm_4(x' + MLP(norm_3(x'))): the outer norms act on the sums.

    So the stream has RMS 1 after each half, which keeps s_i bounded for any number of iterations.
    """

    def __init__(self, config: RecurrentDepthConfig, rng: Any, dtype: Any):
        self.norm_1, self.norm_2 = make_norm(config, dtype), make_norm(config, dtype)
        self.attention = Attention(config, rng, dtype)
        self.norm_3, self.norm_4 = make_norm(config, dtype), make_norm(config, dtype)
        self.mlp = MLP(config, rng, dtype)

    def __call__(self, x: Tensor, rotation: Any, cache: KVCache | None) -> tuple[Tensor, KVCache | None]:
        mixed, cache = self.attention(self.norm_1(x), rotation, cache)
        x = self.norm_2(x + mixed)
        return self.norm_4(x + self.mlp(self.norm_3(x))), cache


class PreNormBlock:
    """x' = x + attention(norm_1(x)), x'' = x' + MLP(norm_2(x')): bad run 2. Nothing bounds the stream."""

    def __init__(self, config: RecurrentDepthConfig, rng: Any, dtype: Any):
        self.norm_1, self.attention = make_norm(config, dtype), Attention(config, rng, dtype)
        self.norm_2, self.mlp = make_norm(config, dtype), MLP(config, rng, dtype)

    def __call__(self, x: Tensor, rotation: Any, cache: KVCache | None) -> tuple[Tensor, KVCache | None]:
        mixed, cache = self.attention(self.norm_1(x), rotation, cache)
        x = x + mixed
        return x + self.mlp(self.norm_2(x)), cache


class Attention:
    """Causal attention with RoPE on adjacent pairs; q and k have a bias, added before the rotation, v has none."""

    def __init__(self, config: RecurrentDepthConfig, rng: Any, dtype: Any):
        h, self.heads = config.d_model, config.n_heads
        matrices = [matrix(config, rng, (h, h), config.std, dtype) for _ in range(3)]
        bias = [zeros((h,), dtype) if config.qk_bias else None for _ in range(2)]
        self.q, self.k, self.v = map(Linear.of, matrices, (*bias, None))
        self.out = Linear.of(matrix(config, rng, (h, h), config.out_std, dtype))

    def __call__(self, x: Tensor, rotation: Any, cache: KVCache | None) -> tuple[Tensor, KVCache | None]:
        """x (B, T, h) -> (B, T, h) and the cache with these tokens."""
        shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k = (rope(reshape(f(x), shape=shape), *rotation, pairing="adjacent") for f in (self.q, self.k))
        k, v, cache = extended(k, reshape(self.v(x), shape=shape), cache)
        return self.out(reshape(attention(q, k, v), shape=x.shape)), cache


class MLP:
    """(silu(x W_gate) * (x W_up)) W_down, no biases (Shazeer 2020)."""

    def __init__(self, config: RecurrentDepthConfig, rng: Any, dtype: Any):
        h, m = config.d_model, config.d_mlp
        self.gate, self.up = (Linear.of(matrix(config, rng, (h, m), config.std, dtype)) for _ in range(2))
        self.down = Linear.of(matrix(config, rng, (m, h), config.out_std, dtype))

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(silu_gate(self.gate(x), self.up(x)))


def make_block(config: RecurrentDepthConfig, rng: Any, dtype: Any) -> SandwichBlock | PreNormBlock:
    return (SandwichBlock if config.block == "sandwich" else PreNormBlock)(config, rng, dtype)


def make_norm(config: RecurrentDepthConfig, dtype: Any) -> RMSNorm:
    return RMSNorm(config.d_model, dtype, config.eps, one_plus=False, has_gain=config.norm_gain)


def matrix(config: RecurrentDepthConfig, rng: Any, shape: tuple[int, int], std: float, dtype: Any) -> Tensor:
    """N(0, std^2) cut off at 3 std; or orthogonal and about as large (bad run 1)."""
    if config.weight_init == "orthogonal":
        return orthogonal(rng, shape, std * max(shape) ** 0.5, dtype)
    return truncated_normal(rng, shape, std, dtype)
