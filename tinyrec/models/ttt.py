"""TTT (Sun et al. 2024, arXiv 2407.04620): an RNN whose state is a small model that is trained on what it reads.

    tokens -> embedding -> x

      .--> RMSNorm -> conv --.  .--> RMSNorm -> mixer --.  .--> RMSNorm -> SwiGLU --.
      x --------------------(+)-x ---------------------(+)-x ----------------------(+)--> x
         backbone "mamba" only            L times
    x -> RMSNorm -> product with the embedding

    the mixer, ttt_layer.py: for each token and head three views q, k, v of it, and an inner model f

    f(x) = x + LN(x w + b), or x + LN(gelu(x w1 + b1) w2 + b2)          ttt-linear, ttt-mlp
    l_j = |f(k_j) - v_j|^2 / 2                                          what f should do: make v_j of k_j
    w_i = w - tau_i (lam_1 dl_1/dw + ... + lam_i dl_i/dw)               learned while reading; b likewise
    z_i = q_i + LN(q_i w_i + b_i)                                       what comes out: f asked for q_i

    paper    here         what
    C, H, d  d_model ...  width of x, heads, width of a head
    b, K     mini_batch   tokens whose gradients are all taken at w; the last w_i is the w of the next K tokens
    W_t      state        the weights w, b of f, and the sum of gradients in the current mini-batch

There are two loops of learning. The inner one is above: it starts anew with every sequence, and is part of the forward.
The outer one is training as usual, by gradients through all inner steps: of the views, of where f starts, and of how
fast it learns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import get_xp
from ..nn import RMSNorm, normal
from ..ops import embedding, linear, reshape, rope_tables, silu_gate, transpose
from ..tape import Tensor, array_of
from .ttt_config import TTTConfig
from .ttt_layer import STD, BlockState, Conv, Mixer, matrix


class TTTState(NamedTuple):
    """at: how many tokens of the current mini-batch have been read, 0 to K - 1."""

    at: int
    layers: tuple[BlockState, ...]


class TTT:
    """The language model."""

    # By their shape, one row for each head, they would decay: the biases of f and the gain of its LayerNorm. w, w1 and
    # w2 do decay, as in the published training: they are matrices like any other, and 0 is an f that knows nothing.
    no_decay = ("b", "b1", "b2", "gain", "bias")

    def __init__(self, config: TTTConfig, rng: Any, dtype: Any = "float32"):
        self.config = config
        self.embedding = normal(rng, (config.vocab_size, config.d_model), STD, dtype)
        self.blocks = [Block(config, rng, dtype) for _ in range(config.n_layers)]
        self.final_norm = RMSNorm(config.d_model, dtype, config.norm_eps, one_plus=False)

    def __call__(self, tokens: Any, inner_rate: float = 1.0) -> Tensor:
        """Logits (B, T, V) for tokens (B, T). inner_rate: factor of the inner model's learning rate, see `warm_up`."""
        return self.prefill(tokens, self.initial_state(len(tokens)), inner_rate)[0]

    def prefill(self, tokens: Any, state: TTTState, inner_rate: float = 1.0) -> tuple[Tensor, TTTState]:
        """Read tokens (B, T) on top of `state`: logits (B, T, V) and the state after them.

        Gradients flow through the state.
        """
        if tokens.ndim != 2:
            raise ValueError(f"expected tokens (B, T), got {tokens.shape}")
        x, layers = embedding(self.embedding, tokens), []  # (B, T, C)
        rotation = self.rotation(state.at, tokens.shape[1])
        for block, layer in zip(self.blocks, state.layers, strict=True):
            x, layer = block(x, layer, state.at, rotation, inner_rate)
            layers.append(layer)
        at = (state.at + tokens.shape[1]) % self.config.mini_batch
        return linear(self.final_norm(x), transpose(self.embedding)), TTTState(at, tuple(layers))

    def step(self, tokens: Any, state: TTTState) -> tuple[Tensor, TTTState]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state."""
        logits, state = self.prefill(tokens[:, None], state)
        return reshape(logits, shape=(len(tokens), self.config.vocab_size)), state

    def initial_state(self, batch: int) -> TTTState:
        """The state of `batch` sequences before their first token: f as it starts, through which gradients flow."""
        return TTTState(0, tuple(block.mixer.initial_state(batch) for block in self.blocks))

    def rotation(self, at: int, time: int) -> Any:
        """Cosines and sines of RoPE for `time` tokens after the first `at` of a mini-batch: places are 0 to K - 1."""
        like, config = array_of(self.embedding), self.config
        places = get_xp(like).arange(at, at + time)[None] % config.mini_batch
        return rope_tables(places, config.head_width, config.rope_base, like.dtype)

    def warm_up(self, step: int, steps: int) -> dict[str, Any]:
        """Keywords of the call in training step 0, 1, ...: the inner model learns slowly at first, fully from `steps`.

        Afterwards, and whenever the model is not trained, inner_rate is 1.
        """
        first = self.config.first_share
        return {"inner_rate": first + (1.0 - first) * min(1.0, step / steps) if steps else 1.0}


class Block:
    """x + conv(RMSNorm(x)) with backbone "mamba", then x + mixer(RMSNorm(x)), then x + mlp(RMSNorm(x))."""

    def __init__(self, config: TTTConfig, rng: Any, dtype: Any):
        c, eps = config.d_model, config.norm_eps
        mamba = config.backbone == "mamba"
        self.conv_norm: Any = RMSNorm(c, dtype, eps, one_plus=False) if mamba else None
        self.conv: Any = Conv(config, rng, dtype) if mamba else None
        self.mixer_norm, self.mlp_norm = (RMSNorm(c, dtype, eps, one_plus=False) for _ in range(2))
        self.mixer = Mixer(config, rng, dtype)
        self.mlp = SwiGLU(c, config.mlp_width, rng, dtype)

    def __call__(self, x: Tensor, state: BlockState, at: int, rotation: Any, inner_rate: float) -> Any:
        """x (B, T, C) -> x (B, T, C) and the state after the last token."""
        before = None
        if self.conv is not None:
            y, before = self.conv(self.conv_norm(x), state.before)
            x = x + y
        y, state = self.mixer(self.mixer_norm(x), state._replace(before=before), at, rotation, inner_rate)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), state


class SwiGLU:
    """(silu(x W_gate) * (x W_up)) W_down, no biases (Shazeer 2020)."""

    def __init__(self, c: int, f: int, rng: Any, dtype: Any):
        self.gate, self.up, self.down = (matrix(rng, *shape, dtype) for shape in ((c, f), (c, f), (f, c)))

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(silu_gate(self.gate(x), self.up(x)))
