"""Plain classes that own parameters. A module is any object; `parameters` finds its tensors by walking attributes."""

from .init import full, lecun_normal, normal, orthogonal, parameter, truncated, truncated_normal, uniform, zeros
from .kv_cache import KVCache, extended
from .layers import GatedMLP, LayerNorm, Linear, RMSNorm
from .parameters import count, move, parameters, without_tape
from .rows import over_rms, standardized

__all__ = [
    "GatedMLP", "KVCache", "LayerNorm", "Linear", "RMSNorm",
    "count", "extended", "full", "lecun_normal", "move", "normal", "orthogonal", "over_rms", "parameter", "parameters",
    "standardized", "truncated", "truncated_normal", "uniform", "without_tape", "zeros",
]  # fmt: skip
