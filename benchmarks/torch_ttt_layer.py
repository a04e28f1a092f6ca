"""The TTT layer in plain eager PyTorch: what is around the inner loop of torch_ttt_inner.py; names as in torch_ttt.py.

Without a state all tokens are read in the dual form, the last mini-batch being as short as it must. With one, whole
mini-batches are, and the tokens before and after them one by one.

B batch, T time, C width, H heads, D = C / H, K tokens in a mini-batch, N mini-batches.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.torch_ttt_inner import EPS, LOOPS, TOKENS, Weights, step_sizes


@dataclass(frozen=True)
class Config:
    """Names follow the official TTTConfig; backbone "mamba" sets its pre_conv, share_qk and use_gate."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    ttt_layer_type: str = "linear"  # or "mlp"
    backbone: str = "transformer"  # or "mamba"
    mini_batch_size: int = 16
    ttt_base_lr: float = 1.0  # 0.1 for the MLP
    conv_kernel: int = 4
    rope_theta: float = 10_000.0
    inner: str = "official"  # or "hoisted"


class State(NamedTuple):
    """Of one block; the windows, (B, 3, C), oldest first, are of the Mamba backbone only."""

    weights: Weights  # at the start of the mini-batch
    sums: Weights  # of lam times gradient inside of it
    inputs: Tensor | None  # of the convolutions of queries and keys
    stream: Tensor | None  # of the convolution before the layer


@cache
def rope_table(c: Config, dtype: torch.dtype) -> Tensor:
    """exp(i position theta^(-2j / D)) of the positions in a mini-batch: (K, 1, D / 2), complex."""
    width = c.hidden_size // c.num_attention_heads
    frequencies = c.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(c.mini_batch_size, dtype=torch.float64), frequencies)[:, None]
    return torch.polar(torch.ones_like(angles), angles).to(dtype.to_complex())


@cache
def reciprocals(tokens: int, dtype: torch.dtype) -> Tensor:  # 1, 1/2, ..., 1/K
    return (1 / torch.arange(1, tokens + 1, dtype=torch.float64)).to(dtype)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """(x[2j] + i x[2j + 1]) times turns; x (B, T, H, D), turns (T, 1, D / 2)."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


def depthwise(width: int, taps: int) -> nn.Conv1d:
    return nn.Conv1d(width, width, taps, groups=width, padding=taps - 1)


def causal(conv: nn.Conv1d, x: Tensor, past: Tensor | None) -> Tensor:
    """The convolution over time of x (B, T, C), after the inputs past (B, 3, C), or none."""
    taps, length = conv.kernel_size[0], x.shape[1]
    if past is None:
        return conv(x.mT)[..., :length].mT.contiguous()
    window = torch.cat([past, x], dim=1)
    if length == 1:
        return (window * conv.weight[:, 0].T).sum(1, keepdim=True) + conv.bias
    return conv(window.mT)[..., taps - 1 : taps - 1 + length].mT.contiguous()


def last_inputs(past: Tensor, x: Tensor) -> Tensor:
    return torch.cat([past, x], dim=1)[:, -past.shape[1] :]


class TTT(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c, self.loop, self.token = c, LOOPS[c.ttt_layer_type, c.inner], TOKENS[c.ttt_layer_type]
        width, heads, head = c.hidden_size, c.num_attention_heads, c.hidden_size // c.num_attention_heads
        self.q_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        if c.backbone == "mamba":
            self.g_proj = nn.Linear(width, width, bias=False)
            self.conv_q, self.conv_k = (depthwise(width, c.conv_kernel) for _ in range(2))
        else:
            self.k_proj = nn.Linear(width, width, bias=False)
        sizes = (head, head) if c.ttt_layer_type == "linear" else (head, 4 * head, head)
        self.names: list[str] = []  # of the first inner weights
        for i, (rows, columns) in enumerate(pairwise(sizes), 1):
            self.names += [f"W{i}", f"b{i}"]
            setattr(self, f"W{i}", nn.Parameter(0.02 * torch.randn(heads, rows, columns)))
            setattr(self, f"b{i}", nn.Parameter(torch.zeros(heads, 1, columns)))
        self.learnable_token_idx = nn.Parameter(torch.zeros(c.mini_batch_size))
        self.learnable_ttt_lr_weight = nn.Parameter(0.02 * torch.randn(heads, 1, width))
        self.learnable_ttt_lr_bias = nn.Parameter(torch.zeros(heads, 1))
        self.ttt_norm_weight = nn.Parameter(torch.ones(heads, head))
        self.ttt_norm_bias = nn.Parameter(torch.zeros(heads, head))
        self.post_norm = nn.LayerNorm(width, eps=EPS)

    def first_weights(self, batch: int) -> Weights:
        return tuple(p.expand(batch, *p.shape) for p in (getattr(self, name) for name in self.names))

    def first_state(self, batch: int) -> State:
        weights, past = self.first_weights(batch), None
        if self.c.backbone == "mamba":
            past = weights[0].new_zeros(batch, self.c.conv_kernel - 1, self.c.hidden_size)
        return State(weights, tuple(map(torch.zeros_like, weights)), past, past)

    def forward(
        self, u: Tensor, turns: Tensor, position: int = 0, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        """u (B, T, C), of which the first is number `position` of a mini-batch -> (B, T, C), state after the last."""
        p, v, inputs = self.q_proj(u), self.v_proj(u), None if state is None else state.inputs
        if self.c.backbone == "mamba":
            q, k = causal(self.conv_q, p, inputs), causal(self.conv_k, p, inputs)
            inputs = None if inputs is None else last_inputs(inputs, p)
        else:
            q, k = p, self.k_proj(u)
        q, k, v = (x.unflatten(-1, (self.c.num_attention_heads, -1)) for x in (q, k, v))  # (B, T, H, D)
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, turns), rotate(k, turns), v))  # (B, H, T, D)
        lam = torch.sigmoid(F.linear(u, self.learnable_ttt_lr_weight[:, 0], self.learnable_ttt_lr_bias[:, 0]))
        lam = self.c.ttt_base_lr / q.shape[-1] * lam.mT  # (B, H, T)
        if state is None:
            z, _ = self.whole(q, k, v, lam, self.first_weights(len(u)))
        else:
            z, weights, sums = self.read(q, k, v, lam, position, state)
            state = state._replace(weights=weights, sums=sums, inputs=inputs)
        o = self.post_norm(z.transpose(1, 2).flatten(2))
        if self.c.backbone == "mamba":
            o = F.gelu(self.g_proj(u), approximate="tanh") * o
        return self.o_proj(o), state

    def norm_and_tau(self) -> tuple[Tensor, Tensor, Tensor]:
        tau = reciprocals(self.c.mini_batch_size, self.learnable_token_idx.dtype) + self.learnable_token_idx
        return self.ttt_norm_weight[:, None], self.ttt_norm_bias[:, None], tau.clamp_min(0.0)

    def whole(self, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, weights: Weights) -> tuple[Tensor, Weights]:
        """Mini-batches from their start, q, k, v (B, H, T, D), lam (B, H, T) -> z (B, H, T, D), last weights."""
        size, length, outs = self.c.mini_batch_size, q.shape[2], []
        gain, bias, tau = self.norm_and_tau()
        for start, end in ((0, length // size * size), (length // size * size, length)):
            if start < end:
                shape = (-1, min(size, end - start))
                qkv = (x[:, :, start:end].unflatten(2, shape) for x in (q, k, v))  # (B, H, N, K, D)
                eta = step_sizes(lam[:, :, start:end].unflatten(2, shape), tau[: shape[1]])
                z, *weights = self.loop(*qkv, eta, gain, bias, *weights)
                outs.append(z.flatten(2, 3))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2), tuple(weights)

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, position: int, state: State
    ) -> tuple[Tensor, Weights, Weights]:
        """The same from anywhere in a mini-batch to anywhere; also the sums of the last one."""
        size, length, (weights, sums, *_) = self.c.mini_batch_size, q.shape[2], state
        gain, bias, tau = self.norm_and_tau()
        t, outs = 0, []
        while t < length:
            n = (position + t) % size
            if n == 0 and length - t >= size:
                now = slice(t, t + (length - t) // size * size)
                z, weights = self.whole(q[:, :, now], k[:, :, now], v[:, :, now], lam[:, :, now], weights)
            else:
                now = slice(t, t + 1)
                qkv = q[:, :, now], k[:, :, now], v[:, :, now]
                z, sums, after = self.token(*qkv, lam[:, :, now, None], tau[n], gain, bias, weights, sums)
                if n == size - 1:
                    weights, sums = after, tuple(map(torch.zeros_like, after))
            outs.append(z)
            t = now.stop
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2), weights, sums
