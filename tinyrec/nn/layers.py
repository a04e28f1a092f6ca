"""The layers that several models share."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops import gelu_gate, layernorm, linear, rmsnorm
from ..tape import Tensor
from .init import full, lecun_normal, zeros


class Linear:
    """y (..., M) = x (..., N) w (N, M) + b (M,), w ~ N(0, scale / N), b = 0 or absent."""

    def __init__(
        self, n: int, m: int, rng: np.random.Generator, dtype: Any = "float32", bias: bool = True, scale: float = 1.0
    ):
        self.w = lecun_normal(rng, (n, m), n, dtype, scale)
        self.b = zeros((m,), dtype) if bias else None

    @classmethod
    def of(cls, w: Tensor, b: Tensor | None = None) -> Linear:
        """The layer with these parameters, w (N, M) and b (M,)."""
        layer = object.__new__(cls)
        layer.w, layer.b = w, b
        return layer

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.w) if self.b is None else linear(x, self.w, self.b)


class RMSNorm:
    """y (..., D) = x / rms(x) * (1 + gain), gain = 0 at the start; or * gain, gain = 1, without one_plus.

    has_gain=False: y = x / rms(x), no parameter.
    """

    def __init__(
        self, d: int, dtype: Any = "float32", eps: float = 1e-6, one_plus: bool = True, has_gain: bool = True
    ):
        self.gain = full((d,), 0.0 if one_plus else 1.0, dtype) if has_gain else None
        self.eps, self.one_plus = eps, one_plus

    def __call__(self, x: Tensor) -> Tensor:
        return rmsnorm(x, self.gain, eps=self.eps, one_plus=self.one_plus)


class LayerNorm:
    """y (..., D) = (x - mean) / deviation * gain + bias, gain = 1 and bias = 0 at the start."""

    def __init__(self, d: int, dtype: Any = "float32", eps: float = 1e-5):
        self.gain, self.bias, self.eps = full((d,), 1.0, dtype), zeros((d,), dtype), eps

    def __call__(self, x: Tensor) -> Tensor:
        return layernorm(x, self.gain, self.bias, eps=self.eps)


class GatedMLP:
    """GeGLU (Shazeer 2020): y (..., D) = (gelu(x W_gate + b) * (x W_up + b)) W_down + b, through a wider layer F."""

    def __init__(
        self,
        d: int,
        f: int,
        rng: np.random.Generator,
        dtype: Any = "float32",
        in_scale: float = 1.0,
        out_scale: float = 1.0,
    ):
        self.gate = Linear(d, f, rng, dtype, scale=in_scale)
        self.up = Linear(d, f, rng, dtype, scale=in_scale)
        self.down = Linear(f, d, rng, dtype, scale=out_scale)

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(gelu_gate(self.gate(x), self.up(x)))
