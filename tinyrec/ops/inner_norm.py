"""The LayerNorm inside of TTT's inner model, a gain and a bias for each head, and the inner loss's gradient through it.

Equation numbers are those of docs/recurrences/ttt_linear.md. z (..., H, m, d) are the rows of H heads, gain and bias
(H, d).
"""

from __future__ import annotations

from ..backend import get_xp
from ..tape import fused
from .elementwise import pow
from .reduce import mean
from .shape import getitem

EPS = 1e-6


def naive_norm(z, gain, bias):
    """LayerNorm over the last axis in ops of the tape."""
    h, _ = _normalised_ops(z)
    return _of_rows(gain) * h + _of_rows(bias)


def naive_gradient(z, target, gain, bias):
    """(3) in ops of the tape."""
    (h, rho), gain = _normalised_ops(z), _of_rows(gain)
    e = gain * (gain * h + _of_rows(bias) - target)
    return rho * (e - mean(e, axis=-1, keepdims=True) - h * mean(e * h, axis=-1, keepdims=True))


def _normalised_ops(z):
    centred = z - mean(z, axis=-1, keepdims=True)
    rho = pow(mean(centred * centred, axis=-1, keepdims=True) + EPS, exponent=-0.5)
    return centred * rho, rho


def _of_rows(x):
    return getitem(x, index=(slice(None), None))  # (H, 1, d)


@fused(naive_norm)
def inner_norm(z, gain, bias):
    """y = gain h + bias, h = (z - mean) rho, rho = (variance + EPS)^(-1/2)."""
    _check(z, z, gain, bias)
    (h, rho), gain = _normalised(z), gain[:, None]
    y = gain * h
    y += bias[:, None]
    return y, (gain, h, rho)


@inner_norm.vjp
def inner_norm_vjp(g, gain, h, rho):  # with dh = gain g: dz = rho (dh - mean(dh) - h mean(dh h))
    dz = gain * g
    slope = _mean(dz * h)
    dz -= _mean(dz)
    dz -= h * slope
    dz *= rho
    return dz, rows_of_heads(g * h), rows_of_heads(g)


@fused(naive_gradient)
def inner_gradient(z, target, gain, bias):
    """(3): the gradient in z of |gain h + bias - target|^2 / 2, where h is z normalised; target like z.

    LayerNorm's backward in closed form, with e = gain (gain h + bias - target) the gradient in h.
    """
    _check(z, target, gain, bias)
    (h, rho), gain = _normalised(z), gain[:, None]
    y = gain * h
    e = y - target
    e += bias[:, None]
    off = y + e  # gain h twice: what the gain's gradient needs
    e *= gain
    slope = _mean(e * h)
    g = e - _mean(e)
    g -= h * slope
    g *= rho
    return g, (g, h, rho, e, slope, off, gain)


@inner_gradient.vjp
def inner_gradient_vjp(dg, g, h, rho, e, slope, off, gain):
    """The second derivative of the inner loss, (14) to (17)."""
    n = dg * rho
    along = _mean(n * h)
    de = n - _mean(n)
    de -= h * along  # (14): the projection of (3) is symmetric
    doff = gain * de
    dh = gain * doff
    n *= slope
    dh -= n
    dh -= e * along  # (15)
    both = dh * h
    both += dg * g  # the last term: rho's own change
    dz = dh - _mean(dh)
    dz -= h * _mean(both)
    dz *= rho  # (16)
    off = off * de
    return dz, -doff, rows_of_heads(off), rows_of_heads(doff)  # (17)


def _normalised(z) -> tuple:
    """h (..., H, m, d) and rho (..., H, m, 1)."""
    h = z - _mean(z)
    xp = get_xp(z)
    rho = 1.0 / xp.sqrt(_mean(h * h) + EPS)
    h *= rho
    return h, rho


def _mean(x):
    """Over the last axis, which stays with size 1; as a product with a vector, several times faster than a sum."""
    xp = get_xp(x)
    d = x.shape[-1]
    return (x.reshape(-1, d) @ xp.full(d, 1.0 / d, x.dtype)).reshape(*x.shape[:-1], 1)


def rows_of_heads(x):
    """The sum of all rows of each head: (..., H, m, d) -> (H, d). A product with ones is faster than .sum()."""
    xp, (heads, m, d) = get_xp(x), x.shape[-3:]
    return (xp.ones((1, m), x.dtype) @ x).reshape(-1, heads, d).sum(axis=0)


def _check(z, target, gain, bias):
    if z.ndim < 3 or target.shape != z.shape or not gain.shape == bias.shape == (z.shape[-3], z.shape[-1]):
        raise ValueError("expected z (..., H, m, d), a target like it, and gain and bias (H, d)")
