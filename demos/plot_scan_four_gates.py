"""
One recurrence, four kinds of gates
===================================

Claim: WKV, RG-LRU, S6 and QRNN are h_t = a_t h_{t-1} + b_t with different a_t and b_t. Each fused op of the library is
compared, in its output and in every gradient, with the plain scan fed by gates that are made here in a few lines.

    python demos/plot_scan_four_gates.py      prints two tables, draws demos/out/scan_four_gates.png
"""

from pathlib import Path

import matplotlib
import numpy as np

from tinyrec import Tensor, grad, ops
from tinyrec.recurrences.qrnn import qrnn
from tinyrec.recurrences.rglru import rglru
from tinyrec.recurrences.scan import scan
from tinyrec.recurrences.selective_scan import selective_scan
from tinyrec.recurrences.wkv import wkv
from tinyrec.tape import array_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
COLOURS = {"WKV": "tab:red", "RG-LRU": "tab:blue", "S6": "tab:green", "QRNN": "tab:orange"}

# %%
# The gates
# ---------
# Every function below takes arrays or Tensors with time first, (T, B, C), and returns a_t and b_t. They are ops of the
# tape, so their gradients follow.


def qrnn_gates(z, f):
    """Two gates tied by a sum: what is forgotten makes room for what is new. f-pooling."""
    a = ops.sigmoid(f)
    return a, (1.0 - a) * ops.tanh(z)


def rglru_gates(u, zr, zi, lam):
    """Tied by a sum of squares: a_t^2 + m_t^2 = 1. The gate r is the exponent of a learned decay."""
    log_a = ops.sigmoid(zr) * (ops.softplus(lam) * -8.0)
    m = ops.sqrt(1.0 - ops.exp(log_a * 2.0))
    return ops.exp(log_a), m * (ops.sigmoid(zi) * u)


def s6_gates(u, dt, a, b):
    """Tied by the step size dt. N states for each channel: one more axis, (T, B, D, N)."""
    dt, u, b = dt.reshape(*dt.shape, 1), u.reshape(*u.shape, 1), b.reshape(*b.shape[:2], 1, -1)
    return ops.exp(dt * a), dt * b * u


def wkv_gates(k, v, time_decay, o):
    """No gate at all: a fixed decay lam, and weights e^k. Two scans with one a_t, of e^k v and of e^k.

    The gauge o keeps the exponentials small; y does not depend on it, so it is an array, held fixed.
    """
    lam = -ops.exp(time_decay)
    before, after = o[:-1], o[1:]
    a, b = ops.exp(lam + (before - after)), ops.exp(k - after)
    return a, b * v, b


def gauges(k, time_decay, o):
    """o before step 0 and after every step: large enough for the new token and for the old state."""
    k, lam, gauge = array_of(k), -np.exp(array_of(time_decay)), [o]
    for k_t in k:
        gauge.append(np.maximum(gauge[-1] + lam, k_t))
    return np.stack(gauge)


# %%
# Gates, scan, readout
# --------------------
# The same arguments as the fused ops, (B, T, C), and the same output y.


def swap(x):
    """(B, T, C) to (T, B, C) and back."""
    return ops.transpose(x, axes=(1, 0, 2))


def qrnn_by_scan(z, f, c_init):
    return swap(scan(*qrnn_gates(swap(z), swap(f)), c_init)[0])


def rglru_by_scan(u, zr, zi, lam, h_init):
    return swap(scan(*rglru_gates(swap(u), swap(zr), swap(zi), lam), h_init)[0])


def s6_by_scan(u, dt, a, b, c, d, h_init):
    h, _ = scan(*s6_gates(swap(u), swap(dt), a, swap(b)), h_init)  # (T, B, D, N)
    c = swap(c)
    return swap((c.reshape(*c.shape[:2], 1, -1) * h).sum(axis=3)) + d * u


def wkv_by_scan(k, v, time_decay, time_first, p, q):
    k, v = swap(k), swap(v)
    o = gauges(k, time_decay, np.zeros(p.shape))
    a, bv, b = wkv_gates(k, v, time_decay, o)
    (ps, _), (qs, _) = scan(a, bv, p), scan(a, b, q)
    p, q = (ops.concat(x.reshape(1, *x.shape), xs[:-1]) for x, xs in ((p, ps), (q, qs)))  # the state BEFORE the update
    largest = np.maximum(o[:-1], array_of(time_first) + array_of(k))
    past, now = np.exp(o[:-1] - largest), ops.exp(time_first + k - largest)
    return swap((past * p + now * v) / (past * q + now))


# %%
# The comparison
# --------------

B, T, D, N = 3, 200, 7, 4
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape)


MODELS = {
    "WKV": (
        lambda *arguments: wkv(*arguments, np.zeros((B, D)))[0],
        wkv_by_scan,
        {"k": normal(B, T, D), "v": normal(B, T, D), "time_decay": rng.uniform(-4, 0, D), "time_first": normal(D),
         "p": normal(B, D), "q": rng.uniform(0.5, 2, (B, D))},
    ),
    "RG-LRU": (
        lambda *arguments: rglru(*arguments)[0],
        rglru_by_scan,
        {"u": normal(B, T, D), "zr": normal(B, T, D), "zi": normal(B, T, D), "lam": rng.uniform(-5, -2, D),
         "h_init": normal(B, D)},
    ),
    "S6": (
        lambda *arguments: selective_scan(*arguments)[0],
        s6_by_scan,
        {"u": normal(B, T, D), "dt": np.logaddexp(normal(B, T, D) - 2, 0), "a": -rng.uniform(0.5, 4, (D, N)),
         "b": normal(B, T, N), "c": normal(B, T, N), "d": normal(D), "h_init": normal(B, D, N)},
    ),
    "QRNN": (
        lambda z, f, c_init: qrnn(z, f, None, c_init)[0],
        qrnn_by_scan,
        {"z": normal(B, T, D), "f": normal(B, T, D), "c_init": normal(B, D)},
    ),
}  # fmt: skip


def output_and_gradients(function, arguments, cotangent):
    leaves = [Tensor(x, requires_grad=True) for x in arguments]
    y = function(*leaves)
    return [y.data, *grad(y, leaves, g=cotangent)]


print(f"fused op against gates and scan, float64, (B, T, D, N) = {B, T, D, N}; largest |difference| / largest |value|")
for name, (fused, by_scan, arguments) in MODELS.items():
    cotangent = np.random.default_rng(1).standard_normal((B, T, D))
    ours, plain = (output_and_gradients(f, arguments.values(), cotangent) for f in (fused, by_scan))
    errors = [np.abs(x - y).max() / np.abs(y).max() for x, y in zip(ours, plain, strict=True)]
    cells = [f"{label} {error:.0e}" for label, error in zip(("y", *(f"d{a}" for a in arguments)), errors, strict=True)]
    print(f"{name:7} worst {max(errors):.0e}:  " + "  ".join(cells))

# %%
# What the gates do
# -----------------
# One channel, one signal: silence, and a loud stretch of four steps. It drives the argument of each gate, with an
# offset that gives all four a decay of 0.95 in silence. Two questions: what is a_t, and what is left of a value that
# came in at step 10? The second is measured through the fused ops: the input is 1 at that
# step and 0 at all others, so the loud stretch brings nothing of its own.
# RG-LRU's gate r is 1/2 in silence and 1 at most, so lam decides how fast it can forget: 0.95^2 a step. S6 is given one
# state with a = -1: exp(-softplus(x)) = sigmoid(-x), the forget gate of QRNN. Only what they let in differs.
# WKV's own a_t is constant. What the reader of y sees is an average, so for WKV both plots show the share of the old
# average in the new, e^lam B_{t-1} / B_t, begun with a state that has settled in silence. B_t is e^lam B_{t-1} + e^k,
# so the share is sigmoid(log(e^lam B_{t-1}) - k): a QRNN's forget gate, with an offset that knows what B has weighed.

T, AT, LOUD, QUIET = 120, 10, slice(60, 64), 0.95
signal = np.zeros((1, T, 1))
signal[:, LOUD] = 3.0
value = np.zeros((1, T, 1))
value[:, AT] = 1.0
zero, still = np.zeros((1, T, 1)), np.zeros((1, 1))
one = np.ones((1, T, 1))

time_decay = np.log(-np.log(QUIET)) * np.ones(1)
settled = np.array([[1 / (1 - QUIET)]])  # B in silence: 1 + 0.95 + 0.95^2 + ...
lam = np.log(np.expm1(-np.log(QUIET) / 4.0)) * np.ones(1)  # 8 softplus(lam) / 2 = -log 0.95, at zr = 0
dt = np.logaddexp(signal + np.log(np.expm1(-np.log(QUIET))), 0)  # softplus; -log 0.95 in silence
f = np.log(QUIET / (1 - QUIET)) - signal  # a loud token closes the forget gate

o = gauges(swap(signal), time_decay, still)
a, _, b = wkv_gates(swap(signal), swap(value), time_decay, o)
q, _ = scan(a, b, settled)
before = np.concatenate([settled[None], q[:-1]])  # q_{t-1}
share, old_weight = a * before / q, before * np.exp(o[:-1])  # B_{t-1} = q e^o
decays = {
    "WKV": share,
    "as a gate": ops.sigmoid(np.log(QUIET * old_weight) - swap(signal)),
    "RG-LRU": rglru_gates(swap(value), swap(signal), swap(zero), lam)[0],
    "S6": s6_gates(swap(value), swap(dt), -np.ones((1, 1)), swap(one))[0],
    "QRNN": qrnn_gates(swap(value), swap(f))[0],
}
bonus = np.full(1, -1e3)  # WKV: read the state alone, without the current token
responses = {
    "WKV": wkv(signal, value, time_decay, bonus, 0.0 * settled, settled, still)[0][:, 1:],  # read one step later
    "RG-LRU": rglru(value, signal, zero, lam, still)[0],
    "S6": selective_scan(value, dt, -np.ones((1, 1)), one, one, np.zeros(1), np.zeros((1, 1, 1)))[0],
    "QRNN": qrnn(value, f, None, still)[0],
}
decays = {name: x.ravel() for name, x in decays.items()}
responses = {name: x.ravel() / x.ravel()[AT] for name, x in responses.items()}
shown = (AT, LOUD.start, LOUD.stop - 1, LOUD.stop, T - 1)
print("\na_t at some steps; what is left of the value before and after the loud stretch, and the product of the a_t")
print("step   " + "".join(f"{t:8}" for t in shown) + "      before      after    product")
for name, response in responses.items():
    a, left = decays[name], response[[LOUD.start - 1, LOUD.stop - 1]]
    numbers = "".join(f"{x:11.2e}" for x in (*left, a[AT + 1 : LOUD.stop].prod()))
    print(f"{name:7}" + "".join(f"{a[t]:8.3f}" for t in shown) + " " + numbers)
pairs = {"S6 and QRNN": ("S6", "QRNN"), "WKV's share and sigmoid(log(e^lam B) - k)": ("WKV", "as a gate")}
for words, (one_name, other) in pairs.items():
    print(f"{words} differ by at most {np.abs(decays[one_name] - decays[other]).max():.0e} in a_t")

# %%
# The figure
# ----------

figure, axes = plt.subplots(2, 1, figsize=(9, 6.5), layout="constrained", sharex=True)
for name, colour in COLOURS.items():
    style = dict(color=colour, label=name, linestyle="--" if name == "QRNN" else "-")  # it lies upon S6
    axes[0].step(np.arange(T), decays[name], where="mid", **style)
    axes[1].plot(np.arange(AT, len(responses[name])), responses[name][AT:], **style)
axes[0].axhline(QUIET, color=COLOURS["WKV"], linewidth=0.8, linestyle=":", label="WKV's own, e^lam")
axes[0].set(ylabel="decay a_t (WKV: share)", ylim=(0, 1.05), title="one signal, four gates")
axes[1].set(ylabel="what is left of the value", yscale="log", xlabel="step", title=f"a value at step {AT}")
for axis in axes:
    axis.axvspan(LOUD.start - 0.5, LOUD.stop - 0.5, color="grey", alpha=0.25, linewidth=0, label="loud")
    axis.legend(fontsize=9, loc="lower left")
figure.savefig(OUT / "scan_four_gates.png", dpi=120)
print(f"\nfigure: {OUT.name}/scan_four_gates.png")
