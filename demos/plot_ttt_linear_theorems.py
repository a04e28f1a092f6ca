"""
What a TTT layer is in special cases
====================================

Claim: gradient descent on a linear map while reading is linear attention if all tokens are one batch, and the delta
rule if each is its own; a learner that keeps all its data is softmax attention. With LayerNorm, TTT-Linear gives the
same in mini-batches, token by token and when decoding. The printed differences are rounding. In the weights that past
tokens have in an output, only the delta rule takes an older value of a repeated key away.

    python demos/plot_ttt_linear_theorems.py      prints five tables, draws demos/out/ttt_linear_theorems.png
"""

from pathlib import Path

import matplotlib
import numpy as np

from tinyrec import Tensor, grad
from tinyrec.ops import attention, matmul
from tinyrec.recurrences.ttt_linear import naive, primal, ttt_linear
from tinyrec.tape import array_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
rng = np.random.default_rng(0)

# %%
# The bare inner loop
# -------------------
# f(x) = x W: no LayerNorm, no bias, no residual. The gradient is the one that the tape finds for the loss as it stands
# here. q, k, v (T, d); every K tokens the weights at which gradients are taken are renewed.


def inner_loop(q, k, v, eta, K, W):
    """Outputs q_i W_i (T, d), where W_i has taken the steps of tokens 0 to i."""
    out = np.empty_like(v)
    for t in range(len(q)):
        if t % K == 0:
            start = Tensor(W, requires_grad=True)
        off = matmul(k[t : t + 1], start) - v[t : t + 1]
        (gradient,) = grad(0.5 * (off * off).sum(), [start])
        W = W - eta * gradient
        out[t] = q[t] @ W
    return out


def show(claim, got, wanted):
    difference = np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max())
    print(f"{claim:80}{difference:8.0e}")
    assert difference < 1e-12


T, d, eta = 50, 16, 0.7
q, k, v = rng.standard_normal((3, T, d))
k /= np.linalg.norm(k, axis=1, keepdims=True)
W = rng.standard_normal((d, d))
errors = v - k @ W  # of the first weights
corrected = np.linalg.solve(np.eye(T) + eta * np.tril(k @ k.T, -1), errors)  # U: errors of the weights at their time
kernel = np.tril(np.exp(q @ k.T / np.sqrt(d)))

print(f"without LayerNorm, T = {T}, d = {d}; * is the causal mask; right: largest difference / largest entry (or 1)")
show("one batch, step 1, W = 0      = (q k^T)* v", inner_loop(q, k, v, 1.0, T, 0 * W), np.tril(q @ k.T) @ v)
show("one batch, step 1             = q W + (q k^T)* (v - k W)", inner_loop(q, k, v, 1.0, T, W),
     q @ W + np.tril(q @ k.T) @ errors)  # fmt: skip
delta, state = np.empty_like(v), W.copy()
for t in range(T):
    state += eta * np.outer(k[t], v[t] - k[t] @ state)
    delta[t] = q[t] @ state
show(f"single tokens, step {eta}       = the delta rule", inner_loop(q, k, v, eta, 1, W), delta)
show(f"single tokens, step {eta}       = q W + {eta} (q k^T)* U", inner_loop(q, k, v, eta, 1, W),
     q @ W + eta * np.tril(q @ k.T) @ corrected)  # fmt: skip
show("mean of v by a kernel of q, k = softmax attention", kernel @ v / kernel.sum(axis=1, keepdims=True),
     attention(*(x[None, :, None] for x in (q, k, v)))[0, :, 0])  # fmt: skip
print(f"U = (1 + {eta} (k k^T)*)^-1 (v - k W), its mask without the diagonal: an error comes before its own step")

# %%
# The layer as it is
# ------------------
# f(x) = x + LN(x w + b), with rates lam for tokens and tau for places in a mini-batch. `naive` lets the tape find each
# inner gradient, `primal` has it in closed form, both token by token; `ttt_linear` reads a mini-batch at once.

B, H, T = 2, 3, 50
EPS = 1e-6  # in LN


def layer(K, lr=1.0):
    """q, k, v, lam, tau, gain, bias, and the state."""
    rng = np.random.default_rng(1)
    q, k, v = rng.standard_normal((3, B, T, H, d))
    lam, tau = lr * rng.uniform(0.2, 1.0, (B, T, H)) / d, 1 / np.arange(1, K + 1)
    gain, bias = 1 + 0.2 * rng.standard_normal((H, d)), 0.2 * rng.standard_normal((H, d))
    w, b = rng.standard_normal((B, H, d, d)) / np.sqrt(d), rng.standard_normal((B, H, d))
    return [q, k, v, lam, tau, gain, bias], [w, b, 0 * w, 0 * b]


def decode(inputs, state):
    """One token a call."""
    z, K = [], len(inputs[4])
    for t in range(T):
        out, *state = ttt_linear(*(x[:, t : t + 1] for x in inputs[:4]), *inputs[4:], *state, at=t % K)
        z.append(out)
    return np.concatenate(z, axis=1), *state


def normalised(z):
    centred = z - z.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS)


def model(x, gain, bias, w, b):
    """f for x (B, T, H, d)."""
    return x + gain * normalised(np.einsum("bthi,bhij->bthj", x, w) + b[:, None]) + bias


print(f"\nttt_linear, B = {B}, T = {T}, H = {H}, d = {d}: outputs and last state")
for K in (1, 7, 16, T):
    inputs, state = layer(K)
    expected = ttt_linear(*inputs, *state)
    for name, form in (("token by token, closed form", primal), ("token by token, by the tape", naive),
                       ("decoded, one token a call", decode)):  # fmt: skip
        got = form(inputs, state) if form is decode else form(*inputs, *state)
        flat, wanted = (np.concatenate([array_of(x).ravel() for x in xs]) for xs in (got, expected))
        show(f"K = {K:2}, the last mini-batch has {(T - 1) % K + 1:2}   = {name}", flat, wanted)

inputs, (w, b, *zero) = layer(T)
q, k, v, lam, tau, gain, bias = inputs
_, *_, G = ttt_linear(*(x[:, :1] for x in (q, k, v)), np.ones((B, 1, H)), tau, gain, bias, w, b, *zero)
row = np.einsum("bhi,bhij->bhj", k[:, 0], w) + b
h, spread = normalised(row), np.sqrt(row.var(axis=-1) + EPS)
e = gain * (model(k[:, :1], gain, bias, w, b) - v[:, :1])[:, 0]  # the gradient in h
show("sum of an inner gradient over the channels = 0", G.sum(axis=-1), 0.0)
show("sum of it times the normalised row h = eps sum(e h) / (variance + eps)^(3/2)", (G * h).sum(axis=-1),
     EPS * (e * h).sum(axis=-1) / spread**3)  # fmt: skip
print(f"{'    and its largest size':80}{np.abs((G * h).sum(axis=-1)).max():8.0e}")
z, *after = ttt_linear(q, k, v, 0 * lam, tau, gain, bias, w, b, *zero)
show("lam = 0: the output is f(q) at the first weights", z, model(q, gain, bias, w, b))
z, *after = ttt_linear(q, k, v, lam, tau, 0 * gain, bias, w, b, *zero)
show("gain = 0: the weights never move", np.concatenate([x.ravel() for x in after[:2]]),
     np.concatenate([w.ravel(), b.ravel()]))  # fmt: skip

# %%
# A small step descends, a large one need not
# -------------------------------------------
# What a mini-batch descends is sum_j lam_j l_j. Here all tokens are one, and v is random as above, or it is what the
# first weights say plus a little noise. A small step lowers the loss of both. Very large ones hardly differ, because
# LayerNorm forgets the size of the weights: they halve the loss of random v, and ruin what was nearly right.

SCALES = 10.0 ** np.arange(-2, 5)
print("\nloss of one mini-batch of all tokens, after its step / before; the most of all heads")
print(f"{'rates of tokens, times':24}" + "".join(f"{scale:>9g}" for scale in SCALES))
for name in ("random v", "v = f(k) + noise"):
    ratios = []
    for scale in SCALES:
        inputs, state = layer(T, scale)
        q, k, v, lam, tau, gain, bias = inputs
        if name != "random v":
            inputs[2] = v = model(k, gain, bias, *state[:2]) + 0.3 * v
        _, *after = ttt_linear(*inputs, *state)
        pair = [np.sum(lam * np.sum((model(k, gain, bias, *x[:2]) - v) ** 2, axis=-1), axis=1) for x in (state, after)]
        ratios.append(np.max(pair[1] / pair[0]))
    print(f"{name:24}" + "".join(f"{ratio:9.4f}" for ratio in ratios))

# %%
# Weights over the past
# ---------------------
# All three outputs are M v, with a matrix M (T, T) that does not know v. In a stream whose keys come again with new
# values, each token asks for the key of the token after it: so row t says what is recalled of that key just before. A
# softmax of short keys is nearly a plain mean, so its queries are made 8 sqrt(d) long.

T, N, S = 24, 5, 200  # tokens, different keys, streams


def draw(seed):
    """q, k, v (T, d) and which key each token has, and asks for."""
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((N, d))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    which = rng.integers(0, N, T + 1)
    return keys[which[1:]], keys[which[:-1]], rng.standard_normal((T, d)), which[:-1], which[1:]


def weights(q, k):
    kernel = np.tril(np.exp(8 * q @ k.T))
    return {
        "linear attention": np.tril(q @ k.T),
        "delta rule": np.tril(q @ k.T) @ np.linalg.inv(np.eye(T) + np.tril(k @ k.T, -1)),
        "softmax attention": kernel / kernel.sum(axis=1, keepdims=True),
    }


def kinds(written, asked):
    """(T, T) masks: the newest token of the key that is asked for, where it has older ones; these; all other tokens."""
    same = np.tril(asked[:, None] == written)
    newest = same & (np.cumsum(same[:, ::-1], axis=1)[:, ::-1] == 1)
    again = same.sum(axis=1, keepdims=True) > 1
    return newest & again, same & ~newest, np.tril(asked[:, None] != written)


q, k, v, written, asked = draw(0)
shown = weights(q, k)
outputs = (inner_loop(q, k, v, 1.0, T, np.zeros((d, d))), inner_loop(q, k, v, 1.0, 1, np.zeros((d, d))),
           attention(*(x[None, :, None] for x in (8 * np.sqrt(d) * q, k, v)))[0, :, 0])  # fmt: skip
print()
for (name, M), out in zip(shown.items(), outputs, strict=True):
    show(f"{name:17} = M v", M @ v, out)

found: dict = {name: [[], [], []] for name in shown}
for seed in range(S):
    one = draw(seed)
    masks = kinds(*one[3:])
    rows = masks[0].any(axis=1)
    for name, M in weights(*one[:2]).items():
        for part, mask in zip(found[name], masks, strict=True):
            size = np.abs(M) if mask is masks[2] else M
            part.append(((size * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1))[rows])
print(f"\nmean weight of a token in outputs whose key came twice or more; step 1, {S} streams (seeds 0 to {S - 1})")
print(f"{'':17}{'newest':>10}{'older':>10}{'other keys, size':>20}")
for name, parts in found.items():
    new, old, other = (np.concatenate(part).mean() for part in parts)
    print(f"{name:17}{new:10.3f}{old:10.3f}{other:20.3f}")

# %%
# The figure
# ----------

figure, panels = plt.subplots(1, 3, figsize=(13, 4.7), layout="constrained", sharey=True)
newest, older, _ = kinds(written, asked)
for panel, (name, M) in zip(panels, shown.items(), strict=True):
    image = panel.imshow(np.ma.masked_where(~np.tri(T, dtype=bool), M), cmap="RdBu_r", vmin=-1.6, vmax=1.6)
    for mask, marker, label in ((newest, "o", "newest of the key asked for"), (older, "x", "older of it")):
        t, j = np.nonzero(mask)
        colour = dict(facecolors="none", edgecolors="black") if marker == "o" else dict(color="black")
        panel.scatter(j, t, marker=marker, s=44 if marker == "o" else 18, linewidths=1.1, label=label, **colour)
    panel.set_xticks(range(T), ["ABCDE"[n] for n in written], fontsize=8)
    panel.set(title=name, xlabel="key of the token")
panels[0].set_yticks(range(T), ["ABCDE"[n] for n in asked], fontsize=8)
panels[0].set_ylabel("key that is asked for, from the first token down")
panels[0].legend(fontsize=8, loc="upper right")
bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.01, label="weight of the token's value in the output")
bar.ax.set_ylim(-1, 1)
figure.savefig(OUT / "ttt_linear_theorems.png", dpi=110)
print(f"\nfigure: {OUT.name}/ttt_linear_theorems.png")
