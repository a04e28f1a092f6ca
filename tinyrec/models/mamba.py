"""Mamba-1 (Gu & Dao 2023, arXiv 2312.00752): a language model of one kind of layer, a selective state space.

    tokens -> embedding -> x

      .--> RMSNorm -> mixer --.                         mixer, figure 3
      x ---------------------(+)--> x                   x --> in --> conv -> silu -> S6 --(*)--> out
                L times                                  `--> gate ------------> silu -----'
    x -> RMSNorm -> product with the embedding

    paper      here            shape                    S6, algorithm 2: dt, B and C are made from the input u
    D          d_model (M)     width of x               dt = softplus(u x_proj[:R] dt_proj + bias)     (B, T, D)
    E D        d_inner (D)     channels of S6           B, C = u x_proj[R:R+N], u x_proj[R+N:]         (B, T, N)
    N          d_state         states per channel       h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t
    A          -exp(a_log)     (D, N)                   y_t = <C_t, h_t> + D u_t
    D          d               (D,), a skip connection
    Delta      dt              (B, T, D)                docs/recurrences/selective_scan.md

No attention, no MLP, no positions. Packed documents are not offered: the published code has no resets either.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..backend import get_xp
from ..nn import Linear, RMSNorm, full, normal, parameter, uniform
from ..ops import causal_conv, embedding, exp, linear, reshape, silu, silu_gate, softplus, split, transpose
from ..recurrences.selective_scan import selective_scan
from ..tape import Tensor, array_of
from .mamba_config import MambaConfig


class LayerState(NamedTuple):
    """conv (B, K - 1, D): the last inputs of the convolution, oldest first; h (B, D, N): the state of S6."""

    conv: Any
    h: Any


class Mamba:
    """The language model."""

    no_decay = ("a_log",)  # a matrix, but of decay rates on a logarithmic scale: pulling it to 0 pulls A to -1

    def __init__(self, config: MambaConfig, rng: Any, dtype: Any = "float32"):
        self.config = config
        self.embedding = normal(rng, (config.vocab_size, config.d_model), 0.02, dtype)
        self.blocks = [Block(config, rng, dtype) for _ in range(config.n_layers)]
        self.final_norm = RMSNorm(config.d_model, dtype, eps=config.norm_eps, one_plus=False)

    def __call__(self, tokens: Any) -> Tensor:
        """Logits (B, T, V) for tokens (B, T)."""
        return self.prefill(tokens, self.initial_state(len(tokens)))[0]

    def prefill(self, tokens: Any, state: tuple[LayerState, ...]) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Read tokens (B, T) on top of `state`: logits (B, T, V) and the state after them.

        Gradients flow through the state.
        """
        if tokens.ndim != 2:
            raise ValueError(f"expected tokens (B, T), got {tokens.shape}")
        x, layers = embedding(self.embedding, tokens), []  # (B, T, M)
        for block, layer in zip(self.blocks, state, strict=True):
            mixed, layer = block.mixer(block.norm(x), layer)
            x = x + mixed
            layers.append(layer)
        return linear(self.final_norm(x), transpose(self.embedding)), tuple(layers)

    def step(self, tokens: Any, state: tuple[LayerState, ...]) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state."""
        logits, state = self.prefill(tokens[:, None], state)
        return reshape(logits, shape=(len(tokens), self.config.vocab_size)), state

    def initial_state(self, batch: int) -> tuple[LayerState, ...]:
        """The state of `batch` sequences before their first token: L D (K - 1 + N) numbers each, whatever is read."""
        like, c = array_of(self.embedding), self.config
        zeros = get_xp(like).zeros
        conv = zeros((batch, c.conv_width - 1, c.d_inner), like.dtype)
        h = zeros((batch, c.d_inner, c.d_state), like.dtype)
        return tuple(LayerState(conv, h) for _ in self.blocks)


class Block:
    """x + mixer(RMSNorm(x)); the sum is the model's."""

    def __init__(self, config: MambaConfig, rng: Any, dtype: Any):
        self.norm = RMSNorm(config.d_model, dtype, eps=config.norm_eps, one_plus=False)
        self.mixer = Mixer(config, rng, dtype)


class Mixer:
    """Figure 3, right; the initial values are those of the published code."""

    def __init__(self, config: MambaConfig, rng: Any, dtype: Any):
        m, d, n, r, k = config.d_model, config.d_inner, config.d_state, config.rank, config.conv_width
        self.sizes = (r, n, n)
        self.in_proj = Linear.of(uniform(rng, (m, d), m**-0.5, dtype))
        self.gate_proj = Linear.of(uniform(rng, (m, d), m**-0.5, dtype))
        self.conv_w, self.conv_b = uniform(rng, (k, d), k**-0.5, dtype), uniform(rng, (d,), k**-0.5, dtype)
        self.x_proj = Linear.of(uniform(rng, (d, r + 2 * n), d**-0.5, dtype))
        # dt of a fresh layer, for u = 0, is spread evenly over the decades from 0.001 to 0.1.
        dt = [max(1e-4, math.exp(x)) for x in rng.uniform(math.log(1e-3), math.log(0.1), d)]
        bias = parameter([x + math.log(-math.expm1(-x)) for x in dt], dtype)  # softplus(bias) = dt
        self.dt_proj = Linear.of(uniform(rng, (r, d), r**-0.5, dtype), bias)
        self.a_log = parameter([[math.log(1 + i) for i in range(n)]] * d, dtype)  # A = -1, -2, ..., -N (S4D-real)
        self.d = full((d,), 1.0, dtype)
        self.out_proj = Linear.of(uniform(rng, (d, m), (d * config.n_layers) ** -0.5, dtype))

    def __call__(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """x (B, T, M) -> (B, T, M) and the state after the last token."""
        v, conv = causal_conv(self.in_proj(x), self.conv_w, self.conv_b, state.conv)
        u = silu(v)  # (B, T, D)
        dt, b, c = split(self.x_proj(u), sizes=self.sizes)  # (B, T, R), (B, T, N), (B, T, N)
        dt = softplus(self.dt_proj(dt))  # (B, T, D)
        y, h = selective_scan(u, dt, -exp(self.a_log), b, c, self.d, state.h)
        return self.out_proj(silu_gate(self.gate_proj(x), y)), LayerState(conv, h)
