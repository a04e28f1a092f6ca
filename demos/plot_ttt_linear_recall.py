"""
A state that learns pairs while it reads
========================================

Claim: a linear map W that takes a gradient step at each token recalls what it has read better and better. In
mini-batches of 16 tokens it does nearly as well, in a fraction of the time. All 512 tokens as one batch, which is
linear attention, recall far less, and take longer again. With more pairs than W has rows, none of the steps tried comes
below what the best linear map leaves.

    python demos/plot_ttt_linear_recall.py      prints three tables, draws demos/out/ttt_linear_recall.png
"""

import time
from pathlib import Path

import matplotlib
import numpy as np
from threadpoolctl import threadpool_limits

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
threadpool_limits(1)  # the times are those of one core
S, T, D = 64, 512, 16  # streams, tokens a stream, width of keys and values
SIZES = 2 ** np.arange(10)  # K, tokens a mini-batch: 1 to 512 = T
BINS = {"0-16": slice(0, 16), "32-64": slice(32, 64), "128-256": slice(128, 256), "256-512": slice(256, 512)}
LAST = BINS["256-512"]
STEPS = 2.0 ** np.arange(-7.5, 1.25, 0.5)  # to choose from, for each K
CHOOSE, REPORT = 0, 1  # seeds of the streams on which the step is chosen, and of those in the tables

# %%
# The streams, and the whole model
# --------------------------------
# A stream has P pairs (key, value) of its own, and each token is one of them at random. Keys are random directions of
# length 1, values standard normal: to predict 0 costs 1, the mean square of a number of v. Nothing is trained before;
# W begins at 0, and reading is the only learning.
#
# The state is W, the inner loss |k W - v|^2 / 2, its gradient k^T (k W - v). Inside a mini-batch all gradients are
# taken at the W with which it starts, but a token is read with all steps of the tokens before it, those of its own
# mini-batch too. It is judged before its own step, so a low loss means that its pair was remembered.


def draw(seed, P):
    """Keys and values (S, P, D) of the pairs, and (S, T, D) of the tokens."""
    rng = np.random.default_rng(seed)
    keys, values = rng.standard_normal((2, S, P, D))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    stream, pair = np.arange(S)[:, None], rng.integers(0, P, (S, T))
    return keys, values, keys[stream, pair], values[stream, pair]


def read(k, v, step, K):
    """What is predicted for v (S, T, D), each before its own step."""
    W, predicted = np.zeros((S, D, D)), np.empty_like(v)
    for t in range(0, T, K):
        x, y = k[:, t : t + K], v[:, t : t + K]  # (S, K, D)
        error = x @ W - y  # gradients are x^T error, all at this W
        before = np.tril(x @ x.swapaxes(1, 2), -1)  # (S, K, K): how much token j < i changes what token i reads
        predicted[:, t : t + K] = x @ W - step * before @ error
        W -= step * x.swapaxes(1, 2) @ error
    return predicted


def losses(k, v, step, K):
    """(S, T), the mean square over the numbers of a value; far too large a step overflows, and is never the best."""
    with np.errstate(all="ignore"):
        return np.mean((read(k, v, step, K) - v) ** 2, axis=-1)


def best_step(P, K):
    """The step with the lowest loss in the last bin, over the streams that are only used for this."""
    *_, k, v = draw(CHOOSE, P)
    last = [losses(k, v, step, K)[:, LAST].mean() for step in STEPS]
    best = int(np.nanargmin(last))
    assert 0 < best < len(STEPS) - 1  # inside of what was tried
    return STEPS[best]


# %%
# Sixteen pairs, sixteen rows
# ---------------------------
# The step is chosen for each K by itself: a mini-batch adds up K gradients, so large ones need smaller steps. It is
# chosen by the last bin; the first bins may not be the best that a K can do.

P = 16
_, _, k, v = draw(REPORT, P)
steps = {K: best_step(P, K) for K in SIZES}
table = {K: losses(k, v, steps[K], K) for K in SIZES}
seconds: dict = {K: [] for K in SIZES}
for _ in range(3):  # in turns, so that whatever else the machine does falls on all alike
    for K in SIZES:
        start = time.perf_counter()
        read(k, v, steps[K], K)
        seconds[K].append(time.perf_counter() - start)
seconds = {K: min(taken) for K, taken in seconds.items()}

print(f"loss before a token's own step, by its index: {P} pairs, d = {D}, mean of {S} streams (seed {REPORT});")
print("+-: standard error of the last bin; ms: all streams, one core of this machine, best of 3")
print(f"{'K':>4} {'step':>7}" + "".join(f"{name:>9}" for name in BINS) + f"{'+-':>7}{'ms':>8}{'ms / K=1':>10}")
for K in SIZES:
    cells = "".join(f"{table[K][:, where].mean():9.3f}" for where in BINS.values())
    spread = table[K][:, LAST].mean(axis=1).std() / np.sqrt(S)
    print(f"{K:4} {steps[K]:7.4f}{cells}{spread:7.3f}{1e3 * seconds[K]:8.1f}{seconds[K] / seconds[1]:10.2f}")

# %%
# The last row is linear attention
# --------------------------------
# With K = T and W = 0 every error is -v: the steps add up k^T v and look at nothing else. That sum is the state of
# linear attention, attention without a softmax. What it holds is never compared with what comes. It also grows: one
# step size is too small for the first tokens and too large for the last. So here is the mean instead of the sum, too,
# times a constant that is chosen as the steps were.


def attend(k, v):
    """For each token t the sum of (k_t . k_j) v_j over the tokens j before it."""
    summed, state = np.empty_like(v), np.zeros((S, D, D))
    for t in range(T):
        summed[:, t] = (k[:, t, None] @ state)[:, 0]
        state += k[:, t, :, None] * v[:, t, None]
    return summed


same = np.abs(read(k, v, steps[T], T) - steps[T] * attend(k, v)).max()
print(f"\nK = {T} and linear attention: largest difference {same:.0e}")
*_, k0, v0 = draw(CHOOSE, P)
count, factors = np.maximum(np.arange(T), 1)[:, None], 2 ** np.arange(0, 7.25, 0.5)
average = attend(k0, v0) / count
apart = [np.mean((c * average - v0)[:, LAST] ** 2) for c in factors]
best = factors[np.argmin(apart)]
mean = np.mean((best * attend(k, v) / count - v)[:, LAST] ** 2)
print(f"with a mean, times {best:.1f}, in place of the sum: {mean:.3f} in the last bin, where K = {T} has "
      f"{table[T][:, LAST].mean():.3f} and K = 16 {table[16][:, LAST].mean():.3f}")  # fmt: skip

# %%
# Fewer pairs than rows, and more
# -------------------------------
# Up to D pairs with different keys fit into W exactly. Of more, the best W (least squares over the P pairs) leaves a
# part, and no number of tokens helps.


def floor(P):
    """Mean loss of the best W of each stream."""
    keys, values, *_ = draw(REPORT, P)
    best = np.linalg.pinv(keys) @ values
    return np.mean((keys @ best - values) ** 2)


SHOWN = (1, 16, 512)
print("\nloss in the last bin, best step for each: pairs and K, and what the best linear map leaves")
print(f"{'pairs':>5}" + "".join(f"{f'K={K}':>9}" for K in SHOWN) + f"{'best map':>10}")
last: dict = {}
for pairs in (8, 16, 32):
    _, _, *tokens = draw(REPORT, pairs)
    for K in SHOWN:
        step = steps[K] if pairs == P else best_step(pairs, K)
        last[pairs, K] = losses(*tokens, step, K)[:, LAST].mean()
    print(f"{pairs:5}" + "".join(f"{last[pairs, K]:9.3f}" for K in SHOWN) + f"{floor(pairs):10.3f}")

# %%
# The figure
# ----------

figure, axes = plt.subplot_mosaic(
    [["index", "loss"], ["index", "time"]], figsize=(11, 5), width_ratios=[1.5, 1], layout="constrained"
)
drawn = (1, 8, 16, 64, 512)
shades = dict(zip(drawn, plt.cm.viridis(np.linspace(0, 0.9, len(drawn))), strict=True))
width = 8  # tokens a point
for K in drawn:
    curve = table[K].mean(axis=0).reshape(-1, width).mean(axis=1)
    label = f"K = {K}" + (", linear attention" if K == T else "")
    axes["index"].plot(np.arange(T // width) * width + width / 2, curve, color=shades[K], label=label)
axes["index"].axhline(1, color="grey", linewidth=0.8, linestyle="--", label="prediction 0")
axes["index"].axvspan(256, T, color="0.94", linewidth=0, zorder=0)
axes["index"].set(xlabel="token (shaded: the last bin)", ylabel="loss before its own step", xlim=(0, T), ylim=(0, 1.1))
axes["index"].set_title(f"{P} pairs, mean of {S} streams, {width} tokens a point")
axes["index"].legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.93))
axes["loss"].plot(SIZES, [table[K][:, LAST].mean() for K in SIZES], "o-", color="tab:blue")
axes["loss"].set(ylabel="loss, last bin", ylim=(0, None), title="what a mini-batch costs, and saves")
axes["time"].plot(SIZES, [1e3 * seconds[K] for K in SIZES], "o-", color="tab:orange")
axes["time"].set(yscale="log", ylabel="ms, one core", xlabel="K, tokens a mini-batch")
for name in ("loss", "time"):
    axes[name].set_xscale("log", base=2)
    axes[name].set_xticks(SIZES, [str(K) for K in SIZES])
    axes[name].grid(alpha=0.3)
axes["loss"].tick_params(labelbottom=False)
figure.savefig(OUT / "ttt_linear_recall.png", dpi=120)
print(f"\nfigure: {OUT.name}/ttt_linear_recall.png")
