"""
Copying marked tokens through noise
===================================

Claim: an S6 whose step size dt is 0 at noise holds the marked tokens, however much noise stands between them. With a
constant dt the same states, read as well as a linear read-out can, lose them; blanking the noise out saves only some,
because time goes on in it.

    python demos/plot_selective_scan_copying.py      prints two tables, draws demos/out/selective_scan_copying.png
"""

from pathlib import Path

import matplotlib
import numpy as np

from tinyrec.recurrences.selective_scan import selective_scan

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
K, V, N = 6, 8, 16  # marked tokens a sequence, values a token can have, states a channel
B = 400  # sequences to fit the read-out on, and as many to test it
NOISE = np.array([0, 3, 12, 48, 192])  # unmarked tokens a sequence
A = np.tile(-np.arange(1, N + 1, dtype=np.float32), (V, 1))  # rates -1 .. -16, where Mamba starts
STEP = 0.2  # of a marked token: state n keeps exp(-0.2 n) at each, between 0.82 and 0.04
STEPS = STEP * np.geomspace(0.01, 1, 9)  # constant steps to choose from

# %%
# The task
# --------
# K marked tokens stand at random places among unmarked ones; all have random values. At the end the marked values are
# asked for, in order. One channel a value: u_t is 1 in the channel of the token's value, 0 in the others.


def draw(rng, noise):
    """values (2 B, T) of tokens, and marks (2 B, T), K true in each row."""
    T = K + noise
    values = rng.integers(0, V, (2 * B, T))
    marks = rng.random((2 * B, T)).argsort(axis=1) < K
    return values, marks


def run(values, dt, shown):
    """All that a step of S6 does, with b = 1 and c = 0: the last state (2 B, V, N). `shown` tokens are input."""
    u = ((values[..., None] == np.arange(V)) & shown[..., None]).astype(np.float32)
    steps = np.broadcast_to(dt.astype(np.float32)[..., None], u.shape)
    one = np.ones((*values.shape, N), np.float32)
    _, h_last = selective_scan(u, steps, A, one, 0 * one, np.zeros(V, np.float32), np.zeros((2 * B, V, N), np.float32))
    return h_last


# %%
# Three models
# ------------
# Only dt differs, and what is done about noise. All share rates, b and the kind of read-out.
#
# - selective: dt = 0.2 at marked tokens, 0 at the others. Nothing else: unmarked tokens are input like marked ones.
# - blanked: dt is constant, and unmarked tokens are removed from the input (u = 0). The time they take is not.
# - constant: dt is constant. The mark is not seen at all.
#
# y_t[d] = sum_n c_t[n] h_t[d, n] reads the state linearly, with the same N numbers c in every channel. So for each k
# the c that scores the value of the k-th marked token highest is a least squares problem: h -> 1 in its channel, 0 in
# the others. It is fitted on half of the sequences; where dt is constant, the best of nine dt on that half is taken.

MODELS = ("selective", "blanked", "constant")
COLOURS = dict(zip(MODELS, ("tab:orange", "tab:green", "tab:blue"), strict=True))


def states(model, values, marks, step):
    if model == "selective":
        return run(values, step * marks, np.ones_like(marks))
    return run(values, np.full(marks.shape, step), marks if model == "blanked" else np.ones_like(marks))


def read_outs(h, targets):
    """c (K, N), by least squares over all channels of all sequences: h (B, V, N), targets (B, K)."""
    wanted = targets[:, None, :] == np.arange(V)[:, None]  # (B, V, K)
    centred = h - h.mean(axis=1, keepdims=True)  # only which channel is highest counts
    return np.linalg.lstsq(centred.reshape(-1, N).astype(float), wanted.reshape(-1, K) - 1 / V, rcond=1e-9)[0].T


def accuracy(c, h, targets):
    """The part of the K values of each sequence that is read right."""
    return (np.argmax(h @ c.T, axis=1) == targets).mean()


rng = np.random.default_rng(0)
found: dict = {model: [] for model in MODELS}  # for every amount of noise: (test accuracy, step, c)
for noise in NOISE:
    values, marks = draw(rng, noise)
    targets = values[marks].reshape(2 * B, K)
    for model in MODELS:
        trials = []
        for step in [STEP] if model == "selective" else STEPS:
            h = states(model, values, marks, step)
            c = read_outs(h[:B], targets[:B])
            trials.append((accuracy(c, h[:B], targets[:B]), accuracy(c, h[B:], targets[B:]), step, c))
        found[model].append(max(trials, key=lambda trial: trial[0])[1:])

print(f"{K} marked tokens of {V} values among noise; part of them read right from the last state (chance {1 / V:.3f})")
print(f"{'noise tokens':>12} " + "".join(f"{model:>12}{'dt':>8}" for model in MODELS))
for i, noise in enumerate(NOISE):
    print(f"{noise:12} " + "".join(f"{found[m][i][0]:12.3f}{found[m][i][1]:8.3f}" for m in MODELS))

# %%
# Why: the state's clock
# ----------------------
# The same six marked tokens, with the noise around them drawn anew for each sequence. Where noise takes no time, the
# last state cannot depend on it. Where it takes time, every token has faded by its distance from the end, and that the
# noise decides: the states of one message scatter, and a fixed read-out cannot know by how much.

at = int(np.flatnonzero(NOISE == 48)[0])
print(f"\n{NOISE[at]} noise tokens: distance of last states, root mean square, as a part of their usual size")
print(f"{'':10} same message, other noise   two messages")
values, marks = draw(rng, NOISE[at])
same = values.copy()
same[marks] = np.tile(values[0][marks[0]], 2 * B)
for model in MODELS:
    step = found[model][at][1]
    one, many = states(model, same, marks, step), states(model, values, marks, step)
    size = np.sqrt(np.mean(many**2))
    apart = [np.sqrt(np.mean((h[:B] - h[B:]) ** 2)) / size for h in (one, many)]
    print(f"{model:10} {apart[0]:26.3f} {apart[1]:14.3f}")

# %%
# The figure
# ----------
# One sequence, with K further steps at its end that ask: dt = 0 holds the state, c is the fitted read-out number k.

values, marks = draw(np.random.default_rng(2), NOISE[at])
row = slice(0, 1)
message = values[row][marks[row]]
figure, axes = plt.subplot_mosaic(
    [["trace", "curve", "selective"], ["trace", "curve", "blanked"]],
    figsize=(13.5, 4.4), width_ratios=[1.35, 1.2, 0.8], layout="constrained",
)  # fmt: skip
T = values.shape[1]
for model in ("selective", "blanked"):
    _, step, c = found[model][at]
    dt = np.concatenate([step * (marks[row] if model == "selective" else np.ones((1, T))), np.zeros((1, K))], axis=1)
    u = (values[row][..., None] == np.arange(V)) & (marks[row] | (model == "selective"))[..., None]
    u = np.concatenate([u, np.zeros((1, K, V))], axis=1).astype(np.float32)
    steps = np.repeat(dt[..., None], V, axis=2).astype(np.float32)
    one, zero_d, zero_h = np.ones((1, T + K, N), np.float32), np.zeros(V, np.float32), np.zeros((1, V, N), np.float32)
    reading = np.zeros((1, T + K, N), np.float32)
    reading[0, T:] = c
    y, _ = selective_scan(u, steps, A, one, reading, zero_d, zero_h)
    first = np.zeros((1, T + K, N), np.float32)
    first[..., 0] = 1 / step  # shows the slowest state of each channel, in units of one token
    trace, _ = selective_scan(u, steps, A, one, first, zero_d, zero_h)
    channel = message[1]
    axes["trace"].plot(trace[0, :, channel], color=COLOURS[model], label=f"{model}, dt = {step:.3f}")
    scores = axes[model].imshow(y[0, T:].T, cmap="Greys", aspect="auto", vmin=0, vmax=1)
    axes[model].plot(np.arange(K), message, "o", color="none", markeredgecolor="tab:red", markersize=11)
    axes[model].set(title=f"{model}: what is read", ylabel="value", yticks=range(0, V, 2), xticks=range(K))
    axes[model].set_xticklabels([str(k + 1) for k in range(K)])
axes["blanked"].set_xlabel("token asked for (circle: right value)")

marked = np.flatnonzero(marks[0])
for t in marked:
    own = values[0, t] == channel
    axes["trace"].axvline(t, color="tab:red" if own else "0.8", linewidth=1.5 if own else 0.8, zorder=0)
ignored = np.flatnonzero((values[0] == channel) & ~marks[0])
axes["trace"].plot(ignored, 0 * ignored - 0.05, "kx", markersize=5, label="noise of the channel's own value")
axes["trace"].axvspan(T - 0.5, T + K - 0.5, color="0.92", linewidth=0)
axes["trace"].set(xlabel="step (shaded: the questions)", ylabel="slowest state of one channel, in tokens",
                  title="lines: marked tokens (red: of the channel's own value)")  # fmt: skip
axes["trace"].legend(fontsize=8, loc="upper left")
for model in MODELS:
    axes["curve"].plot(NOISE + 1, [part for part, *_ in found[model]], "o-", color=COLOURS[model], label=model)
axes["curve"].axhline(1 / V, color="grey", linewidth=0.8, linestyle="--", label="chance")
axes["curve"].set(xscale="log", xlabel="noise tokens", ylabel="marked tokens read right", ylim=(0, 1.05),
                  title=f"{K} marked tokens in noise")  # fmt: skip
axes["curve"].set_xticks(NOISE + 1, [str(n) for n in NOISE])
axes["curve"].minorticks_off()
axes["curve"].legend(fontsize=8)
figure.savefig(OUT / "selective_scan_copying.png", dpi=120)
print(f"\nfigure: {OUT.name}/selective_scan_copying.png")
