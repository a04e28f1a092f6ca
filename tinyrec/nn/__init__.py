"""Plain classes that own parameters. A module is any object; `parameters` finds its tensors by walking attributes."""

from .init import lecun_normal, normal, zeros
from .kv_cache import KVCache
from .layers import GatedMLP, Linear, RMSNorm
from .parameters import count, parameters, without_tape

__all__ = [
    "GatedMLP", "KVCache", "Linear", "RMSNorm",
    "count", "lecun_normal", "normal", "parameters", "without_tape", "zeros",
]  # fmt: skip
