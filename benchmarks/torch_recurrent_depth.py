"""The recurrent-depth transformer in plain eager PyTorch: what tinyrec is measured against.

The same function and the same parameter names as the official `raven_modeling_minimal.py` (Huginn-0125), with its
operations: norms of five elementwise ones (`F.rms_norm` is no faster here), `scaled_dot_product_attention`, one matrix
for queries, keys and values, one for both halves of the MLP, and every iteration through the whole adapter. Three
things differ. The official casts to float32 are left out, since all is float32 already. The head is the embedding, not
a second name for it. And pairs are rotated as complex numbers, in one operation instead of seven and faster.

In decoding each layer and iteration has keys and values of its own. Three caches, the same numbers:

- `StackingCache` does as the official default, HuginnDynamicCache: it keeps single tokens and stacks all of them for
  every new one;
- `GrowingCache` copies as much, but appends to one tensor with `torch.cat`, the usual way;
- `RoomyCache` writes into room set aside, as the official HuginnStaticCache does, and copies nothing: the fair form.

B batch, T time, D width, H heads, K head width, M MLP width, V vocabulary.
"""

import math
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.torch_training import update


@dataclass(frozen=True)
class Config:
    """Names follow the official RavenConfig."""

    vocab_size: int
    n_embd: int
    n_heads: int
    intermediate_size: int
    n_layers_in_prelude: int
    n_layers_in_recurrent_block: int
    n_layers_in_coda: int
    block_size: int  # the longest context
    norm_eps: float = 1e-6
    rope_base: float = 50_000.0


class StackingCache:
    """Keys and values of every slot, that is of every layer and iteration, by position: each (B, H, K)."""

    def __init__(self) -> None:
        self.length = 0  # tokens that all slots hold; the model counts it up
        self.slots: dict[int, tuple[dict[int, Tensor], dict[int, Tensor]]] = {}

    def append(self, slot: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the slot, (B, H, T, K), these at the end."""
        all_keys, all_values = self.slots.setdefault(slot, ({}, {}))
        all_keys.update(enumerate(keys.unbind(dim=2), self.length))
        all_values.update(enumerate(values.unbind(dim=2), self.length))
        return torch.stack(list(all_keys.values()), dim=2), torch.stack(list(all_values.values()), dim=2)

    def cut(self, length: int) -> None:
        """Forget all but the first tokens."""
        self.length = length
        for tokens in (held for pair in self.slots.values() for held in pair):
            for position in range(length, len(tokens)):
                del tokens[position]


class GrowingCache:
    """The same as two tensors (B, H, T, K) for each slot, copied to append."""

    def __init__(self) -> None:
        self.length = 0
        self.slots: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, slot: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.length:
            old_keys, old_values = self.slots[slot]
            keys, values = torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)
        self.slots[slot] = keys, values
        return keys, values

    def cut(self, length: int) -> None:
        self.length = length
        self.slots = {slot: (k[:, :, :length], v[:, :, :length]) for slot, (k, v) in self.slots.items()}


class RoomyCache:
    """The same with room for `most` tokens from the start."""

    def __init__(self, most: int) -> None:
        self.length, self.most = 0, most
        self.slots: dict[int, Tensor] = {}  # (2, B, H, most, K)

    def append(self, slot: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if slot not in self.slots:
            B, H, _, K = keys.shape
            self.slots[slot] = keys.new_zeros(2, B, H, self.most, K)
        room, end = self.slots[slot], self.length + keys.shape[2]
        room[0, :, :, self.length : end], room[1, :, :, self.length : end] = keys, values
        return room[0, :, :, :end], room[1, :, :, :end]

    def cut(self, length: int) -> None:
        self.length = length


Cache = StackingCache | GrowingCache | RoomyCache


class RMSNorm(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(c.n_embd)), c.norm_eps

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rope_table(c: Config, dtype: torch.dtype = torch.float32) -> Tensor:
    """cos and sin of position * base^(-2j / K): (1, block_size, 1, K / 2, 2)."""
    width = c.n_embd // c.n_heads
    frequencies = c.rope_base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(c.block_size, dtype=torch.float64), frequencies)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)[None, :, None].to(dtype)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """(x[2j] + i x[2j + 1]) (cos + i sin); x (B, T, heads, K), table (1, T, 1, K / 2, 2)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # (B, T, heads, K / 2)
    return torch.view_as_real(pairs * torch.view_as_complex(table)).flatten(-2)


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.heads, self.width = c.n_heads, c.n_embd // c.n_heads
        self.Wqkv = nn.Linear(c.n_embd, 3 * c.n_embd, bias=False)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, self.heads, self.width))
        self.proj = nn.Linear(c.n_embd, c.n_embd, bias=False)

    def forward(self, x: Tensor, table: Tensor, slot: int, cache: Cache | None) -> Tensor:  # (B, T, D) -> (B, T, D)
        qkv = self.Wqkv(x).unflatten(-1, (3 * self.heads, self.width))  # (B, T, 3H, K)
        qk, v = qkv.split([2 * self.heads, self.heads], dim=2)
        qk = rotate(qk + self.qk_bias.view(2 * self.heads, self.width), table)
        q, k, v = (part.transpose(1, 2) for part in (*qk.chunk(2, dim=2), v))  # (B, H, T, K)
        if cache is not None:
            k, v = cache.append(slot, k, v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        return self.proj(out.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.fc = nn.Linear(c.n_embd, 2 * c.intermediate_size, bias=False)
        self.proj = nn.Linear(c.intermediate_size, c.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fc(x).chunk(2, dim=-1)  # (B, T, M) each
        return self.proj(F.silu(gate) * up)


class SandwichBlock(nn.Module):
    """norm_2 and norm_4 act on the sum: the stream itself is normalised, twice."""

    def __init__(self, c: Config):
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3, self.norm_4 = (RMSNorm(c) for _ in range(4))
        self.attn, self.mlp = Attention(c), GatedMLP(c)

    def forward(self, x: Tensor, table: Tensor, slot: int, cache: Cache | None) -> Tensor:
        x = self.norm_2(self.attn(self.norm_1(x), table, slot, cache) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)


class Raven(nn.Module):
    """Matrices start as PyTorch draws them, the embedding in the official range: time depends on neither."""

    def __init__(self, c: Config):
        super().__init__()
        blocks = {
            name: nn.ModuleList([SandwichBlock(c) for _ in range(layers)])
            for name, layers in [
                ("prelude", c.n_layers_in_prelude),
                ("core_block", c.n_layers_in_recurrent_block),
                ("coda", c.n_layers_in_coda),
            ]
        }
        wte, adapter = nn.Embedding(c.vocab_size, c.n_embd), nn.Linear(2 * c.n_embd, c.n_embd, bias=False)
        self.transformer = nn.ModuleDict({"wte": wte, "adapter": adapter, **blocks, "ln_f": RMSNorm(c)})
        self.register_buffer("freqs_cis", rope_table(c))
        self.embed_scale = math.sqrt(c.n_embd)
        nn.init.normal_(wte.weight, std=math.sqrt(2 / (5 * c.n_embd)))

    def forward(
        self, tokens: Tensor, n: int, k: int, state: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """tokens (B, T), T = 1 if the cache holds any -> logits (B, T, V) after n silent and k recorded iterations.

        state (B, T, D) is what they start from; None: zeros.
        """
        parts, slots = self.transformer, count()
        start = 0 if cache is None else cache.length
        table = self.freqs_cis[:, start : start + tokens.shape[1]]

        def run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
            for block in blocks:
                x = block(x, table, next(slots), cache)
            return x

        def iterate(state: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
            return run(parts.core_block, parts.adapter(torch.cat([state, e], dim=-1)))

        e = run(parts.prelude, parts.wte(tokens) * self.embed_scale)
        state = torch.zeros_like(e) if state is None else state
        with torch.no_grad():
            for _ in range(n):
                state = iterate(state)
        for _ in range(k):
            state = iterate(state)
        y = parts.ln_f(run(parts.coda, parts.ln_f(state)))
        if cache is not None:
            cache.length += tokens.shape[1]
        return F.linear(y, parts.wte.weight)


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy; logits (B, T, V), targets (B, T), where -100 is not scored."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train_step(
    model: Raven,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    targets: Tensor,
    n: int,
    k: int,
    state: Tensor | None = None,
) -> float:
    """Forward, loss, backward, clip to norm 1, update; n, k and state as in the model."""
    return update(model, optimizer, next_token_loss(model(tokens, n, k, state), targets))
