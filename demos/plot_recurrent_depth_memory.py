"""
Thinking longer costs time, not memory
======================================

Claim: a training step of a recurrent-depth transformer that records its last k iterations needs the same memory however
many iterations come before them; each recorded one adds a fixed amount. Recomputed in the backward, a recorded one adds
hardly more than its input, 1 to 47 here, and costs one more forward of itself. What is not recorded is missing in the
gradient: with 4 of 32 recorded it still has a cosine of 0.97 with the whole one. That is so in fresh models, three of
them; none is trained here.

    python demos/plot_recurrent_depth_memory.py      prints two tables, draws demos/out/recurrent_depth_memory.png
"""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from time import process_time

import matplotlib
import numpy as np
from threadpoolctl import threadpool_limits

from tinyrec.models import build, make_config
from tinyrec.nn import parameters
from tinyrec.parallel import loss_and_grads

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
B, T, ROUNDS, SEEDS = 2, 64, 3, 3
DEPTHS = [4, 8, 16, 32, 64]  # r
RECORDED = [1, 2, 4, 8, 16, 32]  # k
threadpool_limits(1)
MB = 1e6

# %%
# One step, watched
# -----------------
# Forward and backward of a fresh model: prelude 1, core 2 and coda 1 blocks of width 64. tracemalloc sees every array;
# it is off while the clock runs. What is there before the step, the weights and their gradients, is not counted.

CONFIG = make_config("recurrent-depth", "tiny", n_core=2)
MODELS = {
    name: build("recurrent-depth", replace(CONFIG, recompute=name == "recompute"), np.random.default_rng(0))
    for name in ("keep", "recompute")
}
rng = np.random.default_rng(1)
tokens, targets = rng.integers(0, CONFIG.vocab_size, (2, B, T))
s_0 = MODELS["keep"].draw(rng, B, T)["initial_state"]


def step(model, r, k):
    loss_and_grads(model, tokens, targets, steps=r, grad_steps=k, initial_state=s_0)


def gradient(model, r, k):
    """All parameters' gradients in one row."""
    for _, p in parameters(model):
        p.grad = None
    step(model, r, k)
    return np.concatenate([p.grad.ravel() for _, p in parameters(model)])


def peak(name, r, k):
    gradient(MODELS[name], r, k)  # so that the gradients' own arrays are there
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    step(MODELS[name], r, k)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (most - before) / MB


def milliseconds(name, r, k):
    """The shortest of some rounds, processor time: other programs do not count."""
    times = []
    for _ in range(ROUNDS):
        began = process_time()
        step(MODELS[name], r, k)
        times.append(process_time() - began)
    return 1e3 * min(times)


# %%
# More iterations
# ---------------
# The last four recorded, as in training, or all of them.

WAYS = {"last 4": ("keep", lambda r: 4), "all": ("keep", lambda r: r), "all, recomputed": ("recompute", lambda r: r)}
print(f"one training step, B = {B}, T = {T}: peak memory above weights and gradients, and time")
print(f"{'':8}" + "".join(f"{way:>24}" for way in WAYS))
print(f"{'r':>8}" + f"{'MB':>15}{'ms':>9}" * 3)
memory = {way: [] for way in WAYS}
times = {way: [] for way in WAYS}
for r in DEPTHS:
    for way, (name, k) in WAYS.items():
        memory[way].append(peak(name, r, k(r)))
        times[way].append(milliseconds(name, r, k(r)))
    print(f"{r:8}" + "".join(f"{memory[way][-1]:15.2f}{times[way][-1]:9.0f}" for way in WAYS))
flat = max(memory["last 4"]) / min(memory["last 4"])
print(f"last 4 recorded, r from {DEPTHS[0]} to {DEPTHS[-1]}: memory x {flat:.3f}")

# %%
# More recorded iterations
# ------------------------
# The same 32 iterations; how many of them does the backward see? The gradient is compared with that of k = r.

R, norm = RECORDED[-1], np.linalg.norm
fresh = [build("recurrent-depth", CONFIG, np.random.default_rng([2, seed])) for seed in range(SEEDS)]
whole = [gradient(model, R, R) for model in fresh]
print(f"\nr = {R}{'keep everything':>22}{'recompute':>20}{f'against the gradient with k = r, {SEEDS} seeds':>44}")
print(f"{'k':>6}{'MB':>14}{'ms':>9}{'MB':>13}{'ms':>9}{'cosine':>22}{'length':>22}")
by_k = {name: [peak(name, R, k) for k in RECORDED] for name in MODELS}
spent = {name: [milliseconds(name, R, k) for k in RECORDED] for name in MODELS}
for i, k in enumerate(RECORDED):
    parts = [gradient(model, R, k) for model in fresh]
    ratios = [norm(part) / norm(full) for part, full in zip(parts, whole, strict=True)]
    cosines = [part @ full / norm(part) / norm(full) for part, full in zip(parts, whole, strict=True)]
    cells = "".join(f"{by_k[name][i]:{14 - j}.2f}{spent[name][i]:9.0f}" for j, name in enumerate(MODELS))
    print(f"{k:6}{cells}" + "".join(f"{f'{min(x):.3f} to {max(x):.3f}':>22}" for x in (cosines, ratios)))
each = {name: (m[-1] - m[2]) / (R - RECORDED[2]) for name, m in by_k.items()}
print("one more recorded iteration: " + ", ".join(f"{name} {mb:.3f} MB" for name, mb in each.items()))
print(f"that is {each['keep'] / each['recompute']:.0f} to 1; a state (B, T, h) in float32 is {s_0.nbytes / MB:.3f} MB")
print(f"time of recomputing over that of keeping, k = {R}: {spent['recompute'][-1] / spent['keep'][-1]:.2f}")
kept, again = (gradient(model, R, R) for model in MODELS.values())
print(f"the two gradients for k = {R} differ by {abs(again - kept).max() / abs(kept).max():.0e} of the largest entry")

# %%
# The figure
# ----------

figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained")
for (way, values), colour, style in zip(
    memory.items(), ("tab:blue", "tab:red", "tab:orange"), ("o-", "o-", "o--"), strict=True
):
    axes[0].plot(DEPTHS, values, style, color=colour, label=f"recorded: {way}")
    axes[1].plot(DEPTHS, times[way], style, color=colour, label=f"recorded: {way}")
for (name, values), colour in zip(by_k.items(), ("tab:red", "tab:orange"), strict=True):
    axes[2].plot(RECORDED, values, "o-" if name == "keep" else "o--", color=colour, label=name)
axes[0].set(title="peak memory by iterations", ylabel="MB", xlabel="iterations r", yscale="log", xscale="log")
axes[1].set(title="time by iterations", ylabel="ms", xlabel="iterations r", yscale="log", xscale="log")
axes[2].set(title=f"peak memory, {R} iterations", ylabel="MB", xlabel="recorded iterations k", ylim=(0, None))
for axis in axes[:2]:
    axis.set_xticks(DEPTHS, [str(r) for r in DEPTHS])
    axis.set_yticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
axes[2].set_xticks(RECORDED[2:], [str(k) for k in RECORDED[2:]])
for axis in axes:
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
figure.savefig(OUT / "recurrent_depth_memory.png", dpi=120)
print(f"\nfigure: {OUT.name}/recurrent_depth_memory.png")
