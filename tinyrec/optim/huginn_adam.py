"""The Adam that trained the recurrent-depth model Huginn: Geiping et al. 2025, arXiv 2502.05171, a variant of AdamW.

In the authors' code it is `ELLISAdam`, and the switches have these names, but for `atan_adam`, here `atan2`.
In the order of the code, symbols as in adamw.py, t counted from 1; equation numbers: docs/recurrent_depth.md.

    running_init      m = g, v = g^2 before the first update, instead of 0
    update_clipping   v = max(v, eps^2);  alpha becomes alpha / max(1, RMS),  RMS = sqrt(mean(g^2 / v)) of one tensor
    weight_decay      theta = (1 - lambda alpha / alpha_peak) theta
    atan2             theta = theta - alpha / (1 - beta_1^t) atan2(m, sqrt(v / (1 - beta_2^t))),  instead of
                      theta = theta - alpha / (1 - beta_1^t) m / (sqrt(v / (1 - beta_2^t)) + eps)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..backend import Array, get_xp
from ..tape import Tensor
from .adamw import AdamW, _Slot, is_matrix


class HuginnAdam(AdamW):
    """AdamW with four changes; what is not mentioned here is as there.

    The defaults are those of the published run, but for eps, which is the authors' default.

    running_init: the means start at the first gradient, not at zero. The bias correction, made for a start at zero,
    stays nevertheless, as in the authors' code, so the first steps are too long: under a constant gradient by
    sqrt(1 - beta_2^t) / (1 - beta_1^t), which is 2.24, 1.64, 1.39, 1.25 for t = 1 to 4, 0.91 for t = 20, and goes to 1.

    update_clipping: where a gradient outgrows its history, v lags behind, and the whole tensor makes a shorter step.
    RMS is at most 1 / sqrt(1 - beta_2) = 4.47, its value in a first step without running_init. The decay is not cut.

    atan2: atan2(m, s) is m / s for a small m, but pi/4 where m = s, never above pi/2, and 0 where both are 0; so there
    is no eps to choose, and no division by zero. (update_clipping has its eps: v stays at eps^2 or above, as in the
    authors' code.) A first step is 2.20 lr with running_init; without it, and without update_clipping, 0.997 lr.

    weight_decay: lambda is the share of theta lost in a step at the peak rate, which is the lr given here. It fades
    with a schedule as AdamW's does, but is not multiplied by the peak: AdamW's would be lambda / alpha_peak, which is
    1 for the published 4e-5 at a peak of 4e-5.

    skip_first: the first call of `step` does nothing at all: no decay, and m and v never see its gradient. So does the
    published loop, which leaves that step to compilers. Until then t is -1, so that a saved state knows.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        weight_decay: float = 4e-5,
        decays: Callable[[str, Tensor], bool] = is_matrix,
        scale: Callable[[str], float] = lambda name: 1.0,
        *,
        running_init: bool = True,
        update_clipping: bool = True,
        atan2: bool = True,
        skip_first: bool = True,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, decays, scale)
        if self.lr == 0.0:
            raise ValueError("lr must be positive, got 0: the decay is measured in parts of it")
        if self.weight_decay > 1.0:
            raise ValueError(f"weight_decay is a share per step, expected 0 to 1, got {weight_decay}")
        self.peak = self.lr
        self.running_init, self.update_clipping, self.atan2 = running_init, update_clipping, atan2
        if skip_first:
            for slot in self._slots.values():
                slot.t = -1

    def step(self, lr: float | None = None) -> None:
        waiting = [slot for slot in self._slots.values() if slot.t < 0]
        if not waiting:
            return super().step(lr)
        for slot in waiting:  # all of them, with or without a gradient
            slot.t = 0

    def _update(self, slot: _Slot, g: Array, lr: float) -> None:
        """The formulas at the head of this file."""
        xp = get_xp(slot.tensor.data)
        theta, m, v, (beta1, beta2) = slot.tensor.data, slot.m, slot.v, self.betas
        s = self._scratch_like(theta)

        if self.running_init and slot.t == 0:
            m[...] = g  # (27)
            xp.multiply(g, g, out=v)
        self._average(slot, g, s)  # (28) t = t + 1; m and v as in AdamW, which leaves a mean of equal things as it is

        rate: Any = lr / (1.0 - beta1**slot.t)
        if self.update_clipping:
            xp.maximum(v, max(self.eps**2, float(np.finfo(v.dtype).tiny)), out=v)  # eps^2 may be 0 in float32
            xp.multiply(g, g, out=s)
            s /= v
            rate = rate / xp.maximum(xp.sqrt(s.mean()), 1.0)  # (29) of the dtype of s; on a GPU it stays there

        if slot.decays:
            theta *= 1.0 - lr / self.peak * self.weight_decay  # (30) with the rate that is not clipped

        xp.sqrt(v, out=s)
        s *= 1.0 / math.sqrt(1.0 - beta2**slot.t)
        if self.atan2:
            xp.arctan2(m, s, out=s)
        else:
            s += self.eps
            xp.divide(m, s, out=s)
        s *= rate
        theta -= s  # (31)
