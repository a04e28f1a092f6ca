"""TTT-Linear and TTT-MLP in plain eager PyTorch: what tinyrec is measured against.

The same function and parameter names as the official ttt-lm-pytorch, with both of its backbones, in files for the inner
loop (torch_ttt_inner.py, whose docstring tells its two forms apart), the layer (torch_ttt_layer.py) and the model.
Around the inner loop three things are cheaper than in the official code: RMSNorm is one fused call, pairs are rotated
as complex numbers, and in decoding the convolutions of queries and keys share the window of their common inputs.

B batch, T time, C width, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.torch_ttt_inner import EPS
from benchmarks.torch_ttt_layer import TTT, Config, State, causal, depthwise, last_inputs, rope_table


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)


class Conv(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.norm, self.conv = RMSNorm(c.hidden_size), depthwise(c.hidden_size, c.conv_kernel)


class SwiGLU(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(c.hidden_size, c.intermediate_size, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.conv = Conv(c) if c.backbone == "mamba" else None
        self.seq_norm, self.ffn_norm = RMSNorm(c.hidden_size), RMSNorm(c.hidden_size)
        self.seq_modeling_block, self.mlp = TTT(c), SwiGLU(c)

    def forward(self, x: Tensor, turns: Tensor, position: int, state: State | None) -> tuple[Tensor, State | None]:
        if self.conv is not None:
            a = self.conv.norm(x)
            x = x + causal(self.conv.conv, a, None if state is None else state.stream)
            if state is not None:
                state = state._replace(stream=last_inputs(state.stream, a))
        mixed, state = self.seq_modeling_block(self.seq_norm(x), turns, position, state)
        x = x + mixed
        return x + self.mlp(self.ffn_norm(x)), state


class Cache(NamedTuple):
    """All that the model remembers."""

    position: int  # of the next token in its mini-batch
    states: list[State]


class Backbone(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList([Block(c) for _ in range(c.num_hidden_layers)])
        self.norm = RMSNorm(c.hidden_size)


class TTTModel(nn.Module):
    """Matrices start as PyTorch draws them, the embedding and the inner weights in the official range: time depends on
    neither."""

    def __init__(self, c: Config):
        super().__init__()
        self.c, self.model = c, Backbone(c)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.02)

    def empty_cache(self, batch: int) -> Cache:
        return Cache(0, [layer.seq_modeling_block.first_state(batch) for layer in self.model.layers])

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache | None]:
        """tokens (B, T) -> logits (B, T, V), and the cache after the last token if one is given."""
        x = self.model.embed_tokens(tokens)  # (B, T, C)
        position, states = cache or (0, [None] * len(self.model.layers))
        length, size, new_states = tokens.shape[1], self.c.mini_batch_size, []
        turns = rope_table(self.c, x.dtype)[torch.arange(position, position + length) % size]
        for layer, state in zip(self.model.layers, states, strict=True):
            x, state = layer(x, turns, position, state)
            new_states.append(state)
        logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight)
        return logits, None if cache is None else Cache((position + length) % size, new_states)
