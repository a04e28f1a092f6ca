"""Rotary position embedding (Su et al. 2021): rotate pairs of features by an angle that grows with the position."""

from __future__ import annotations

from ..backend import get_xp
from ..tape import op


def rope_tables(positions, rotated: int, base: float = 10000.0, dtype="float32"):
    """cos, sin (..., rotated / 2) of position * base^(-2j / rotated), positions (...) whole; worked out in float64."""
    return cos_and_sin(positions, rope_frequencies(get_xp(positions), rotated, base), dtype)


def rope_frequencies(xp, rotated: int, base: float = 10000.0):
    """base^(-2j / rotated), (rotated / 2,) float64: by how much each pair turns from a position to the next."""
    if rotated % 2:
        raise ValueError(f"rope rotates pairs of features, so their number must be even, got {rotated}")
    return base ** (-xp.arange(0, rotated, 2, dtype="float64") / rotated)


def cos_and_sin(positions, frequency, dtype="float32"):
    """cos, sin (..., R / 2) of the angles; positions (...) whole, frequency (R / 2,)."""
    xp, angle = get_xp(positions), positions[..., None] * frequency
    return xp.cos(angle).astype(dtype), xp.sin(angle).astype(dtype)


@op
def rope(x, cos, sin, *, pairing: str = "half"):
    """Rotate the first R features of each head; the others pass through (partial rotation).

    x (B, T, H, K); cos, sin (B or 1, T, R / 2), constants. pairing "half" turns (x_j, x_{j + R/2}), as RecurrentGemma
    and Llama do; "adjacent" turns (x_{2j}, x_{2j+1}), as in the paper.
    """
    r = 2 * cos.shape[-1]
    if pairing not in ("half", "adjacent") or r > x.shape[-1]:
        raise ValueError(f"pairing {pairing!r} must be 'half' or 'adjacent', and R = {r} at most K = {x.shape[-1]}")
    c, s = cos[:, :, None, :], sin[:, :, None, :]
    y = x.copy()
    if pairing == "adjacent":  # (x_{2j}, x_{2j+1}) is the complex number x_{2j} + i x_{2j+1}, the rotation e^{i angle}
        number = f"complex{16 * x.dtype.itemsize}"
        turned = y[..., :r].view(number)
        turned *= (c + 1j * s).astype(number)
    else:
        first, second = slice(0, r // 2), slice(r // 2, r)
        y[..., first] = x[..., first] * c - x[..., second] * s
        y[..., second] = x[..., second] * c + x[..., first] * s
    return y, (cos, sin, pairing)


@rope.vjp
def rope_vjp(g, cos, sin, pairing):  # a rotation: its transpose turns the other way
    return rope(g, cos, -sin, pairing=pairing), None, None
