"""Hawk, Griffin and the MQA transformer (De et al. 2024, arXiv 2402.19427): one residual block, three temporal mixers.

    tokens -> embedding -> x                             kinds of mixer, `pattern` cycled over the layers
                           |
      .--> RMSNorm -> mixer ----.                        recurrent  conv + RG-LRU, gated         figure 2 (c)
      x -----------------------(+)-.                     local      attention to the last W      section 2.3
        .--> RMSNorm -> gated MLP --.                    global     attention to all before
        x -------------------------(+)--> x              Hawk         recurrent
                L times, figure 2 (a)                    Griffin      recurrent, recurrent, local
    x -> RMSNorm -> product with the embedding           transformer  global

    paper     here     shape                             paper    here     shape
    D         d_model  width of the residual stream      r_t i_t  zr zi    (B, T, E), before the sigmoid
    D_RNN     d_rnn    E, width of the recurrence        Lambda   -lam     (E,), the sign of the released code
    h_t       h        (B, T, E)                         -        window   W past tokens seen besides itself

Where paper and released code differ, a field of GriffinConfig names it; the code is the default. One path serves
training, prefill and decoding: every mixer takes a state and returns the next one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..backend import get_xp, on_gpu
from ..nn import GatedMLP, KVCache, Linear, RMSNorm, extended, lecun_normal, normal, zeros
from ..ops import (
    attention,
    block_linear,
    causal_conv,
    embedding,
    gelu_gate,
    linear,
    reshape,
    rope,
    rope_tables,
    softcap,
    transpose,
)
from ..recurrences.rglru import rglru
from ..tape import Tensor, array_of
from .griffin_config import GriffinConfig


class RecurrentState(NamedTuple):
    """h (B, E): state of the RG-LRU; conv (B, conv_width - 1, E): the last inputs of the convolution, oldest first."""

    h: Any
    conv: Any


class GriffinState(NamedTuple):
    """position (B,): place of the next token in its document; layers: a RecurrentState or KVCache for each block."""

    position: Any
    layers: tuple


class Places(NamedTuple):
    """What every block must know of where the tokens stand, worked out once.

    position (B, T) in the document. Where no block needs it, the rest is None: start (B, T), True where a document
    begins; near (B, T), the positions, if some are so early that the convolution looks back beyond the start (a GPU is
    not asked, for it would have to be waited for); cos and sin (B, T, R / 2) for RoPE.
    """

    position: Any
    start: Any
    near: Any
    cos: Any
    sin: Any


class Griffin:
    """The language model, figure 2 (a)."""

    def __init__(self, config: GriffinConfig, rng: Any, dtype: Any = "float32"):
        self.config = config
        self.embedding = normal(rng, (config.vocab_size, config.d_model), config.d_model**-0.5, dtype)
        self.blocks = [ResidualBlock(kind, config, rng, dtype) for kind in config.kinds]
        self.final_norm = RMSNorm(config.d_model, dtype)

    def __call__(self, tokens: Any, positions: Any = None) -> Tensor:
        """Logits (B, T, V) for tokens (B, T). positions (B, T), for packed documents: 0 at the first token of each."""
        if positions is None:
            xp = get_xp(tokens)
            positions = xp.broadcast_to(xp.arange(tokens.shape[-1]), tokens.shape)
        return self._run(tokens, positions, [None] * len(self.blocks))[0]

    def prefill(self, tokens: Any, state: GriffinState, positions: Any = None) -> tuple[Tensor, GriffinState]:
        """Read tokens (B, T) on top of `state`: logits (B, T, V) and the state after them.

        Gradients flow through the recurrent states, not through keys and values cached by an earlier call.
        """
        if positions is None:
            positions = state.position[:, None] + get_xp(tokens).arange(tokens.shape[-1])
        logits, layers = self._run(tokens, positions, state.layers)
        return logits, GriffinState(positions[:, -1] + 1, tuple(layers))

    def step(self, tokens: Any, state: GriffinState) -> tuple[Tensor, GriffinState]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state."""
        logits, state = self.prefill(tokens[:, None], state)
        return reshape(logits, shape=(len(tokens), self.config.vocab_size)), state

    def initial_state(self, batch: int) -> GriffinState:
        """The state of `batch` sequences before their first token."""
        like = array_of(self.embedding)
        layers = tuple(block.mixer.initial_state(batch, like) for block in self.blocks)
        return GriffinState(get_xp(like).zeros(batch, "int64"), layers)

    def _run(self, tokens: Any, positions: Any, states: Any) -> tuple[Tensor, list]:
        config = self.config
        if tokens.ndim != 2 or positions.shape != tokens.shape:
            raise ValueError(f"expected tokens (B, T) and positions alike, got {tokens.shape} and {positions.shape}")
        x = embedding(self.embedding, tokens)  # (B, T, D)
        if config.embed_scale:
            x = x * bfloat16(config.d_model**0.5)
        start, near, rotation = positions == 0, positions < config.conv_width - 1, (None, None)
        if config.kinds.count("recurrent") < config.n_layers:
            rotation = rope_tables(positions, config.rotated, config.rope_base, x.dtype)
        start = start if config.reset and (on_gpu(start) or start.any()) else None
        near = positions if on_gpu(near) or near.any() else None
        places = Places(positions, start, near, *rotation)
        new_states = []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block(x, places, state)
            new_states.append(state)
        x = self.final_norm(x)
        logits = linear(x, transpose(self.embedding))  # (B, T, V), tied, no bias
        return softcap(logits, cap=config.logit_cap) if config.logit_cap else logits, new_states


class ResidualBlock:
    """x + mixer(RMSNorm(x)), then x + mlp(RMSNorm(x)): figure 2 (a), section 2.1."""

    def __init__(self, kind: str, config: GriffinConfig, rng: Any, dtype: Any):
        d = config.d_model
        self.mixer_norm = RMSNorm(d, dtype)
        self.mixer = RecurrentMixer(config, rng, dtype) if kind == "recurrent" else Attention(kind, config, rng, dtype)
        self.mlp_norm = RMSNorm(d, dtype)
        in_scale = 0.5 if config.gate_init == "jax" else 1.0
        self.mlp = GatedMLP(d, config.mlp_expansion * d, rng, dtype, in_scale, out_scale=2 / config.n_layers)

    def __call__(self, x: Tensor, places: Places, state: Any) -> tuple[Tensor, Any]:
        """x (B, T, D) -> x (B, T, D) and the state of the mixer."""
        mixed, state = self.mixer(self.mixer_norm(x), places, state)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), state


class RecurrentMixer:
    """(RG-LRU(conv(x W_x)) * gelu(x W_y)) W_out: figure 2 (c), section 2.3, with the RG-LRU of section 2.4."""

    def __init__(self, config: GriffinConfig, rng: Any, dtype: Any):
        d, e, n = config.d_model, config.d_rnn, config.gate_blocks
        fan_in = e if config.gate_init == "jax" else e // n
        self.branch = Linear(d, e, rng, dtype)  # linear_x of the code
        self.gate = Linear(d, e, rng, dtype)  # linear_y
        self.conv_w = normal(rng, (config.conv_width, e), (0.01 / config.conv_width) ** 0.5, dtype)
        self.conv_b = zeros((e,), dtype)
        self.w_a, self.b_a = lecun_normal(rng, (n, e // n, e // n), fan_in, dtype), zeros((e,), dtype)
        self.w_x, self.b_x = lecun_normal(rng, (n, e // n, e // n), fan_in, dtype), zeros((e,), dtype)
        self.lam = Tensor(initial_lam(rng, e, config.decay_init).astype(dtype), requires_grad=True)
        self.out = Linear(e, d, rng, dtype, scale=2 / config.n_layers)

    def __call__(self, x: Tensor, places: Places, state: RecurrentState | None) -> tuple[Tensor, RecurrentState]:
        """x (B, T, D) -> (B, T, D) and the state after the last token."""
        if state is None:
            state = self.initial_state(x.shape[0], array_of(x))
        v = self.branch(x)  # (B, T, E)
        u, conv = causal_conv(v, self.conv_w, self.conv_b, state.conv, positions=places.near)
        zr = block_linear(u, self.w_a, self.b_a)
        zi = block_linear(u, self.w_x, self.b_x)
        h, h_last = rglru(u, zr, zi, self.lam, state.h, starts=places.start)
        return self.out(gelu_gate(self.gate(x), h)), RecurrentState(h_last, conv)

    def initial_state(self, batch: int, like: Any) -> RecurrentState:
        xp, (taps, e) = get_xp(like), self.conv_w.shape
        return RecurrentState(xp.zeros((batch, e), like.dtype), xp.zeros((batch, taps - 1, e), like.dtype))


class Attention:
    """Multi-query attention with RoPE, to the last W tokens ("local") or all ("global"): section 2.3.

    No bias on q, k, v; one on the output.
    """

    def __init__(self, kind: str, config: GriffinConfig, rng: Any, dtype: Any):
        d, k = config.d_model, config.head_width
        self.heads = config.n_heads
        self.window = config.window if kind == "local" else None
        self.q = Linear(d, d, rng, dtype, bias=False)
        self.k = Linear(d, k, rng, dtype, bias=False)
        self.v = Linear(d, k, rng, dtype, bias=False)
        self.out = Linear(d, d, rng, dtype, scale=2 / config.n_layers)

    def __call__(self, x: Tensor, places: Places, state: KVCache | None) -> tuple[Tensor, KVCache | None]:
        """x (B, T, D) -> (B, T, D) and the keys and values to keep (None if there was no cache)."""
        (batch, time, d), heads = x.shape, self.heads
        q = rope(reshape(self.q(x), shape=(batch, time, heads, d // heads)), places.cos, places.sin)
        k = rope(reshape(self.k(x), shape=(batch, time, 1, d // heads)), places.cos, places.sin)
        v = reshape(self.v(x), shape=(batch, time, 1, d // heads))
        k, v, new_state = extended(k, v, state)
        mixed = attention(q, k, v, reach=places.position, window=self.window)  # in the document, and in the window
        return self.out(reshape(mixed, shape=x.shape)), new_state

    def initial_state(self, batch: int, like: Any) -> KVCache:
        none = get_xp(like).zeros((batch, 0, 1, like.shape[1] // self.heads), like.dtype)
        return KVCache(none, none, None if self.window is None else self.window + 1)


def initial_lam(rng: Any, e: int, kind: str) -> Any:
    """lam (e,) of a fresh RG-LRU, where the slowest decay is a = sigmoid(-lam); see GriffinConfig.decay_init."""
    if kind == "code":
        a = rng.uniform(0.9**2, 0.999**2, e) ** 0.5
    else:
        a = rng.uniform(0.9, 0.999, e) ** (1 / 8)
    return get_xp(a).log(1 / a - 1)


def bfloat16(x: float) -> float:
    """x rounded to bfloat16 (8 significant bits), half to even: what the released code makes of sqrt(D)."""
    fraction, exponent = math.frexp(x)
    return math.ldexp(round(fraction * 256), exponent - 8)
