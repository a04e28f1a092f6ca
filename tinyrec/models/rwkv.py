"""RWKV-4 (Peng et al. 2023, arXiv 2305.13048): a language model that trains like a transformer and runs like an RNN.

    tokens -> embedding -> LN0 -> x

      .--> LN1 --> time mixing ---.               time mixing, section 3.1: k, v, r are three mixes of a token
      x -------------------------(+)-.            and the one before, each through a matrix; WKV averages v over
        .--> LN2 --> channel mixing ---.          the past with weights from k, and sigmoid(r) lets it out
        x ----------------------------(+)--> x    channel mixing: sigmoid(r) * (W_v max(k, 0)^2), with k and r
                L times, figures 2 and 3          two such mixes, k four times as wide
    x -> LN -> head

    paper         here                  shape
    D             d_model (C)           width of the residual stream
    mu_k ...      mix_k ...             (C,)   token shift: mix x_t + (1 - mix) x_{t-1}, mix may lie outside of [0, 1]
    w             exp(time_decay)       (C,)   decay rate of a channel; w = -exp(time_decay) in the published code
    u             time_first            (C,)   bonus of the current token
    W_k W_v W_r   key value receptance  Linear without bias
    a_t, b_t, -   p, q, o               (B, C) state of WKV: sums p e^o and q e^o

Some texts that explain RWKV swap w and u: it is the current token that gets +u, and the state that decays by e^-w.
docs/recurrences/wkv.md derives WKV. Only k and v meet the recurrence: all matrix products run over the whole sequence.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..backend import get_xp
from ..nn import LayerNorm, Linear, normal, orthogonal, parameter, uniform, zeros
from ..ops import embedding, reshape, sigmoid_gate, squared_relu, token_shift
from ..recurrences.wkv import fresh_state, wkv
from ..tape import Tensor, array_of
from .rwkv_config import RWKVConfig


class LayerState(NamedTuple):
    """What one layer remembers, five vectors (B, C): the last inputs of its two mixings, and WKV's p, q, o."""

    x_time: Any
    x_channel: Any
    p: Any
    q: Any
    o: Any


class RWKV:
    """The language model, figure 3."""

    def __init__(self, config: RWKVConfig, rng: Any, dtype: Any = "float32"):
        self.config = config
        v, c = config.vocab_size, config.d_model
        if config.embedding_init == "small":
            self.embedding = uniform(rng, (v, c), 1e-4, dtype)
        else:
            self.embedding = normal(rng, (v, c), 0.02 if config.embedding_init == "normal" else 1.0, dtype)
        self.ln0 = LayerNorm(c, dtype) if config.ln0 else None
        self.blocks = [Block(layer, config, rng, dtype) for layer in range(config.n_layers)]
        self.ln_out = LayerNorm(c, dtype)
        self.head = Linear.of(orthogonal(rng, (c, v), 0.5 * max(1.0, v / c) ** 0.5, dtype))  # untied
        self.l2wrap = config.l2wrap  # parallel.loss_and_grads applies it
        self.lr_scales = {"time_decay": 2.0, "time_first": 3.0} if config.layerwise_lr else {}  # optim.optimizer_for

    def __call__(self, tokens: Any) -> Tensor:
        """Logits (B, T, V) for tokens (B, T)."""
        return self.prefill(tokens, self.initial_state(len(tokens)))[0]

    def prefill(self, tokens: Any, state: tuple[LayerState, ...]) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Read tokens (B, T) on top of `state`: logits (B, T, V) and the state after them.

        Gradients flow through the state.
        """
        if tokens.ndim != 2:
            raise ValueError(f"expected tokens (B, T), got {tokens.shape}")
        x = embedding(self.embedding, tokens)  # (B, T, C)
        if self.ln0 is not None:
            x = self.ln0(x)
        layers = []
        for block, layer in zip(self.blocks, state, strict=True):
            x, layer = block(x, layer)
            layers.append(layer)
        return self.head(self.ln_out(x)), tuple(layers)

    def step(self, tokens: Any, state: tuple[LayerState, ...]) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state. Figure 3, as an RNN."""
        logits, state = self.prefill(tokens[:, None], state)
        return reshape(logits, shape=(len(tokens), self.config.vocab_size)), state

    def initial_state(self, batch: int) -> tuple[LayerState, ...]:
        """The state of `batch` sequences before their first token: 5 L C numbers each, whatever is read later."""
        like = array_of(self.embedding)
        x, state = get_xp(like).zeros((batch, like.shape[1]), like.dtype), fresh_state(batch, like.shape[1], like)
        return tuple(LayerState(x, x, *state) for _ in self.blocks)


class Block:
    """x + time_mixing(LN1(x)), then x + channel_mixing(LN2(x)): figure 2."""

    def __init__(self, layer: int, config: RWKVConfig, rng: Any, dtype: Any):
        self.ln1, self.ln2 = LayerNorm(config.d_model, dtype), LayerNorm(config.d_model, dtype)
        pre_ffn = layer == 0 and config.pre_ffn
        self.pre_ffn = ChannelMixing(layer, config, rng, dtype) if pre_ffn else None
        self.time_mixing = None if pre_ffn else TimeMixing(layer, config, rng, dtype)
        self.channel_mixing = ChannelMixing(layer, config, rng, dtype)

    def __call__(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """x (B, T, C) -> x (B, T, C) and the state after the last token."""
        if self.time_mixing is not None:
            mixed, state = self.time_mixing(self.ln1(x), state)
        elif self.pre_ffn is not None:
            mixed, x_time = self.pre_ffn(self.ln1(x), state.x_time)
            state = state._replace(x_time=x_time)
        x = x + mixed
        mixed, x_channel = self.channel_mixing(self.ln2(x), state.x_channel)
        return x + mixed, state._replace(x_channel=x_channel)


class TimeMixing:
    """W_o (sigmoid(r) * WKV(k, v)): section 3.1.

    Starts as a plain decayed average that is not let out: k = 0, and W_o = 0, so that every block is the identity.
    """

    def __init__(self, layer: int, config: RWKVConfig, rng: Any, dtype: Any):
        c, n = config.d_model, config.n_layers
        depth = layer / max(1, n - 1)  # 0 in the first layer, 1 in the last; ratio_0_to_1 of the published code
        channels = [i / max(1, c - 1) for i in range(c)]
        # A token keeps e^-(e^-5) = 0.993 of its weight in the first channel, nothing in the last; more in deep layers.
        self.time_decay = parameter([-5.0 + 8.0 * i ** (0.7 + 1.3 * depth) for i in channels], dtype)
        self.time_first = parameter([math.log(0.3) + 0.5 * ((i + 1) % 3 - 1) for i in range(c)], dtype)
        self.mix_k = parameter(_mix(c, layer, n), dtype)
        self.mix_v = parameter([mix + 0.3 * depth for mix in _mix(c, layer, n)], dtype)
        self.mix_r = parameter([mix**0.5 for mix in _mix(c, layer, n)], dtype)  # the paper's appendix: half, not root
        self.key, self.receptance = Linear.of(zeros((c, c), dtype)), Linear.of(zeros((c, c), dtype))
        self.value = Linear.of(orthogonal(rng, (c, c), 1.0, dtype))
        self.output = Linear.of(zeros((c, c), dtype))

    def __call__(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """x (B, T, C) -> (B, T, C) and the state with its x_time, p, q, o replaced."""
        x_k, x_v, x_r, x_time = token_shift(x, state.x_time, self.mix_k, self.mix_v, self.mix_r)
        k, v, r = self.key(x_k), self.value(x_v), self.receptance(x_r)
        y, p, q, o = wkv(k, v, self.time_decay, self.time_first, state.p, state.q, state.o)
        return self.output(sigmoid_gate(r, y)), state._replace(x_time=x_time, p=p, q=q, o=o)


class ChannelMixing:
    """sigmoid(r) * (W_v max(k, 0)^2), k wider than x: section 3.1. Starts as zero."""

    def __init__(self, layer: int, config: RWKVConfig, rng: Any, dtype: Any):
        c, f = config.d_model, config.ffn_expansion * config.d_model
        self.mix_k = parameter(_mix(c, layer, config.n_layers), dtype)
        self.mix_r = parameter(_mix(c, layer, config.n_layers), dtype)
        self.key = Linear.of(orthogonal(rng, (c, f), (f / c) ** 0.5, dtype))
        self.receptance = Linear.of(zeros((c, c), dtype))
        self.value = Linear.of(zeros((f, c), dtype))

    def __call__(self, x: Tensor, last: Any) -> tuple[Tensor, Any]:
        """x (B, T, C), last (B, C) -> (B, T, C) and the new last."""
        x_k, x_r, last = token_shift(x, last, self.mix_k, self.mix_r)
        kv = self.value(squared_relu(self.key(x_k)))
        return sigmoid_gate(self.receptance(x_r), kv), last


def _mix(c: int, layer: int, n_layers: int) -> list[float]:
    """(i / C)^(1 - l / L): how much of the current token a channel starts with; more of it in deep layers."""
    return [(i / c) ** (1.0 - layer / n_layers) for i in range(c)]
