"""Plain classes that own parameters. A module is any object; `parameters` finds its tensors by walking attributes."""

from .init import full, lecun_normal, normal, orthogonal, parameter, uniform, zeros
from .kv_cache import KVCache
from .layers import GatedMLP, LayerNorm, Linear, RMSNorm
from .parameters import count, parameters, without_tape

__all__ = [
    "GatedMLP", "KVCache", "LayerNorm", "Linear", "RMSNorm",
    "count", "full", "lecun_normal", "normal", "orthogonal", "parameter", "parameters", "uniform", "without_tape",
    "zeros",
]  # fmt: skip
