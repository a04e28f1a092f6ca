"""The optimizer of a model: by its name, and with what the model knows about its own parameters."""

from __future__ import annotations

from typing import Any

from ..nn import parameters
from .adamw import AdamW, is_matrix
from .huginn_adam import HuginnAdam

OPTIMIZERS: dict[str, type[AdamW]] = {"adamw": AdamW, "huginn": HuginnAdam}


def optimizer_for(model: Any, lr: float, weight_decay: float, kind: str = "adamw") -> AdamW:
    """An optimizer for all parameters of a model, which may name exceptions, by the last word of their names.

    model.lr_scales, a dict: factors of the learning rate. model.no_decay, a collection: matrices that must not decay.
    weight_decay is that of the class: times lr in AdamW, per step in HuginnAdam.
    """
    if kind not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {kind!r}, expected one of {', '.join(OPTIMIZERS)}")
    scales, spared = getattr(model, "lr_scales", {}), getattr(model, "no_decay", ())
    return OPTIMIZERS[kind](
        parameters(model),
        lr,
        weight_decay=weight_decay,
        decays=lambda name, tensor: is_matrix(name, tensor) and _last_word(name) not in spared,
        scale=lambda name: scales.get(_last_word(name), 1.0),
    )


def _last_word(name: str) -> str:
    return name.rpartition(".")[2]
