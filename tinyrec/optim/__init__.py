"""From gradients to new parameters: two Adams, clipping by the global norm, and the learning rate over the run.

    optimizer = optimizer_for(model, lr=2e-3, weight_decay=0.1)             # or kind="huginn"
    loss_and_grads(model, tokens, targets)                                  # sets .grad of every parameter
    norm = clip_by_global_norm(parameters(model), 1.0)
    optimizer.step(learning_rate(step, peak=2e-3, warmup=50, steps=1000))
"""

from .adamw import AdamW, is_matrix
from .clip import clip_by_global_norm, global_norm
from .for_model import OPTIMIZERS, optimizer_for
from .huginn_adam import HuginnAdam
from .schedule import SCHEDULES, learning_rate

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AdamW",
    "HuginnAdam",
    "clip_by_global_norm",
    "global_norm",
    "is_matrix",
    "learning_rate",
    "optimizer_for",
]
