"""
How far back does an RG-LRU remember?
=====================================

Claim: at initialisation, with the start of the paper's text every channel remembers about eight times longer than with
that of the released code; and the gate r stretches any memory without limit: r -> 0 freezes the state.

    python demos/plot_rglru_memory.py      prints three tables, draws demos/out/rglru_memory.png
"""

from pathlib import Path

import matplotlib
import numpy as np

from tinyrec.models.griffin import initial_lam
from tinyrec.recurrences.rglru import rglru

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
E, T = 256, 2048  # channels, steps that are run
GATES = np.array([0.02, 0.1, 0.5, 0.9])  # values of r; a fresh model's gates stand around 0.5
STARTS = {"code": "tab:blue", "paper": "tab:orange"}


def logit(p):
    return np.log(p / (1 - p))


# %%
# The formula
# -----------
# With a constant gate r a state fades as a^k, a = exp(-8 softplus(lam) r), so it has halved after
# log 2 / (8 softplus(lam) r) steps. `initial_lam` draws lam as the released code or as the paper's text has it.


def half_lives(lam, r):
    """Steps until a state has halved, (R, E) for gate values r (R,) and lam (E,)."""
    return np.log(2) / (8 * np.logaddexp(lam, 0) * r[:, None])


lams = {start: initial_lam(np.random.default_rng(0), E, start) for start in STARTS}

# %%
# The measurement
# ---------------
# One input of 1 at t = 0, silence after it, through the op itself: (7) of docs/recurrences/rglru.md, which is the scan
# of docs/recurrences/scan.md with gates. One sequence of the batch for each gate value. When is h first <= h_0 / 2?


def impulse_response(lam, r):
    """h (R, T, E) of an impulse at t = 0 with the gate held at r (R,)."""
    shape = (len(r), T, E)
    u = np.zeros(shape, np.float32)
    u[:, 0] = 1
    zr = np.broadcast_to(logit(r).astype(np.float32)[:, None, None], shape)
    h, _ = rglru(u, zr, np.zeros(shape, np.float32), lam.astype(np.float32), np.zeros((len(r), E), np.float32))
    return h


responses = {start: impulse_response(lam, GATES) for start, lam in lams.items()}
print(f"half-lives in steps over {E} channels; measured: first step with h_t <= h_0 / 2, of {T} steps run")
print("init       r   shortest   median  longest   halved in time   as computed")
measured = {}
for start, lam in lams.items():
    h = responses[start]
    halved = h <= 0.5 * h[:, :1]
    measured[start] = np.where(halved.any(axis=1), halved.argmax(axis=1), -1)  # (R, E), -1: not within T steps
    computed = half_lives(lam, GATES)
    for r, k, m in zip(GATES, computed, measured[start], strict=True):
        seen = m >= 0
        agree = np.abs(m[seen] - np.ceil(k[seen])) <= 1e-3 * k[seen] + 1  # float32 rounds the step where h crosses
        low, mid, high = k.min(), np.median(k), k.max()
        counts = f"{seen.sum():10d}/{E}   {agree.sum():7d}/{seen.sum()}"
        print(f"{start:6} {r:5.2f}   {low:8.1f} {mid:8.1f} {high:8.1f}   {counts}")
ratio = half_lives(lams["paper"], GATES) / half_lives(lams["code"], GATES)
print(f"the same draw remembers {ratio.min():.2f} to {ratio.max():.2f} times longer with the paper's start\n")

# %%
# What r -> 0 does
# ----------------
# Noise all the time; between steps 100 and 200 the gate argument zr is lowered. a -> 1 keeps the state, and with it
# sqrt(1 - a^2) -> 0 shuts out the input: the state stands still, and neither grows nor forgets.

steps, shut = 300, slice(100, 200)
arguments = np.array([0.0, -4.0, -8.0, -12.0])  # zr inside of the window; outside it is 0, that is r = 0.5
shape = (len(arguments), steps, E)
noise = np.broadcast_to(np.random.default_rng(1).standard_normal(shape[1:]).astype(np.float32), shape)
zr = np.zeros(shape, np.float32)
zr[:, shut] = arguments[:, None, None]
frozen, _ = rglru(noise, zr, np.zeros(shape, np.float32), lams["code"].astype(np.float32), np.zeros((4, E), np.float32))
rms = np.sqrt(np.mean(frozen[:, 50:] ** 2, axis=(1, 2)))
moved = np.sqrt(np.mean((frozen[:, shut] - frozen[:, [shut.start - 1]]) ** 2, axis=(1, 2))) / rms
print(f"code start, {E} channels, noise in; the gate argument lowered for {shut.stop - shut.start} steps")
print(f"{'zr':>5} {'r':>10}   how far the state moves in the window, as a part of its usual size")
for z, part in zip(arguments, moved, strict=True):
    print(f"{z:5.0f} {1 / (1 + np.exp(-z)):10.6f}   {part:.3f}")

# %%
# The figure
# ----------

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained")
grid = np.geomspace(0.01, 1, 100)
for start, colour in STARTS.items():
    low, mid, high = np.quantile(half_lives(lams[start], grid), [0, 0.5, 1], axis=1)
    left.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
    left.plot(grid, mid, color=colour, label=f"{start}: median of the formula; band: all channels")
    medians = np.median(np.where(measured[start] < 0, np.inf, measured[start]), axis=1)  # -1: longer than T
    left.plot(GATES, medians, "o", color=colour, markeredgecolor="black", label=f"{start}: median, measured")
left.set(xscale="log", yscale="log", xlabel="gate r", ylabel="half-life (steps)", title="the gate stretches the memory")
left.set_xticks([0.01, 0.1, 0.5, 1], ["0.01", "0.1", "0.5", "1"])
left.legend(fontsize=7)

at = int(np.flatnonzero(GATES == 0.5)[0])
for start, colour in STARTS.items():
    h = responses[start][at, :600] / responses[start][at, :1]
    order = np.argsort(lams[start])[::-1]  # large lam: fast
    for place, style in ((0.1, ":"), (0.5, "-"), (0.9, "--")):
        channel = order[int(place * E)]
        middle.plot(h[:, channel], style, color=colour, label=f"{start}, {place:.0%} of channels are faster")
middle.axhline(0.5, color="grey", linewidth=0.8)
middle.set(xlabel="steps after the impulse", ylabel="h / h at the impulse", title="measured at r = 0.5")
middle.legend(fontsize=8)

slow = np.flatnonzero(half_lives(lams["code"], np.array([0.5]))[0] > 15)
channel = slow[np.argmax(frozen[0, shut.start - 1, slow])]  # one that has something to lose when the window begins
for h, z, shade in zip(frozen, arguments, ("0.7", "tab:green", "tab:purple", "black"), strict=True):
    right.plot(h[:, channel], color=shade, linewidth=1.2, label=f"zr = {z:.0f}")
right.axvspan(shut.start, shut.stop, color="tab:red", alpha=0.1, linewidth=0)
right.set(xlabel="step", ylabel="state h of one channel", title="zr lowered in the shaded window")
right.legend(fontsize=8, ncols=2, loc="lower left")
figure.savefig(OUT / "rglru_memory.png", dpi=120)
print(f"\nfigure: {OUT.name}/rglru_memory.png")
