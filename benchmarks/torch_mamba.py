"""Mamba in plain eager PyTorch, no kernel of its own: what tinyrec is measured against.

The same function and parameter names as `MambaForCausalLM` of transformers, in the fastest eager form found, not in the
official one: without CUDA that reads arrays (B, D, T, N) at one t after the other, and since the gradient of each such
slice is an array of zeros with one column set, its backward costs O(T^2). Two forms of the scan, the same numbers:

- `scan="steps"` walks over time with `unbind(1)` and `stack` and leaves the backward to autograd, which then keeps
  several arrays (B, D, N) for every step (torch_selective_scan.py);
- `scan="by_hand"`, the default and the faster one, brings its own backward as an autograd.Function: chunks of time
  that fit the cache, of which only the first state is kept and the rest computed anew, in place.

Convolution, norm and activations are PyTorch's own, each one fused call.
B batch, T time, M hidden size, D = expand M channels, N state size, R rank of the time steps, K width of the
convolution, V vocabulary, C steps in a chunk.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.torch_selective_scan import scan_steps

CHUNK = 16  # steps, whose states, C B N D numbers, should fit the cache


@dataclass(frozen=True)
class Config:
    """Names follow the MambaConfig of transformers."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    state_size: int
    time_step_rank: int
    expand: int = 2
    conv_kernel: int = 4
    layer_norm_epsilon: float = 1e-5
    scan: str = "by_hand"  # or "steps"


class State(NamedTuple):
    conv: Tensor  # (B, K - 1, D) the last inputs of the convolution, oldest first
    ssm: Tensor  # (B, D, N)


def walk(h: Tensor, dt: Tensor, x: Tensor, a: Tensor, b: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The states of one chunk, written to out (C, B, N, D), from h before it; time first, x = dt u; also the decays."""
    decay = torch.mul(dt[:, :, None], a).exp_()
    torch.mul(x[:, :, None], b[..., None], out=out)
    for decay_t, h_t in zip(decay, out, strict=True):
        h = torch.addcmul(h_t, decay_t, h, out=h_t)
    return decay, h


class ScanByHand(torch.autograd.Function):
    """`scan_steps`, forward and backward; no gradient for the first state and from the last. Inside, D is last."""

    @staticmethod
    def forward(
        ctx, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, dt, b, c = (x.transpose(0, 1).contiguous() for x in (u, dt, b, c))  # time first
        a, h = a.T.contiguous(), h.transpose(1, 2).contiguous()
        x, y = dt * u, d * u
        room, firsts = u.new_empty(CHUNK, *h.shape), []
        for start in range(0, len(u), CHUNK):
            now = slice(start, start + CHUNK)
            firsts.append(h.clone())
            states = room[: len(u[now])]
            _, h = walk(firsts[-1], dt[now], x[now], a, b[now], states)
            y[now] += (c[now, :, None] @ states)[:, :, 0]
        h = h.transpose(1, 2).contiguous()
        ctx.mark_non_differentiable(h)
        ctx.save_for_backward(u, dt, a, b, c, d, *firsts)
        return y.transpose(0, 1), h

    @staticmethod
    def backward(ctx, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, a, b, c, d, *firsts = ctx.saved_tensors
        dy = g.transpose(0, 1).contiguous()
        x, w, ddt = dt * u, torch.empty_like(u), torch.empty_like(u)
        da, db, dc = torch.zeros_like(a), torch.empty_like(b), torch.empty_like(c)
        carry = torch.zeros_like(firsts[0])
        h_room, dh_room = u.new_empty(CHUNK + 1, *carry.shape), u.new_empty(CHUNK, *carry.shape)
        for start in reversed(range(0, len(u), CHUNK)):
            now = slice(start, start + CHUNK)
            steps = len(u[now])
            h, dh = h_room[: steps + 1], dh_room[:steps]  # h[0] is the state before the chunk
            h[0] = firsts[start // CHUNK]
            decay, _ = walk(h[0], dt[now], x[now], a, b[now], h[1:])
            torch.mul(dy[now, :, None], c[now, ..., None], out=dh)
            for decay_t, dh_t in zip(reversed(decay.unbind()), reversed(dh.unbind()), strict=True):
                dh_t += carry
                torch.mul(decay_t, dh_t, out=carry)
            dc[now] = (h[1:] @ dy[now, ..., None])[..., 0]
            db[now] = (dh @ x[now, ..., None])[..., 0]
            w[now] = (b[now, :, None] @ dh)[:, :, 0]
            slope = dh.mul_(decay).mul_(h[:-1])  # dL / d(dt a)
            ddt[now] = torch.mul(slope, a, out=decay).sum(2)
            da += slope.mul_(dt[now, :, None]).sum((0, 1))
        ddt += u * w
        du = d * dy + dt * w
        du, ddt, db, dc = (x.transpose(0, 1) for x in (du, ddt, db, dc))
        return du, ddt, da.T, db, dc, (dy * u).sum((0, 1)), None


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:  # (..., M) -> (..., M)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Mixer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        width, n, k = c.expand * c.hidden_size, c.state_size, c.conv_kernel
        self.sizes, self.scan = (c.time_step_rank, n, n), {"by_hand": ScanByHand.apply, "steps": scan_steps}[c.scan]
        self.in_proj = nn.Linear(c.hidden_size, 2 * width, bias=False)
        self.conv1d = nn.Conv1d(width, width, k, groups=width, padding=k - 1)
        self.x_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(c.time_step_rank, width)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, n + 1)).repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.out_proj = nn.Linear(width, c.hidden_size, bias=False)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, M) -> (B, T, M), state after the last token; T = 1 if a state is given."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        k, length = self.conv1d.kernel_size[0], x.shape[1]
        if state is None:
            past = F.pad(u, (0, 0, k - 1, 0))[:, length:].detach()  # (B, K - 1, D)
            u = self.conv1d(u.transpose(1, 2))[..., :length].transpose(1, 2)
        else:
            window = torch.cat([state.conv, u], dim=1)  # (B, K, D)
            past = window[:, 1:]
            u = (window * self.conv1d.weight[:, 0].T).sum(1, keepdim=True) + self.conv1d.bias
        u = F.silu(u)
        low, b, c = self.x_proj(u).split(self.sizes, dim=-1)
        dt = F.softplus(self.dt_proj(low))
        a = -torch.exp(self.A_log)  # (D, N)
        if state is None:
            y, h = self.scan(u, dt, a, b, c, self.D, u.new_zeros(len(u), *a.shape))
        else:
            decay = torch.exp(dt.transpose(1, 2) * a)  # (B, D, N)
            h = torch.addcmul((dt * u).transpose(1, 2) * b, decay, state.ssm)
            y = (h @ c.transpose(1, 2)).transpose(1, 2) + self.D * u
        return self.out_proj(y * F.silu(z)), State(past, h)


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.norm, self.mixer = RMSNorm(c.hidden_size, c.layer_norm_epsilon), Mixer(c)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        mixed, state = self.mixer(self.norm(x), state)
        return x + mixed, state


class Backbone(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.embeddings = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList([Block(c) for _ in range(c.num_hidden_layers)])
        self.norm_f = RMSNorm(c.hidden_size, c.layer_norm_epsilon)


class Mamba(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.backbone = Backbone(c)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.lm_head.weight = self.backbone.embeddings.weight
        nn.init.normal_(self.lm_head.weight, std=0.02)

    def forward(self, tokens: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """tokens (B, T), T = 1 if states are given -> logits (B, T, V), states after the last token."""
        x, new_states = self.backbone.embeddings(tokens), []  # (B, T, M)
        for layer, state in zip(self.backbone.layers, states or [None] * len(self.backbone.layers), strict=True):
            x, state = layer(x, state)
            new_states.append(state)
        return self.lm_head(self.backbone.norm_f(x)), new_states
