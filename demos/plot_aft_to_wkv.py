"""
From AFT to WKV, step by step
=============================

Claim: AFT-full with a free matrix of biases must look back at every key. Make the matrix simpler, zero or an even fade
with the distance, and one sum per channel carries the whole past: AFT-simple and WKV give the same numbers as AFT-full,
to rounding, in a time that grows like T instead of T^2. (Short sequences can still be faster with AFT-full, which is
two matrix products: see the second table.)

    python demos/plot_aft_to_wkv.py      prints two tables, draws demos/out/aft_to_wkv.png
"""

import time
from pathlib import Path

import matplotlib
import numpy as np

from tinyrec.recurrences.aft import aft_full, aft_simple
from tinyrec.recurrences.wkv import fresh_state, wkv
from tinyrec.tape import Tensor
from tinyrec.walk import grad

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
B, T, C = 2, 64, 3
LENGTHS = [128, 256, 512, 1024, 2048]

# %%
# Four matrices of biases
# -----------------------
# n_t is the mean of the v_i, i <= t, with weights e^(k_i + w_ti): (1) of docs/recurrences/aft.md. k and v come from the
# tokens, w is learned. What differs from step to step is only w.

rng = np.random.default_rng(0)
k, v = rng.standard_normal((2, B, T, C))
t, i = np.arange(T)[:, None], np.arange(T)
distance = np.maximum(t - i, 0)
r, u = np.array([0.02, 0.1, 0.5]), np.array([0.0, 1.0, -1.0])  # WKV: a rate and a bonus for each channel

general = rng.standard_normal((T, T))
by_distance = rng.standard_normal(T)[distance]
fading = [np.where(i == t, u[c], -(t - 1 - i) * r[c]) for c in range(C)]  # (21)
STEPS = {
    "1  general w": general,
    "2  w = 0": np.zeros((T, T)),
    "3  Toeplitz, any f(t - i)": by_distance,
    "4  an even fade, and u for i = t": fading[1],
}

# %%
# How much must be carried?
# -------------------------
# Cut time in the middle. What the second half needs from the first are the sums over i < T/2 of e^(w_ti) e^(k_i) v_i,
# one for each t >= T/2. Of these, as many are independent as this block of e^w has rank: so many numbers (and as many
# for the denominator) must a recurrence carry over the cut, in every channel.


def numbers_to_carry(w):
    return np.linalg.matrix_rank(np.exp(w[T // 2 :, : T // 2]), tol=1e-10)


state = fresh_state(B, C, k)
recurrent = {"2  w = 0": ("aft_simple", aft_simple(k, v, *state)[0])}
recurrent["4  an even fade, and u for i = t"] = ("wkv", wkv(k, v, np.log(r), u, *state)[0])

print(f"T = {T}, cut at {T // 2}; the matrix of AFT-full beside the recurrence that does the same")
print("step                               rank   recurrence   largest difference of n")
for name, w in STEPS.items():
    if name.startswith("4"):  # r and u differ from channel to channel, a w of AFT does not: one call for each
        full = np.concatenate([aft_full(k[..., [c]], v[..., [c]], fading[c]) for c in range(C)], axis=-1)
    else:
        full = aft_full(k, v, w)
    which, n = recurrent.get(name, ("none", None))
    difference = "" if n is None else f"{np.abs(full - n).max():.1e}"
    print(f"{name:34} {numbers_to_carry(w):4}   {which:10}   {difference}")

# %%
# What it saves
# -------------
# Forward and backward in float32, one sequence of 64 channels. The shortest of several runs, all lengths and forms
# taking turns; only ratios mean something, and they depend on the machine.


def timed(fn, inputs, constants, dn):
    """Seconds of a forward and a backward of fn(*inputs, *constants)."""
    leaves = [Tensor(a, requires_grad=True) for a in inputs]
    start = time.perf_counter()
    out = fn(*leaves, *constants)
    grad(out if fn is aft_full else out[0], leaves, dn)
    return time.perf_counter() - start


def seconds_of(length):
    """Seconds of AFT-full, AFT-simple and WKV on one sequence: the shortest of some runs, of more if it is short."""
    k, v, dn = rng.standard_normal((3, 1, length, 64), dtype=np.float32)
    w, state = rng.standard_normal((length, length), dtype=np.float32), fresh_state(1, 64, k)
    decay, bonus = np.full(64, -2, np.float32), np.zeros(64, np.float32)
    calls = (aft_full, (k, v, w), ()), (aft_simple, (k, v), state), (wkv, (k, v, decay, bonus), state)
    runs = [[timed(*call, dn) for call in calls] for _ in range(1 + LENGTHS[-1] // length)]
    return np.min(runs, axis=0)


seconds = np.min([[seconds_of(length) for length in LENGTHS] for _ in range(7)], axis=0)  # (lengths, forms)
growth = seconds / seconds[0]
print("\n          time / time at T = 128           time / time of WKV at the same T")
print("   T     AFT-full  AFT-simple     WKV      AFT-full  AFT-simple")
for length, grown, beside in zip(LENGTHS, growth, seconds / seconds[:, 2:], strict=True):
    print(f"{length:5} {grown[0]:11.1f} {grown[1]:11.1f} {grown[2]:7.1f} {beside[0]:13.2f} {beside[1]:11.2f}")
print(f"T^2 would grow {(LENGTHS[-1] / LENGTHS[0]) ** 2:.0f} times, T {LENGTHS[-1] / LENGTHS[0]:.0f} times")

# %%
# The figure
# ----------

figure, axes = plt.subplots(1, 5, figsize=(15, 3.4), layout="constrained", width_ratios=[1, 1, 1, 1, 1.3])
for axis, (name, w) in zip(axes, STEPS.items(), strict=False):
    weights = np.where(i <= t, np.exp(w), np.nan)
    weights /= np.nansum(weights, axis=1, keepdims=True)  # P of (1) for keys that are all alike
    image = axis.imshow(weights, norm=LogNorm(1e-3, 1), cmap="viridis", interpolation="nearest")
    axis.set_title(f"{name}\nrank across the cut: {numbers_to_carry(w)}", fontsize=9)
    axis.add_patch(plt.Rectangle((-0.5, T // 2 - 0.5), T // 2, T // 2, fill=False, edgecolor="tab:red", linewidth=1.5))
    axis.set(xlabel="key i", xticks=[0, T // 2], yticks=[0, T // 2])
axes[0].set_ylabel("query t")
figure.colorbar(image, ax=axes[3], label="weight, all k equal", shrink=0.9)
for name, grown, style in zip(("AFT-full", "AFT-simple", "WKV"), growth.T, ("o-", "s-", "^--"), strict=True):
    axes[4].plot(LENGTHS, grown, style, label=name)
axes[4].plot(LENGTHS, np.array(LENGTHS) / 128, color="0.6", linewidth=1, label="T")
axes[4].plot(LENGTHS, (np.array(LENGTHS) / 128) ** 2, color="0.6", linestyle=":", label="T^2")
axes[4].set(xscale="log", yscale="log", xlabel="T")
axes[4].set_title("time / time at T = 128, measured", fontsize=9)
axes[4].set_xticks(LENGTHS, [str(length) for length in LENGTHS])
axes[4].minorticks_off()
axes[4].legend(fontsize=8)
figure.savefig(OUT / "aft_to_wkv.png", dpi=120)
print(f"\nfigure: {OUT.name}/aft_to_wkv.png")
