"""How long the steps are over the run."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "linear", "constant", "trapezoid")


def learning_rate(
    step: int,
    *,
    schedule: str = "cosine",
    peak: float,
    warmup: int,
    steps: int,
    floor: float = 0.0,
    cooldown: int = 0,
) -> float:
    """The learning rate of step 0, 1, ..., steps - 1 of a run.

    cosine, linear, constant                 trapezoid

    peak          /\\                         peak          /----------.
                /    ` .                                 /             .
              /         ` .                            /                .
    floor   /               ` __             floor   /                   ` __
            0  warmup      steps                     0  warmup        |  steps
                                                         steps - cooldown

    All rise in a straight line: peak / (warmup + 1) at step 0, peak at step `warmup`. From there the first three fall
    half a cosine wave, a straight line, or not at all ("constant"). The trapezoid stays at the peak and falls in a
    straight line over the last `cooldown` steps, which only it has; with 0 it never falls. Floor is reached at step
    `steps`, the first that is no longer run, and kept.

    A run no longer than its warm-up ends on the way up. Where warm-up and cooldown overlap, the lower line counts.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if step < 0 or warmup < 0 or steps < 1:
        raise ValueError(f"expected step >= 0, warmup >= 0 and steps >= 1, got {step}, {warmup} and {steps}")
    if not 0.0 <= floor <= peak < math.inf:
        raise ValueError(f"expected 0 <= floor <= peak, got floor {floor} and peak {peak}")
    if cooldown < 0:
        raise ValueError(f"expected cooldown >= 0, got {cooldown}")
    rise = peak * (step + 1) / (warmup + 1) if step < warmup else peak
    if schedule == "trapezoid":
        left = max(0, steps - step)  # to be run, this one among them
        fall = floor + (peak - floor) * left / cooldown if left < cooldown else peak
        return float(min(rise, fall))
    if step < warmup or schedule == "constant":
        return float(rise)
    done = min(1.0, (step - warmup) / max(1, steps - warmup))  # 0 at the peak, 1 at the end
    share = 0.5 * (1.0 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0 - done
    return float(floor + (peak - floor) * share)
