"""RMSNorm and LayerNorm over the last axis."""

from __future__ import annotations

from ..backend import get_xp, row_dots
from ..tape import op
from .elementwise import mul, pow
from .matmul import column_sums
from .reduce import mean


@op
def inner(a, b):
    """sum of a b over the last axis, which stays with size 1: (..., D), (..., D) -> (..., 1); no product array."""
    if a.shape != b.shape:
        raise ValueError("a and b must have one shape")
    return row_dots(a, b)[..., None], (a, b)


@inner.vjp
def inner_vjp(g, a, b):
    return g * b, g * a


@op
def rmsnorm(x, gain=None, *, eps: float = 1e-6, one_plus: bool = False):
    """y = x rho gain, rho = (mean(x^2) + eps)^(-1/2); gain (D,), or 1 + gain with one_plus, or 1 when left out."""
    if gain is not None and gain.shape != x.shape[-1:]:
        raise ValueError(f"gain must be ({x.shape[-1]},)")
    xp = get_xp(x)
    y = x / xp.sqrt(row_dots(x, x)[..., None] * (1.0 / x.shape[-1]) + eps)
    if gain is not None:
        y *= gain + 1.0 if one_plus else gain
    return y, (x, gain, eps, one_plus)


@rmsnorm.vjp
def rmsnorm_vjp(g, x, gain, eps, one_plus):  # dx = rho (gw - x rho^2 mean(gw x)), gw = g gain; dgain = sum g x rho
    d = x.shape[-1]
    rho = pow(inner(x, x) * (1.0 / d) + eps, exponent=-0.5)
    gw = g if gain is None else g * (gain + 1.0 if one_plus else gain)
    dx = rho * (gw - x * (rho * rho * inner(gw, x) * (1.0 / d)))
    return dx, None if gain is None else column_sums(g * x, rho)


@op
def layernorm(x, gain, bias, *, eps: float = 1e-5):
    """y = (x - mean) rho gain + bias, rho = (variance + eps)^(-1/2); gain, bias (D,)."""
    if gain.shape != x.shape[-1:] or bias.shape != gain.shape:
        raise ValueError(f"gain and bias must be ({x.shape[-1]},)")
    centred = x - x.mean(axis=-1, keepdims=True)
    xp = get_xp(x)
    y = centred / xp.sqrt(row_dots(centred, centred)[..., None] * (1.0 / x.shape[-1]) + eps)
    y *= gain
    y += bias
    return y, (x, gain, eps)


@layernorm.vjp
def layernorm_vjp(g, x, gain, eps):  # dx = rho (gw - mean(gw) - xh mean(gw xh)), gw = g gain, xh = (x - mean) rho
    d = x.shape[-1]
    centred = x - mean(x, axis=-1, keepdims=True)
    rho = pow(inner(centred, centred) * (1.0 / d) + eps, exponent=-0.5)
    xh, gw = centred * rho, mul(g, gain)
    dx = rho * (gw - mean(gw, axis=-1, keepdims=True) - xh * (inner(gw, xh) * (1.0 / d)))
    return dx, column_sums(g * xh), column_sums(g)
