"""
What gates that do not see the state cannot do
==============================================

Claim: a QRNN layer learns to keep a value until the next one is written, as an LSTM does: its gates must know the input
only. It does not learn to keep a parity, which an LSTM does: there the gate must know the state, or be negative.

    python demos/plot_qrnn_parity.py      prints a table, draws demos/out/qrnn_parity.png
"""

from pathlib import Path

import matplotlib
import numpy as np

from tinyrec import Tensor, no_grad, ops
from tinyrec.nn import uniform
from tinyrec.optim import AdamW
from tinyrec.recurrences.lstm import lstm
from tinyrec.recurrences.qrnn import qrnn
from tinyrec.recurrences.scan import scan

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
B, H, TRAINED, RUN, STEPS, SEEDS = 32, 16, 20, 100, 400, 3

# %%
# Two tasks
# ---------
# Every step shows a random bit as -1 or 1, and every step asks for a bit: whether it is there is what the state is for.


def latch(rng, batch, time):
    """The last bit that came with a mark. x (B, T, 2): bit and mark; target (B, T, 1) of -1 and 1."""
    bit, mark = rng.choice([-1.0, 1.0], (batch, time)), rng.random((batch, time)) < 0.15
    mark[:, 0] = True
    written = np.maximum.accumulate(np.where(mark, np.arange(time), 0), axis=1)  # the last marked step
    x = np.stack([bit, mark], axis=-1).astype(np.float32)
    return x, np.take_along_axis(bit, written, axis=1)[..., None].astype(np.float32)


def parity(rng, batch, time):
    """The product of all bits so far: 1 if the number of -1 is even."""
    bit = rng.choice([-1.0, 1.0], (batch, time, 1)).astype(np.float32)
    return bit, np.cumprod(bit, axis=1)


TASKS = {"latch": latch, "parity": parity}

# %%
# Three layers
# ------------
# A QRNN of width 2: gates from the inputs x_{t-1} and x_t, for all t at once. The LSTM: from x_t and h_{t-1}, one step
# after the other. Both read out h = sigmoid(o) c or o tanh(c) with a matrix; all have H cells.

PARTS = {"LSTM": 4, "QRNN fo": 3, "QRNN ifo": 4}  # of z; an LSTM has w_h on top
LINES = {
    "LSTM": dict(color="0.7", linewidth=5),
    "QRNN fo": dict(color="tab:blue", linewidth=2),
    "QRNN ifo": dict(color="tab:orange", linewidth=1.2, linestyle="--"),
}


class Layer:
    def __init__(self, kind, inputs, rng):
        self.kind, bound = kind, H**-0.5
        self.w_x = uniform(rng, (inputs if kind == "LSTM" else 2 * inputs, PARTS[kind] * H), bound)
        self.b = uniform(rng, (PARTS[kind] * H,), bound)
        self.w_out, self.b_out = uniform(rng, (H, 1), bound), uniform(rng, (1,), bound)
        if kind == "LSTM":
            self.w_h = uniform(rng, (H, 4 * H), bound)

    def __call__(self, x):
        """x (B, T, inputs) -> logits (B, T, 1)."""
        nothing = np.zeros((len(x), H), np.float32)
        if self.kind == "LSTM":
            h, _, _ = lstm(ops.linear(x, self.w_x, self.b), self.w_h, nothing, nothing)
        else:
            before = np.concatenate([0.0 * x[:, :1], x[:, :-1]], axis=1)
            parts = ops.linear(np.concatenate([before, x], axis=2), self.w_x, self.b)
            z, f, o, *i = ops.split(parts, sizes=(H,) * PARTS[self.kind], axis=-1)
            c, _ = qrnn(z, f, i[0] if i else None, nothing)
            h = ops.sigmoid(o) * c
        return ops.linear(h, self.w_out, self.b_out)

    def parameters(self):
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def accuracy(kind, task, seed):
    """The share of right answers at each of RUN steps, on new sequences, after training on TRAINED steps."""
    rng = np.random.default_rng([2, seed])
    layer = Layer(kind, task(rng, 1, 1)[0].shape[2], rng)
    optimizer = AdamW(layer.parameters().items(), lr=1e-2, weight_decay=0.0)
    for _ in range(STEPS):
        x, target = task(rng, B, TRAINED)
        loss = ops.softplus(layer(x) * -target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, target = task(np.random.default_rng(3), 400, RUN)
    with no_grad():
        return ((layer(x).data > 0) == (target > 0)).mean(axis=(0, 2))


seen = {name: {kind: np.stack([accuracy(kind, task, seed) for seed in range(SEEDS)]) for kind in PARTS}
        for name, task in TASKS.items()}
print(f"right answers after {STEPS} steps of training on sequences of {TRAINED}; worst and best of {SEEDS} seeds")
print(f"task     layer      steps 1 to {TRAINED}       steps {TRAINED + 1} to {RUN}")
for name, table in seen.items():
    for kind, right in table.items():
        inside, beyond = right[:, :TRAINED].mean(axis=1), right[:, TRAINED:].mean(axis=1)
        ranges = [f"{right.min():.3f} to {right.max():.3f}" for right in (inside, beyond)]
        print(f"{name:8} {kind:10} {ranges[0]}     {ranges[1]}")

# %%
# What is missing
# ---------------
# c_t = f_t c_{t-1} + i_t z_t with 0 < f_t < 1: whatever the input, a larger c before is a larger c after. Parity must
# exchange two states. The same scan can do it with a decay of -1, which a sigmoid never gives: a_t = bit, b_t = 0.

x, target = (array.swapaxes(0, 1) for array in parity(np.random.default_rng(4), 400, 10_000))  # time first
c, _ = scan(x, np.zeros_like(x), np.ones((400, 1), np.float32))
print(f"\nscan with a_t = bit, c_init = 1: right over 10000 steps: {(c == target).mean():.3f}")

# %%
# The figure
# ----------

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
for axis, (name, table) in zip(axes, seen.items(), strict=True):
    for kind, right in table.items():
        at, colour = np.arange(1, RUN + 1), LINES[kind]["color"]
        axis.fill_between(at, right.min(axis=0), right.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        axis.plot(at, right.mean(axis=0), label=kind, **LINES[kind])
    axis.axvline(TRAINED, color="grey", linewidth=0.8, linestyle=":")
    axis.annotate("trained up to here", (TRAINED, 0.72), (4, 0), textcoords="offset points", fontsize=8)
    axis.set(xlabel="step", title=name, ylim=(0.4, 1.05))
    axis.legend(fontsize=9, loc="center right")
axes[0].set_ylabel(f"right answers (mean and range of {SEEDS} seeds)")
figure.savefig(OUT / "qrnn_parity.png", dpi=120)
print(f"\nfigure: {OUT.name}/qrnn_parity.png")
