"""RWKV-4 in plain eager PyTorch: what tinyrec is measured against.

The same function and the same parameter names as the official RWKV-v4 modules, whose WKV is a CUDA kernel. On a CPU
there are three ways:

- `wkv="loop"`: the published recurrence, one step after the other under autograd, see torch_wkv.py;
- `wkv="fused"`: the same fused by hand, the fastest eager form that we know;
- `huggingface`: the model of the transformers package, which indexes at every step: its backward is O(T^2).

`RNN` reads one token at a time, as the official RWKV_RNN does.
B batch, T time, C width, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.torch_training import update
from benchmarks.torch_wkv import WKVS, shift, wkv_step


@dataclass(frozen=True)
class Config:
    """Names follow the official GPTConfig."""

    vocab_size: int
    n_embd: int
    n_layer: int
    wkv: str = "fused"  # or "loop"


class SquaredReLU(torch.autograd.Function):
    """max(x, 0)^2, whose backward passes over the array twice; that of square(relu(x)) does four times."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = torch.relu(x)
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (g * x).mul_(2.0)


def linear(width_in: int, width_out: int) -> nn.Linear:
    return nn.Linear(width_in, width_out, bias=False)


class TimeMix(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.time_decay = nn.Parameter(torch.linspace(-5, 3, c.n_embd))
        self.time_first = nn.Parameter(torch.full((c.n_embd,), -1.2))
        self.time_mix_k, self.time_mix_v, self.time_mix_r = (nn.Parameter(torch.rand(1, 1, c.n_embd)) for _ in range(3))
        self.key, self.value, self.receptance = (linear(c.n_embd, c.n_embd) for _ in range(3))
        self.output = linear(c.n_embd, c.n_embd)
        self.wkv = WKVS[c.wkv]

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        past = shift(x)
        k = self.key(torch.lerp(past, x, self.time_mix_k))  # x * mix + past * (1 - mix) in one operation
        v = self.value(torch.lerp(past, x, self.time_mix_v))
        r = torch.sigmoid(self.receptance(torch.lerp(past, x, self.time_mix_r)))
        return self.output(r * self.wkv(self.time_decay, self.time_first, k, v))


class ChannelMix(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.time_mix_k, self.time_mix_r = (nn.Parameter(torch.rand(1, 1, c.n_embd)) for _ in range(2))
        self.key, self.value = linear(c.n_embd, 4 * c.n_embd), linear(4 * c.n_embd, c.n_embd)
        self.receptance = linear(c.n_embd, c.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        past = shift(x)
        k = SquaredReLU.apply(self.key(torch.lerp(past, x, self.time_mix_k)))
        return torch.sigmoid(self.receptance(torch.lerp(past, x, self.time_mix_r))) * self.value(k)


class Block(nn.Module):
    def __init__(self, c: Config, first: bool):
        super().__init__()
        self.ln0 = nn.LayerNorm(c.n_embd) if first else nn.Identity()
        self.ln1, self.ln2 = nn.LayerNorm(c.n_embd), nn.LayerNorm(c.n_embd)
        self.att, self.ffn = TimeMix(c), ChannelMix(c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln0(x)
        x = x + self.att(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class RWKV(nn.Module):
    """Weights start as PyTorch draws them, decays in the official range: time depends on neither."""

    def __init__(self, c: Config):
        super().__init__()
        self.emb = nn.Embedding(c.vocab_size, c.n_embd)
        self.blocks = nn.ModuleList([Block(c, first=i == 0) for i in range(c.n_layer)])
        self.ln_out = nn.LayerNorm(c.n_embd)
        self.head = linear(c.n_embd, c.vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> logits (B, T, V)
        x = self.emb(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_out(x))


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> float:
    """Forward, loss, backward, clip to norm 1, update; tokens (B, T + 1)."""
    return update(model, optimizer, next_token_loss(model, tokens))


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross entropy of every token given those before it; the model may return logits, or an object with them."""
    out = model(tokens[:, :-1])
    logits = out if isinstance(out, Tensor) else out.logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class LayerState(NamedTuple):
    """All that one layer remembers; five vectors (C,)."""

    ffn_x: Tensor  # the last inputs of the two mixers
    att_x: Tensor
    p: Tensor
    q: Tensor
    o: Tensor


class RNN:
    """One token at a time: vectors, `matrix @ vector`, a Python loop over the layers."""

    def __init__(self, model: RWKV):
        self.weights = {name: p.detach().squeeze() for name, p in model.named_parameters()}
        self.layers = []
        for i in range(len(model.blocks)):
            w = {n.removeprefix(f"blocks.{i}."): p for n, p in self.weights.items() if n.startswith(f"blocks.{i}.")}
            self.layers.append(w | {"att.time_decay": -torch.exp(w["att.time_decay"])})

    def initial_state(self) -> list[LayerState]:
        zero = torch.zeros_like(self.weights["ln_out.weight"])
        return [LayerState(zero, zero, zero, zero, zero - 1e30) for _ in self.layers]

    @torch.no_grad()
    def step(self, token: int, state: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        """The logits (V,) after one more token, and the new state."""
        x, new_state = self.weights["emb.weight"][token], []
        x = layer_norm(x, self.layers[0], "ln0")
        for w, layer in zip(self.layers, state, strict=True):
            att_x = layer_norm(x, w, "ln1")
            out, *pqo = time_mix(att_x, layer, w)
            x = x + out
            ffn_x = layer_norm(x, w, "ln2")
            x = x + channel_mix(ffn_x, layer, w)
            new_state.append(LayerState(ffn_x, att_x, *pqo))
        return self.weights["head.weight"] @ layer_norm(x, self.weights, "ln_out"), new_state


def layer_norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape, w[f"{name}.weight"], w[f"{name}.bias"])


def time_mix(x: Tensor, state: LayerState, w: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """x (C,) -> out, p, q, o, each (C,)."""
    k = w["att.key.weight"] @ (x * w["att.time_mix_k"] + state.att_x * (1 - w["att.time_mix_k"]))
    v = w["att.value.weight"] @ (x * w["att.time_mix_v"] + state.att_x * (1 - w["att.time_mix_v"]))
    r = w["att.receptance.weight"] @ (x * w["att.time_mix_r"] + state.att_x * (1 - w["att.time_mix_r"]))
    y, *pqo = wkv_step(w["att.time_decay"], w["att.time_first"], k, v, state.p, state.q, state.o)
    return w["att.output.weight"] @ (torch.sigmoid(r) * y), *pqo


def channel_mix(x: Tensor, state: LayerState, w: dict[str, Tensor]) -> Tensor:  # (C,) -> (C,)
    k = w["ffn.key.weight"] @ (x * w["ffn.time_mix_k"] + state.ffn_x * (1 - w["ffn.time_mix_k"]))
    r = w["ffn.receptance.weight"] @ (x * w["ffn.time_mix_r"] + state.ffn_x * (1 - w["ffn.time_mix_r"]))
    return torch.sigmoid(r) * (w["ffn.value.weight"] @ torch.square(torch.relu(k)))


def huggingface(c: Config) -> nn.Module:
    """RwkvForCausalLM of the same sizes; NotImplementedError where transformers is not installed.

    Its rescaling of the weights between training and evaluation is switched off. Decode at batch 1 only: for more,
    its one-token path adds arrays of shape (B, C) and (B, 1, C), and mixes the sequences up.
    """
    try:
        from transformers import RwkvConfig, RwkvForCausalLM
    except ImportError as error:
        raise NotImplementedError("the transformers package is not installed; `make bench` installs it") from error
    sizes = {"vocab_size": c.vocab_size, "hidden_size": c.n_embd, "num_hidden_layers": c.n_layer}
    return RwkvForCausalLM(RwkvConfig(**sizes, rescale_every=0)).train()
