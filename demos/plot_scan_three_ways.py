"""
One recurrence, three ways, and one that fails
==============================================

Claim: h_t = a_t h_{t-1} + b_t can be computed step by step, in two levels, or by a parallel scan, with the same result.
The closed form with cumulative products is right on paper, and breaks in float32 as soon as a_0 ... a_t is too small.

    python demos/plot_scan_three_ways.py      prints three tables, draws demos/out/scan_three_ways.png
"""

import time
from pathlib import Path

import matplotlib
import numpy as np

from tinyrec.recurrences.scan import CHUNK, SHORT_ROW, scan_into

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
T = 2048

# %%
# The ways
# --------
# All take a, b (T, ...) and start from h = 0. Equation numbers are those of docs/recurrences/scan.md.


def loop(a, b):
    """(1), the definition: two NumPy calls a step."""
    h, previous = np.empty_like(b), np.zeros_like(b[0])
    for t in range(len(a)):
        np.multiply(a[t], previous, out=h[t])
        h[t] += b[t]
        previous = h[t]
    return h


def library(a, b):
    """(9) (10) (11), two levels, where a row is short; the loop where it is long. Both chosen by scan_into."""
    h = np.empty_like(b)
    scan_into(a, b, np.zeros_like(b[0]), h)
    return h


def kogge_stone(a, b):
    """(8) in log2 T rounds: after the round of distance d, (a_t, b_t) is the map of the last 2 d steps."""
    a, b = a.copy(), b.copy()
    d = 1
    while d < len(a):
        b[d:] = a[d:] * b[:-d] + b[d:]  # the right side is computed before it is stored
        a[d:] = a[d:] * a[:-d]
        d *= 2
    return b


def closed_form(a, b):
    """A_t = a_0 ... a_t, h_t = A_t sum_{s <= t} b_s / A_s. Do not use."""
    product = np.cumprod(a, axis=0)
    with np.errstate(all="ignore"):  # it overflows, divides by zero, and makes NaN
        return product * np.cumsum(b / product, axis=0)


WAYS = {"loop": loop, "tinyrec": library, "Kogge-Stone": kogge_stone, "closed form": closed_form}
COLOURS = dict(zip(WAYS, ("black", "tab:blue", "tab:green", "tab:red"), strict=True))

# %%
# The values
# ----------
# Constant decays, one per channel, from very short to very long memory. The truth is the loop in float64.

decays = np.array([0.5, 0.9, 0.95, 0.99, 0.999])
a = np.broadcast_to(decays, (T, len(decays))).copy()
b = np.random.default_rng(0).standard_normal(a.shape)
truth = loop(a, b)
single = {name: way(a.astype(np.float32), b.astype(np.float32)) for name, way in WAYS.items()}
errors = {name: np.abs(h - truth) / np.abs(truth).max(axis=0) for name, h in single.items()}

print(f"largest error over {T} steps in float32, as a part of the largest |h|")
print(f"{'decay a':12}" + "".join(f"{d:>10}" for d in decays))
for name, error in errors.items():
    cells = [f"{e:10.1e}" if np.isfinite(e) else f"{'broken':>10}" for e in error.max(axis=0)]
    print(f"{name:12}" + "".join(cells))

# %%
# Where the closed form breaks
# ----------------------------
# b / A overflows when a^t falls below about 1 / 3.4e38, the largest float32: at t = 88.7 / -log a.

broken = ~np.isfinite(single["closed form"])
first = np.where(broken.any(axis=0), broken.argmax(axis=0), -1)
print("\nfirst step at which the closed form is not finite, and 88.7 / -log a")
for decay, step in zip(decays, first, strict=True):
    seen = f"step {step}" if step >= 0 else f"not within {T} steps"
    print(f"a = {decay:<6} {seen:22} predicted {np.log(np.finfo(np.float32).max) / -np.log(decay):8.0f}")

# %%
# The time
# --------
# Taken in turns, so that whatever else the machine does falls on all alike; the median of the ratios to the loop. Only
# ratios mean something, and only on this machine.


def ratios(width, rounds=7):
    """{name: median of (time / time of the loop)} for rows of `width` numbers."""
    rng = np.random.default_rng(1)
    a = rng.uniform(0.9, 1, (T, width)).astype(np.float32)
    b = rng.standard_normal((T, width)).astype(np.float32)
    taken = {name: [] for name in WAYS}
    for _ in range(rounds + 1):
        for name, way in WAYS.items():
            start = time.perf_counter()
            way(a, b)
            taken[name].append(time.perf_counter() - start)
    table = np.array(list(taken.values()))[:, 1:]  # the first round warms up
    return dict(zip(WAYS, np.median(table / table[0], axis=1), strict=True))


WIDTHS = (16, 128, 1024)
times = {width: ratios(width) for width in WIDTHS}
print(f"\ntime over the loop's, {T} steps; tinyrec takes two levels ({CHUNK} steps a chunk) below rows of {SHORT_ROW}")
print(f"{'row of':12}" + "".join(f"{width:>10}" for width in WIDTHS))
for name in WAYS:
    print(f"{name:12}" + "".join(f"{times[width][name]:10.2f}" for width in WIDTHS))

# %%
# The figure
# ----------

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
largest = np.finfo(np.float32).max
left.plot(np.abs(truth).max(axis=1), color="0.7", label="|h|, largest of all decays")
shades = plt.cm.viridis(np.linspace(0, 0.9, len(decays)))
for channel, (decay, step, shade) in enumerate(zip(decays, first, shades, strict=True)):
    end = step if step >= 0 else T
    inside = np.cumsum(b[:end, channel] / np.cumprod(a[:end, channel]))
    left.plot(np.abs(inside), color=shade, label=f"sum of b / A, a = {decay}")
    if step >= 0:
        left.plot(step, largest, "x", color=COLOURS["closed form"], markersize=9, markeredgewidth=2)
left.axhline(largest, color=COLOURS["closed form"], linewidth=0.8, linestyle=":")
left.annotate("largest float32", (1000, largest), (0, 4), textcoords="offset points", fontsize=8)
left.set(xlabel="step", ylabel="size", yscale="log", ylim=(1e-3, 1e43), title="what the closed form must hold")
left.legend(fontsize=8, loc="center right")

for i, name in enumerate(WAYS):
    heights, places = [times[width][name] for width in WIDTHS], np.arange(len(WIDTHS)) + 0.2 * (i - 1.5)
    bars = right.bar(places, heights, 0.2, color=COLOURS[name], label=name)
    right.bar_label(bars, fmt="%.2f", fontsize=7)
right.axhline(1, color="grey", linewidth=0.8)
right.set_xticks(range(len(WIDTHS)), [f"rows of {w}" for w in WIDTHS])
right.set(yscale="log", ylabel="time / time of the loop", title=f"{T} steps on this machine")
right.legend(fontsize=9, loc="upper left")
figure.savefig(OUT / "scan_three_ways.png", dpi=120)
print(f"\nfigure: {OUT.name}/scan_three_ways.png")
