"""
What the bias of the forget gate decides
========================================

Claim: in a fresh LSTM the bias of the forget gate sets how fast the gradient fades on its way back. With bias 0 it is
gone after a few dozen steps, with 1 after about a hundred, with 3 not after 200; and a bit that is shown so long before
it is asked for that its gradient is gone is not learned. The reverse does not hold: a gradient is no guarantee.

    python demos/plot_lstm_forget_bias.py      prints two tables, draws demos/out/lstm_forget_bias.png
"""

from pathlib import Path

import matplotlib
import numpy as np

from tinyrec import Tensor, grad, ops
from tinyrec.nn import uniform
from tinyrec.optim import AdamW
from tinyrec.recurrences.lstm import lstm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
BIASES = {0.0: "tab:red", 1.0: "tab:orange", 3.0: "tab:blue"}

# %%
# The gradient through time
# -------------------------
# A fresh layer: w_h uniform in +-1/sqrt(H), and z = x w_x + b taken as noise of the size that a fresh w_x gives, plus
# the bias. A random unit vector is sent back from h_T; how long is what arrives at the cell before the first step?
# Equation numbers are those of docs/recurrences/lstm.md. With w_h = 0 the cell is the only road, and the gradient is
# multiplied by f_t at each step, (8); with w_h it may also go through h and the gates, (9).

B, H = 32, 64
LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200)
rng = np.random.default_rng(0)
noise = rng.standard_normal((B, LENGTHS[-1], 4 * H)) / np.sqrt(3)
fresh = rng.uniform(-1, 1, (H, 4 * H)) / np.sqrt(H)
directions = rng.standard_normal((B, H))
directions /= np.linalg.norm(directions, axis=1, keepdims=True)


def arriving(bias, w_h, length):
    """The root mean square over the batch of |d h_T / d c_0^T v|, for unit vectors v."""
    z = noise[:, :length].copy()
    z[..., H : 2 * H] += bias
    c_init = Tensor(np.zeros((B, H)), requires_grad=True)
    _, h_last, _ = lstm(z, w_h, np.zeros((B, H)), c_init)
    (dc_init,) = grad(h_last, [c_init], g=directions)
    return np.sqrt((dc_init**2).sum(axis=1).mean())


norms = {bias: [[arriving(bias, w, length) for length in LENGTHS] for w in (fresh, 0.0 * fresh)] for bias in BIASES}
print(f"size of the gradient of h_T in the first cell, fresh layer, H = {H}")
print("bias   sigmoid   road      " + "".join(f"T = {length:<6}" for length in LENGTHS) + " a step")
for bias, roads in norms.items():
    for road, sizes in zip(("all", "cell only"), roads, strict=True):
        a_step = (sizes[-1] / sizes[-4]) ** (1 / (LENGTHS[-1] - LENGTHS[-4]))  # from T = 20 to T = 200
        print(f"{bias:4.0f}   {1 / (1 + np.exp(-bias)):7.3f}   {road:10}" + "".join(f"{s:<10.1e}" for s in sizes)
              + f"{a_step:7.3f}")

# %%
# Does it matter?
# ---------------
# One bit is shown at t = 0, then nothing but noise in another channel; after the last step the bit is asked for. The
# loss in bits is 1 for guessing. A run ends when the mean of its last 10 losses is below 0.1.

WIDTH, BATCH, STEPS, SEEDS = 16, 16, 150, 3
DELAYS = (10, 30, 100)


def train(delay, bias, seed):
    """The loss in bits of every step."""
    rng = np.random.default_rng([1, seed])
    bound = WIDTH**-0.5
    start = np.zeros(4 * WIDTH, np.float32)
    start[WIDTH : 2 * WIDTH] = bias
    w_x, w_h = uniform(rng, (2, 4 * WIDTH), bound), uniform(rng, (WIDTH, 4 * WIDTH), bound)
    b, w_out = Tensor(start, requires_grad=True), uniform(rng, (WIDTH, 1), bound)
    names = {"w_x": w_x, "w_h": w_h, "b": b, "w_out": w_out}
    optimizer = AdamW(names.items(), lr=1e-2, weight_decay=0.0)
    nothing, losses = np.zeros((BATCH, WIDTH), np.float32), []
    while len(losses) < STEPS and not (len(losses) >= 10 and np.mean(losses[-10:]) < 0.1):
        sign = rng.choice([-1.0, 1.0], (BATCH, 1)).astype(np.float32)
        x = np.zeros((BATCH, delay, 2), np.float32)
        x[:, 0, :1], x[:, 1:, 1] = sign, rng.standard_normal((BATCH, delay - 1))
        _, h_last, _ = lstm(ops.linear(x, w_x, b), w_h, nothing, nothing)
        loss = ops.softplus(ops.linear(h_last, w_out) * -sign).mean() * (1.0 / np.log(2.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


curves = {(d, bias): [train(d, bias, seed) for seed in range(SEEDS)] for d in DELAYS for bias in BIASES}
print(f"\nsteps until one bit is remembered over a delay, {SEEDS} seeds, at most {STEPS} steps")
print("bias  " + "".join(f"   delay {delay:<12}" for delay in DELAYS))
for bias in BIASES:
    cells = [", ".join(str(len(c)) if len(c) < STEPS else "never" for c in curves[d, bias]) for d in DELAYS]
    print(f"{bias:4.0f}  " + "".join(f"   {cell:18}" for cell in cells))

# %%
# The figure
# ----------

figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained")
for (bias, roads), colour in zip(norms.items(), BIASES.values(), strict=True):
    for sizes, style, road in zip(roads, ("-", "--"), ("all roads", "cell only"), strict=True):
        axes[0].plot(LENGTHS, sizes, style, color=colour, label=f"bias {bias:.0f}, {road}")
axes[0].set(yscale="log", ylim=(1e-12, 10), xlabel="steps back T", ylabel="|gradient|", title="fresh layer")
axes[0].legend(fontsize=8)
for axis, delay in zip(axes[1:], DELAYS[1:], strict=True):
    for bias, colour in BIASES.items():
        for number, losses in enumerate(curves[delay, bias]):
            smooth = np.convolve(losses, np.full(10, 0.1), mode="valid")
            axis.plot(9 + np.arange(len(smooth)), smooth, color=colour, label=None if number else f"bias {bias:.0f}")
    axis.set(xlabel="training step", ylabel="loss (bits, mean of 10)", ylim=(0, 1.4), xlim=(0, STEPS))
    axis.set_title(f"one bit over {delay} steps")
    axis.legend(fontsize=8, loc="upper right", ncols=3)
figure.savefig(OUT / "lstm_forget_bias.png", dpi=120)
print(f"\nfigure: {OUT.name}/lstm_forget_bias.png")
