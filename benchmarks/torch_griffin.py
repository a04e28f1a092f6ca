"""Hawk, Griffin and the MQA transformer in plain eager PyTorch: what tinyrec is measured against.

A twin of the torch modules of google-deepmind/recurrentgemma: the same functions, the same parameter names, and
the same operations wherever they decide the speed, so that its times speak for the official code:

- the RG-LRU walks over time in a Python loop that reads `a[:, t]` and writes `y[:, t]`. The gradient of every
  such slice is a full (B, T, E) array of zeros with one row set, so the backward costs O(T^2);
- local attention scores all T x T pairs and masks most of them away;
- nothing is fused by hand. (The official default to recompute every block in the backward is left out: it saves
  memory and costs time.)

`scan="unbind"` walks over time with `unbind(1)` and `stack` instead: the fair form, O(T), the same numbers.
B batch, T time, D width, E width of the recurrence, N query heads, K head width, W window, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.torch_rglru import RGLRU, Conv1D
from benchmarks.torch_training import update

MASKED = -2.3819763e38  # the official "minus infinity" for attention scores


@dataclass(frozen=True)
class Config:
    """Names follow the official GriffinConfig; kinds are "recurrent" and "attention"."""

    vocab_size: int
    width: int
    mlp_expanded_width: int
    num_heads: int  # query heads, and the blocks of the block-diagonal gates
    lru_width: int
    block_types: tuple[str, ...]
    attention_window_size: int  # a query sees W earlier tokens and itself
    embeddings_scale_by_sqrt_dim: bool = False
    logits_soft_cap: float = 0.0
    scan: str = "official"  # or "unbind"


class RecurrentState(NamedTuple):
    rg_lru_state: Tensor  # (B, E)
    conv1d_state: Tensor  # (B, 3, E) the last inputs of the convolution, oldest first


class AttentionState(NamedTuple):
    keys: Tensor  # (B, W, 1, K) a ring: position p sits in slot p mod W, already rotated
    values: Tensor  # (B, W, 1, K)
    num_tokens: Tensor  # (B,)


State = RecurrentState | AttentionState


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        mean_square = torch.mean(torch.square(x), dim=-1, keepdim=True)
        return x * torch.rsqrt(mean_square + 1e-6) * (1 + self.scale)


class RecurrentBlock(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.linear_y = nn.Linear(c.width, c.lru_width)
        self.linear_x = nn.Linear(c.width, c.lru_width)
        self.linear_out = nn.Linear(c.lru_width, c.width)
        self.conv_1d = Conv1D(c.lru_width)
        self.rg_lru = RGLRU(c.lru_width, c.num_heads, c.scan)

    def forward(self, x: Tensor, positions: Tensor, state: RecurrentState | None) -> tuple[Tensor, RecurrentState]:
        h, past = state or (None, None)
        y = F.gelu(self.linear_y(x), approximate="tanh")
        x, past = self.conv_1d(self.linear_x(x), positions, past)
        x, h = self.rg_lru(x, positions, h)
        return self.linear_out(x * y), RecurrentState(h, past)


def apply_rope(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate the first half of every head by its position; x (B, T, N, K)."""
    rotated, passed = torch.chunk(x, 2, dim=-1)
    width = rotated.shape[-1]
    frequencies = 1.0 / 10_000 ** (2 * torch.arange(width // 2) / width)
    angles = positions[..., None, None] * frequencies  # (B, T, 1, K/4)
    sin, cos = torch.sin(angles), torch.cos(angles)
    first, second = torch.chunk(rotated, 2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, passed], dim=-1)


def document_mask(positions: Tensor, window: int) -> Tensor:
    """(B, T, T): query t sees key s if 0 <= t - s <= W in the same document."""
    document = torch.cumsum(positions == 0, dim=-1)
    t = torch.arange(positions.shape[1])
    distance = t[:, None] - t
    return (document[:, :, None] == document[:, None, :]) & (distance >= 0) & (distance <= window)


def ring_mask(num_tokens: Tensor, window: int) -> Tensor:
    """(B, 1, W + 1): the next query sees the written slots of the ring, and itself."""
    slot = torch.arange(window)
    lap = num_tokens[:, None] // window * window
    position = torch.where(slot + lap < num_tokens[:, None], slot + lap, slot + lap - window)
    return torch.cat([position >= 0, torch.ones_like(position[:, :1], dtype=torch.bool)], dim=1)[:, None]


def ring_from_prompt(x: Tensor, window: int) -> Tensor:
    """Put the last W of x (B, T, 1, K) into their slots of an otherwise empty ring (B, W, 1, K)."""
    length = x.shape[1]
    x = torch.roll(x[:, -window:], length % window if length > window else 0, dims=1)
    return F.pad(x, (0, 0, 0, 0, 0, window - x.shape[1]))


class AttentionBlock(nn.Module):
    """Multi-query attention: N query heads share one key and value head."""

    def __init__(self, c: Config):
        super().__init__()
        self.heads, self.window = c.num_heads, c.attention_window_size
        self.proj_q = nn.Linear(c.width, c.width, bias=False)
        self.proj_k = nn.Linear(c.width, c.width // c.num_heads, bias=False)
        self.proj_v = nn.Linear(c.width, c.width // c.num_heads, bias=False)
        self.proj_final = nn.Linear(c.width, c.width)

    def forward(self, x: Tensor, positions: Tensor, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        queries = apply_rope(self.proj_q(x).unflatten(-1, (self.heads, -1)), positions)  # (B, T, N, K)
        keys = apply_rope(self.proj_k(x)[:, :, None], positions)  # (B, T, 1, K)
        values = self.proj_v(x)[:, :, None]
        if state is None:
            mask = document_mask(positions, self.window)
            rings = ring_from_prompt(keys.detach(), self.window), ring_from_prompt(values.detach(), self.window)
            state = AttentionState(*rings, positions[:, -1] + 1)
        else:  # one token: attend to the ring and itself, then write it into the ring, in place
            mask = ring_mask(state.num_tokens, self.window)
            new_keys, new_values, (old_keys, old_values, count) = keys, values, state
            keys, values = torch.cat([old_keys, keys], dim=1), torch.cat([old_values, values], dim=1)
            row, slot = torch.arange(len(x)), count % self.window
            old_keys[row, slot], old_values[row, slot] = new_keys[:, 0], new_values[:, 0]
            count += 1
        scores = torch.einsum("btnk,bsnk->bnts", queries, keys) * queries.shape[-1] ** -0.5
        scores = torch.where(mask[:, None], scores, MASKED).type(torch.float32)
        probs = F.softmax(scores, dim=-1).type_as(x)
        mixed = torch.einsum("bnts,bsnk->btnk", probs, values)
        return self.proj_final(mixed.flatten(-2)), state


class GatedUp(nn.Module):
    """Both branches of the MLP in one einsum."""

    def __init__(self, width: int, expanded: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, width, expanded) * width**-0.5)
        self.b = nn.Parameter(torch.zeros(2, 1, 1, expanded))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (2, B, T, 3D)
        return torch.einsum("...td,cdf->c...tf", x, self.w) + self.b


class MLPBlock(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.ffw_up = GatedUp(c.width, c.mlp_expanded_width)
        self.ffw_down = nn.Linear(c.mlp_expanded_width, c.width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.ffw_up(x)
        return self.ffw_down(F.gelu(gate, approximate="tanh") * up)


class ResidualBlock(nn.Module):
    def __init__(self, c: Config, kind: str):
        super().__init__()
        self.kind = kind
        self.temporal_pre_norm = RMSNorm(c.width)
        if kind == "recurrent":
            self.recurrent_block = RecurrentBlock(c)
        else:
            self.attention_block = AttentionBlock(c)
        self.channel_pre_norm = RMSNorm(c.width)
        self.mlp_block = MLPBlock(c)

    def forward(self, x: Tensor, positions: Tensor, state: State | None) -> tuple[Tensor, State]:
        mixer = self.recurrent_block if self.kind == "recurrent" else self.attention_block
        mixed, state = mixer(self.temporal_pre_norm(x), positions, state)
        x = x + mixed
        return x + self.mlp_block(self.channel_pre_norm(x)), state


class Embedder(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.input_embedding = nn.Parameter(torch.randn(c.vocab_size, c.width) * c.width**-0.5)


class Griffin(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.config = c
        self.embedder = Embedder(c)
        self.blocks = nn.ModuleList([ResidualBlock(c, kind) for kind in c.block_types])
        self.final_norm = RMSNorm(c.width)

    def forward(
        self, tokens: Tensor, positions: Tensor, states: list[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """tokens, positions (B, T), T = 1 if states are given -> logits (B, T, V), states after the last token."""
        embedding = self.embedder.input_embedding
        x = embedding[tokens]  # (B, T, D)
        if self.config.embeddings_scale_by_sqrt_dim:
            x = x * torch.tensor(self.config.width**0.5).type(torch.bfloat16)
        new_states = []
        for block, state in zip(self.blocks, states or [None] * len(self.blocks), strict=True):
            x, state = block(x, positions, state)
            new_states.append(state)
        logits = self.final_norm(x) @ embedding.T
        cap = self.config.logits_soft_cap
        return (torch.tanh(logits / cap) * cap if cap else logits), new_states


def next_token_loss(model: Griffin, tokens: Tensor, positions: Tensor) -> Tensor:
    """Mean cross entropy of every token given those before it; tokens (B, T)."""
    logits, _ = model(tokens, positions)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def train_step(model: Griffin, optimizer: torch.optim.Optimizer, tokens: Tensor, positions: Tensor) -> float:
    """Forward, loss, backward, clip to norm 1, update."""
    return update(model, optimizer, next_token_loss(model, tokens, positions))
