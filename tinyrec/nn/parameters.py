"""Finding the parameters of a model by walking its attributes: no registration, names are paths."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from ..backend import to_cpu, to_gpu
from ..tape import Tensor


def parameters(model: Any) -> Iterator[tuple[str, Tensor]]:
    """("blocks.0.mixer.conv_w", Tensor) for every tensor that wants a gradient, in the order of the attributes.

    Walks attributes, lists, tuples and dicts. A tensor reached twice (tied weights) comes once, under its first name.
    """
    yield from _walk(model, "", set())


def count(model: Any) -> int:
    """How many numbers the parameters hold."""
    return sum(t.size for _, t in parameters(model))


def move(model: Any, device: str) -> Any:
    """The model, its parameters now on the device, "cpu" or "gpu". Raises NoGPUError."""
    to = {"cpu": to_cpu, "gpu": to_gpu}[device]
    for _, tensor in parameters(model):
        tensor.data = to(tensor.data)
    return model


def without_tape(model: Any) -> Any:
    """The same model with plain arrays for parameters (shared, not copied), for decoding.

    An op that is given arrays only makes no Tensors and records nothing, which for one token is a good part of the
    work. What the model returns are arrays too.
    """
    if isinstance(model, Tensor):
        return model.data
    if type(model) in (list, tuple):
        return type(model)(without_tape(item) for item in model)
    if type(model) is dict:
        return {key: without_tape(item) for key, item in model.items()}
    if not _has_attributes(model):
        return model
    twin = object.__new__(type(model))
    twin.__dict__.update({key: without_tape(item) for key, item in vars(model).items()})
    return twin


def _has_attributes(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, type | FunctionType | ModuleType)


def _walk(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if id(value) in seen:
        return
    if isinstance(value, Tensor):
        seen.add(id(value))
        if value.requires_grad:
            yield name, value
    elif isinstance(value, list | tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _walk(item, f"{name}.{key}" if name else str(key), seen)
    elif _has_attributes(value):
        seen.add(id(value))
        for key, item in vars(value).items():
            yield from _walk(item, f"{name}.{key}" if name else key, seen)
