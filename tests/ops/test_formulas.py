"""The forward of every op against an independent NumPy formula: another route to the same numbers, often a slow one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.inspect import cases
from tinyrec.inspect.cases import call_of

FORMULAS = {}
# One NumPy call under another name: comparing it with itself would say nothing.
BY_DIFFERENCES = {"inner_gradient": 1e-8, "ttt_linear": 1e-8, "ttt_mlp": 1e-8}  # formulas with an error of their own
TAUTOLOGIES = set("add sub mul neg exp log tanh sum broadcast_to reshape l2wrap".split())


def formula(f):
    FORMULAS[f.__name__] = f
    return f


def simple(**formulas):
    FORMULAS.update(formulas)


simple(
    div=lambda x, y: x * (1.0 / y),
    sqrt=lambda x: np.exp(0.5 * np.log(x)),
    bounded_sqrt=lambda x: x**0.5,
    sigmoid=lambda x: 0.5 + 0.5 * np.tanh(0.5 * x),
    softplus=lambda x: np.log1p(np.exp(x)),
    silu=lambda x: x / (1.0 + np.exp(-x)),
    gelu=lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    relu=lambda x: (x + abs(x)) / 2.0,
    squared_relu=lambda x: x * (x + abs(x)) / 2.0,
    softcap=lambda x, cap: cap - 2.0 * cap / (np.exp(2.0 * x / cap) + 1.0),
    clip=lambda x, low, high: (abs(x - low) - abs(x - high) + low + high) / 2.0,
    maximum=lambda x, y: (x + y + abs(x - y)) / 2.0,
    where=lambda mask, x, y: np.asarray(mask) * x + (1.0 - np.asarray(mask)) * y,
    max=lambda x, axis, keepdims: -np.min(-x, axis=axis, keepdims=keepdims),
    logsumexp=lambda x, axis, keepdims: np.log(np.exp(x).sum(axis=axis, keepdims=keepdims)),
    matmul=lambda a, b: np.einsum("...nk,...km->...nm", a, b),
    linear=lambda x, w, b=None: np.einsum("...n,nm->...m", x, w) + (0.0 if b is None else b),
    inner=lambda a, b: (a * b).sum(axis=-1, keepdims=True),
    concat=lambda *xs, axis: np.moveaxis(np.array([row for x in xs for row in np.moveaxis(x, axis, 0)]), 0, axis),
    stack=lambda *xs, axis: np.moveaxis(np.array(xs), 0, axis),
    embedding=lambda table, tokens: np.eye(len(table))[tokens] @ table,
    add_rows=lambda g, tokens, n_rows: np.eye(n_rows)[tokens.ravel()].T @ g.reshape(tokens.size, -1),
    softmax=lambda x, axis=-1: np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True),
)


@formula
def pow(x, exponent):
    if exponent in (1, 2, 3):
        return math.prod([x] * exponent)
    return np.exp(exponent * np.log(x))


@formula
def mean(x, axis, keepdims):
    total = x.sum(axis=axis, keepdims=keepdims)
    return total * (total.size / x.size)


def places(index, shape):
    return np.arange(math.prod(shape)).reshape(shape)[index]


@formula
def getitem(x, index):
    return x.ravel()[places(index, x.shape)]


@formula
def scatter(g, index, shape):
    at = places(index, shape)
    return np.bincount(at.ravel(), weights=g.ravel(), minlength=math.prod(shape)).reshape(shape)


@formula
def transpose(x, axes=None):
    axes = (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2) if axes is None else axes
    letters = "abcd"[: x.ndim]
    return np.einsum(f"{letters}->{''.join(letters[a] for a in axes)}", x)


@formula
def split(x, sizes, axis=-1):
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


@formula
def pad(x, widths):
    out = np.zeros([n + before + after for n, (before, after) in zip(x.shape, widths, strict=True)])
    out[tuple(slice(before, before + n) for n, (before, _) in zip(x.shape, widths, strict=True))] = x
    return out


@formula
def block_linear(x, w, b=None):
    n, k, _ = w.shape
    matrix = np.zeros((n * k, n * k))
    for i in range(n):
        matrix[i * k : (i + 1) * k, i * k : (i + 1) * k] = w[i]
    return x @ matrix + (0.0 if b is None else b.ravel())


@formula
def block_outer(x, g, n):
    x, g = (a.reshape(-1, n, a.shape[-1] // n) for a in (x, g))
    return np.einsum("rni,rnj->nij", x, g)


@formula
def cross_entropy(logits, targets, ignore_index=-1, reduction="mean"):
    losses = []
    for at in np.ndindex(targets.shape):
        if targets[at] != ignore_index:
            losses.append(math.log(sum(math.exp(z) for z in logits[at])) - logits[at][targets[at]])
    return np.asarray(sum(losses) / (len(losses) if reduction == "mean" else 1))


@formula
def softmax_error(logits, targets, ignore_index=-1):
    error = FORMULAS["softmax"](logits) - np.eye(logits.shape[-1])[targets]
    return np.where((targets != ignore_index)[..., None], error, 0.0)


@formula
def rmsnorm(x, gain=None, eps=1e-6, one_plus=False):
    y = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps)
    return y * (1.0 if gain is None else gain + float(one_plus))


@formula
def layernorm(x, gain, bias, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * gain + bias


@formula
def gelu_gate(gate, x):
    return FORMULAS["gelu"](gate) * x


@formula
def silu_gate(gate, x):
    return FORMULAS["silu"](gate) * x


@formula
def sigmoid_gate(gate, x):
    return FORMULAS["sigmoid"](gate) * x


@formula
def token_shift(x, last, *mus):  # a convolution over two tokens
    padded = np.concatenate([last[:, None], x], axis=1)
    ys = [np.stack([mu * row[1:] + (1.0 - mu) * row[:-1] for row in padded]) for mu in mus]
    return *ys, padded[:, -1]


@formula
def rope(x, cos, sin, pairing):  # a pair is a complex number, turning it is a product
    y, r = x.copy(), cos.shape[-1]
    for j in range(r):
        a, b = (j, j + r) if pairing == "half" else (2 * j, 2 * j + 1)
        turned = (x[..., a] + 1j * x[..., b]) * (cos + 1j * sin)[:, :, None, j]
        y[..., a], y[..., b] = turned.real, turned.imag
    return y


@formula
def causal_conv(x, w, b, state, positions=None):
    taps, u = len(w), np.empty_like(x)
    for n, t, e in np.ndindex(x.shape):
        u[n, t, e] = b[e]
        for j in range(taps):
            before = x[n, t - j, e] if t >= j else state[n, taps - 1 + t - j, e]
            if positions is None or positions[n, t] >= j:
                u[n, t, e] += w[taps - 1 - j, e] * before
    return u, np.concatenate([state, x], axis=1)[:, x.shape[1] :]


@formula
def attention(q, k, v, reach=None, window=math.inf):
    out, before, group = np.empty_like(q), k.shape[1] - q.shape[1], q.shape[2] // k.shape[2]
    for n, t, h in np.ndindex(q.shape[:3]):
        first = 0 if reach is None else max(0, t + before - min(reach[n, t], window))
        seen = slice(first, t + before + 1)
        weights = np.exp(k[n, seen, h // group] @ q[n, t, h] / math.sqrt(q.shape[3]))
        out[n, t, h] = weights @ v[n, seen, h // group] / weights.sum()
    return out


@formula
def scan(a, b, h_init):
    steps = range(len(a))
    # unrolled: h_t = (a_t ... a_0) h_init + sum over s of (a_t ... a_{s+1}) b_s
    h = np.array([
        np.prod(a[: t + 1], axis=0) * h_init + sum(np.prod(a[s + 1 : t + 1], axis=0) * b[s] for s in range(t + 1))
        for t in steps
    ])  # fmt: skip
    return h, h[-1]


@formula
def adjoint_scan(a, g, g_last):
    delta, carry = np.empty_like(g), g_last
    for t in range(len(a) - 1, -1, -1):
        delta[t] = g[t] + carry
        carry = a[t] * delta[t]
    return delta, carry


@formula
def times_previous(delta, h, h_init):
    return delta * np.concatenate([h_init[None], h[:-1]])


@formula
def rglru(u, zr, zi, lam, h_init, starts=None):
    r, i = (1.0 / (1.0 + np.exp(-z)) for z in (zr, zi))
    a = np.exp(-8.0 * np.log1p(np.exp(lam)) * r)
    h, states = h_init, []
    for t in range(u.shape[1]):
        start = np.zeros((len(u), 1), bool) if starts is None else starts[:, t, None]
        at = np.where(start, 0.0, a[:, t])
        h = at * h + np.sqrt(1.0 - at**2) * i[:, t] * u[:, t]
        states.append(h)
    return np.stack(states, axis=1), h


@formula
def wkv(k, v, time_decay, time_first, p, q, o):  # without a gauge, which small numbers do not need
    a, b, keep, ys = p * np.exp(o), q * np.exp(o), np.exp(-np.exp(time_decay)), []
    for kt, vt in zip(k.swapaxes(0, 1), v.swapaxes(0, 1), strict=True):
        now = np.exp(time_first + kt)
        ys.append((a + now * vt) / (b + now))
        a, b = keep * a + np.exp(kt) * vt, keep * b + np.exp(kt)
    return np.stack(ys, axis=1), a, b, np.zeros_like(a)


@formula
def selective_scan(u, dt, a, b, c, d, h_init):
    h, y = h_init.copy(), np.empty_like(u)
    for n, t, e in np.ndindex(u.shape):
        h[n, e] = np.exp(dt[n, t, e] * a[e]) * h[n, e] + dt[n, t, e] * u[n, t, e] * b[n, t]
        y[n, t, e] = c[n, t] @ h[n, e] + d[e] * u[n, t, e]
    return y, h


@formula
def lstm(z, w_h, h_init, c_init):
    h, c, hs = h_init, c_init, []
    for t in range(z.shape[1]):
        i, f, g, o = np.split(z[:, t] + h @ w_h, 4, axis=-1)
        c = c / (1.0 + np.exp(-f)) + np.tanh(g) / (1.0 + np.exp(-i))
        h = np.tanh(c) / (1.0 + np.exp(-o))
        hs.append(h)
    return np.stack(hs, axis=1), h, c


@formula
def qrnn(z, f, i, c_init):
    c, cs, keep = c_init, [], 1.0 / (1.0 + np.exp(-f))
    let_in = 1.0 - keep if i is None else 1.0 / (1.0 + np.exp(-i))
    for t in range(z.shape[1]):
        c = keep[:, t] * c + let_in[:, t] * np.tanh(z[:, t])
        cs.append(c)
    return np.stack(cs, axis=1), c


@formula
def aft_full(k, v, w):
    out, before = np.empty_like(v[:, : len(w)]), k.shape[1] - len(w)
    for t in range(len(w)):
        weights = np.exp(k + w[t][:, None])[:, : before + t + 1]
        out[:, t] = (weights * v[:, : before + t + 1]).sum(axis=1) / weights.sum(axis=1)
    return out


@formula
def aft_local(k, v, w, p, q, o, recent_k, recent_v):
    k, v = np.concatenate([recent_k, k], axis=1), np.concatenate([recent_v, v], axis=1)
    (time, window), a, b, out = w.shape, p * np.exp(o), q * np.exp(o), []
    for t in range(time):
        num, den = a.copy(), b.copy()
        for i in range(k.shape[1] - time + t + 1):
            back = k.shape[1] - time + t - i
            weight = np.exp(k[:, i] + (w[t, back] if back < window else 0.0))
            num, den = num + weight * v[:, i], den + weight
        out.append(num / den)
    for i in range(max(0, k.shape[1] - window + 1)):  # those that will lie outside of the next window
        a, b = a + np.exp(k[:, i]) * v[:, i], b + np.exp(k[:, i])
    return np.stack(out, axis=1), a, b, np.zeros_like(a)


def inner_model_step(loss, weights, size=1e-6):
    """dloss/dweights, one number after the other, by central differences of four points."""
    gradients = [np.empty_like(w) for w in weights]
    for w, g in zip(weights, gradients, strict=True):
        for i in np.ndindex(w.shape):
            old, total = w[i], 0.0
            for by, factor in ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12)):
                w[i] = old + by * size
                total += factor * loss(weights)
            w[i], g[i] = old, total / size
    return gradients


def ttt(model, q, k, v, lam, tau, gain, bias, *state, at):
    """Each inner step by differences of the loss as it is written, one token, sequence and head after the other."""
    z, after = np.empty_like(q), [x.copy() for x in state]
    for n, h in np.ndindex(len(q), q.shape[2]):
        arrays, place = [x[n, h].copy() for x in state], at
        weights, sums = arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]

        def f(x, weights, h=h):
            out = model(x, *weights)
            return x + gain[h] * (out - out.mean()) / np.sqrt(out.var() + 1e-6) + bias[h]

        for t in range(q.shape[1]):

            def loss(weights, x=k[n, t, h], y=v[n, t, h], f=f):
                return 0.5 * ((f(x, weights) - y) ** 2).sum()

            sums = [s + lam[n, t, h] * g for s, g in zip(sums, inner_model_step(loss, weights, 1e-3), strict=True)]
            moved = [w - tau[place] * s for w, s in zip(weights, sums, strict=True)]
            z[n, t, h] = f(q[n, t, h], moved)
            place = (place + 1) % len(tau)
            if place == 0:
                weights, sums = moved, [0.0 * s for s in sums]
        for full, x in zip(after, (*weights, *sums), strict=True):
            full[n, h] = x
    return z, *after


@formula
def ttt_linear(*args, at):
    return ttt(lambda x, w, b: x @ w + b, *args, at=at)


@formula
def ttt_mlp(*args, at):
    return ttt(lambda x, w1, b1, w2, b2: FORMULAS["gelu"](x @ w1 + b1) @ w2 + b2, *args, at=at)


@formula
def inner_norm(z, gain, bias):
    return gain[:, None] * (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6) + bias[:, None]


@formula
def inner_gradient(z, target, gain, bias):
    def loss(weights):
        return 0.5 * ((inner_norm(weights[0], gain, bias) - target) ** 2).sum()

    return inner_model_step(loss, [z.copy()], 1e-3)[0]


@formula
def recompute(x, w, call, weights):
    return np.tanh(x @ w)


EVERY_CASE = [(name.split(".")[-1], i, c) for name, cs in cases().items() for i, c in enumerate(cs)]


def test_every_op_has_a_formula_or_a_reason():
    assert {name for name, _, _ in EVERY_CASE} == set(FORMULAS) | TAUTOLOGIES


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{n}-{i}") for n, i, c in EVERY_CASE if n not in TAUTOLOGIES])
def test_forward_equals_its_formula(case):
    out = call_of(case)(*case.args)
    expected = call_of(case, FORMULAS[case.op.__name__])(*case.args)
    assert isinstance(out, tuple) == isinstance(expected, tuple)
    pairs = zip(out, expected, strict=True) if isinstance(out, tuple) else [(out, expected)]
    for a, b in pairs:
        assert_close(a, b, BY_DIFFERENCES.get(case.op.__name__, 1e-10), case.op.__name__)
