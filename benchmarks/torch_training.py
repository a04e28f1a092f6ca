"""A training step of the PyTorch twins; `train_step` is for those whose call is model(tokens) -> (logits, state)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def next_token_loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of targets given tokens, both (B, T)."""
    logits, _ = model(tokens)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, targets: Tensor) -> float:
    """Forward, loss, backward, clip to norm 1, update."""
    return update(model, optimizer, next_token_loss(model, tokens, targets))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """What follows the forward in every twin: backward, clip to norm 1, update."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()
