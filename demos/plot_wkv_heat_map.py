"""
WKV as weights over the past
============================

Claim: WKV is a softmax over all tokens so far, one per channel, whose weights fade with age. At the official start the
half-lives of the channels reach from less than a token to a hundred; a key that is larger by b multiplies a token's
weight by e^b, which is worth b / w tokens of age.

    python demos/plot_wkv_heat_map.py      prints two tables, draws demos/out/wkv_heat_map.png
"""

from pathlib import Path

import matplotlib
import numpy as np

from tinyrec.recurrences.wkv import fresh_state, wkv

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
C, T, SHOWN = 768, 1024, 160  # channels of the layer, steps that are run, steps that are drawn
BUMP, B = 40, 4.0  # the token with the larger key, and by how much
HALF_LIVES = 0.7, 10, 100  # one per decade
LEAST = 1e-4  # weights below are drawn white

# %%
# The channels
# ------------
# A fresh first layer has time_decay = -5 + 8 (i / (C-1))^0.7 for channel i = 0..C-1, and time_first, the bonus u, at
# ln 0.3 or 0.5 above or below. The rate of decay is w = exp(time_decay), the half-life ln 2 / w tokens. From these
# channels we take those whose half-lives come next to the ones asked for.

i = np.arange(C)
time_decay = -5 + 8 * (i / (C - 1)) ** 0.7
time_first = np.log(0.3) + 0.5 * ((i + 1) % 3 - 1)
half_life = np.log(2) / np.exp(time_decay)
chosen = [int(np.argmin(np.abs(np.log(half_life / wanted)))) for wanted in HALF_LIVES]
time_decay, u, w = time_decay[chosen], time_first[chosen], np.exp(time_decay[chosen])
print(f"half-lives of the {C} channels: {half_life.min():.3f} to {half_life.max():.1f} tokens")

# %%
# The weights
# -----------
# (1) of docs/recurrences/wkv.md with the weights written out, one matrix (T, T) a channel: row t are the weights of
# y_t, column i belongs to token i. The op never makes this matrix. Does it compute the same?


def weights(k):
    """W (C, T, T) of keys k (T, C): exponent k_i - (t-1-i) w for a past token, u + k_t for the current one."""
    t = np.arange(len(k))
    age = t[:, None] - 1 - t
    exponent = np.where(age >= 0, -np.maximum(age, 0) * w[:, None, None], u[:, None, None]) + k.T[:, None]
    exponent = np.where(age >= -1, exponent, -np.inf)
    e = np.exp(exponent - exponent.max(axis=2, keepdims=True))
    return e / e.sum(axis=2, keepdims=True)


rng = np.random.default_rng(0)
v = rng.standard_normal((T, len(chosen)))
bump = np.zeros_like(v)
bump[BUMP] = B
keys = {
    f"equal keys, but k = {B:.0f} at token {BUMP}": bump,
    "random keys of standard deviation 1.5": 1.5 * rng.standard_normal(v.shape),
}
drawn = {title: weights(k) for title, k in keys.items()}
for title, k in keys.items():
    y, *_ = wkv(k[None], v[None], time_decay, u, *fresh_state(1, len(chosen), v))
    difference = np.abs(np.einsum("cti,ic->tc", drawn[title], v) - y[0]).max()
    print(f"{title}: largest difference between W v and wkv() is {difference:.0e}")
    assert difference < 1e-12

# %%
# How much of the average is recent
# ---------------------------------
# Equal keys, the last row of W. "last n": the sum over the n newest tokens, the current one included.

row = weights(np.zeros_like(v))[:, -1]  # (C, T)
halved = [int(np.argmax(r[-2::-1] <= r[-2] / 2)) for r in row]  # age at which a weight is first half of that at age 0
print(f"\nequal keys, the weights of y after {T} tokens")
print("channel   half-life   halved at age   e^u     last 1   last 10   last 100")
for c, channel in enumerate(chosen):
    last = "   ".join(f"{row[c, -n:].sum():7.4f}" for n in (1, 10, 100))
    print(f"{channel:7}   {half_life[channel]:9.2f}   {halved[c]:13}   {np.exp(u[c]):4.2f}   {last}")

# %%
# What a larger key buys
# ----------------------
# The token with k = 4 begins e^4 times as heavy as the others, and is level with a token just written (age 0) when
# e^(4 - w age) = 1.

W = drawn[f"equal keys, but k = {B:.0f} at token {BUMP}"]
age = np.arange(1, T - BUMP - 1)
t = BUMP + 1 + age  # the outputs that see the heavy token at these ages
print(f"\nthe token with k = {B:.0f}: at which age is it first no heavier than a token just written?")
print("half-life   its weight at age 1   b / w   age in W")
for c, channel in enumerate(chosen):
    level = int(age[np.argmax(W[c, t, BUMP] <= W[c, t, t - 1])])
    print(f"{half_life[channel]:9.2f}   {W[c, BUMP + 2, BUMP]:19.3f}   {B / w[c]:5.1f}   {level:8}")

# %%
# The figure
# ----------

figure, panels = plt.subplots(2, 3, figsize=(12.5, 8), layout="constrained", sharex=True, sharey=True)
for line, (title, W) in zip(panels, drawn.items(), strict=True):
    for panel, matrix, channel in zip(line, W, chosen, strict=True):
        shown = np.ma.masked_less(matrix[:SHOWN, :SHOWN], LEAST)
        image = panel.imshow(shown, norm=LogNorm(LEAST, 1), cmap="viridis_r", interpolation="nearest")
        panel.set_title(f"half-life {half_life[channel]:.3g} tokens", fontsize=10)
    line[0].set_ylabel(f"{title}\n\noutput t", fontsize=10)
for panel in panels[1]:
    panel.set_xlabel("token i")
figure.colorbar(image, ax=panels, shrink=0.6, label=f"weight of token i in output t (white: below {LEAST})")
figure.suptitle("WKV as weights over the past, in three channels of an official start; each row adds up to 1")
figure.savefig(OUT / "wkv_heat_map.png", dpi=110)
print(f"\nfigure: {OUT.name}/wkv_heat_map.png")
