"""What the recurrent-depth transformer leaves to chance: how often it iterates in training, and where it starts.

Equation numbers: docs/recurrent_depth.md.
"""

from __future__ import annotations

import math
from typing import Any

from ..backend import get_xp
from ..nn import truncated
from .recurrent_depth_config import RecurrentDepthConfig


def draw_steps(rng: Any, config: RecurrentDepthConfig) -> int:
    """r, the iterations of one training step. All but "fixed" have the mean r-bar + 1.

    "lognormal-poisson": Poisson(e^tau) + 1, tau ~ N(log r-bar - 1/8, 1/4), section 3.3: often few, at times very many.
    "poisson": Poisson(r-bar) + 1. "uniform": 1 ... 2 r-bar + 1, all alike. "fixed": r-bar.
    """
    mean = config.mean_steps
    if config.sampler == "fixed":
        return mean
    if config.sampler == "uniform":
        return int(rng.integers(1, 2 * mean + 2))
    spread = 0.5 if config.sampler == "lognormal-poisson" else 0.0
    tau = math.log(mean) - 0.5 * spread**2 + spread * rng.standard_normal()  # (14): e^tau is r-bar on average
    return int(rng.poisson(math.exp(tau))) + 1  # (14)


def draw_state(rng: Any, config: RecurrentDepthConfig, batch: int, time: int, like: Any) -> Any:
    """s_0 (B, T, h), of the dtype and on the device of `like`; another one for each token, section 3.1.

    "like-init": as an embedding starts, N(0, (sigma gamma)^2) = N(0, 2 / 5), cut off at 3 deviations. "normal": of
    variance 1. "embed": of variance 1 / h. "unit": standardized for each token. "zero".
    """
    kind, h = config.state_init, config.d_model
    std = {"like-init": config.std * config.gamma, "normal": 1.0, "embed": h**-0.5, "unit": 1.0, "zero": 0.0}[kind]
    x = truncated(rng, (batch, time, h)) * std  # (17)
    if kind == "unit":
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    return get_xp(like).asarray(x.astype(like.dtype))
