"""AFT, an attention free transformer (Zhai et al. 2021): full, simple and local, the causal forms.

Equation numbers are those of docs/recurrences/aft.md. Each channel is a weighted mean of its own past:

    n_t = sum_{i<=t} P_ti v_i,    P_ti = e^(k_i + w_ti) / sum_{i<=t} e^(k_i + w_ti)      (1)

k differs from channel to channel, the biases w (T, T) are shared by all. full: any w. local: w where t - i < s, 0
further back (2). simple: w = 0 (3), which is the WKV of RWKV without decay and bonus. The gate sigmoid(q) of the paper
is an op of its own.

Keys out of reach of every bias are summed up in a state (p, q, o): numerator p e^o, denominator q e^o (4). It counts as
one more key, of bias 0. One core serves full (the window is everything) and local. It takes a block of queries at a
time, in one of two forms of the same numbers, chosen by (9):
- two matrix products (8): e^(w - top) @ [e^(k - m) v, e^(k - m)], because w knows no channel and k no query;
- one query at a time under its true maximum (10): for any k, and much slower.
On a GPU, which would have to be waited for, it is always the products, in float64.
"""

from __future__ import annotations

import math
from itertools import pairwise

from ..backend import get_xp, on_gpu
from ..ops.elementwise import exp, where
from ..ops.shape import concat, skewed
from ..ops.softmax import softmax
from ..tape import array_of, fused
from .wkv import EMPTY, fresh_state, wkv

ROWS, TILE = 128, 128 * 1024  # queries of a block; numbers of k at a time: as many sequences as that, at least one
SHARE = 0.5  # of the exponents of the float format: how far k may spread (9)


def naive_full(k, v, w):
    """(1) with every weight P (B, T, S, C) written down, in ops of the tape; see `aft_full` for the shapes. Slow."""
    visible = get_xp(array_of(w)).tri(*w.shape, w.shape[1] - w.shape[0], dtype=bool)
    weights = softmax(where(visible[..., None], k[:, None] + w[..., None], -math.inf), axis=2)
    return (weights * v[:, None]).sum(axis=2)


def naive_local(k, v, w, p, q, o, recent_k, recent_v):
    """(5) with the weight of every pair written down, in ops of the tape; see `aft_local` for the shapes. Slow."""
    k, v, o = concat(recent_k, k, axis=1), concat(recent_v, v, axis=1), array_of(o)
    (time, window), keys, xp = w.shape, k.shape[1], get_xp(o)
    t, i = xp.ogrid[keys - time : keys, :keys]
    near = w[t - (keys - time), (t - i).clip(0, window - 1)]  # (T, R + T)
    bias = where(i > t, -math.inf, where(t - i < window, near, 0.0))  # (2)
    scores = k[:, None] + bias[..., None]  # (B, T, R + T, C)
    top = xp.maximum(array_of(scores).max(axis=2), o[:, None])  # any constant will do
    weights, first = exp(scores - top[:, :, None]), xp.exp(o[:, None] - top)
    num = (weights * v[:, None]).sum(axis=2) + first * p[:, None]
    den = weights.sum(axis=2) + first * q[:, None]
    old = slice(0, max(0, keys - window + 1))  # all but the last s - 1
    k, v = k[:, old], v[:, old]
    o_last = xp.concatenate([o[:, None], array_of(k)], axis=1).max(axis=1)
    e, keep = exp(k - o_last[:, None]), xp.exp(o - o_last)
    return num / den, keep * p + (e * v).sum(axis=1), keep * q + e.sum(axis=1), o_last  # (6)


def _fits(k, o):
    """(9), an array () of bool: do the keys lie so close together that (8) is safe?"""
    xp, high, low = get_xp(k), k.max(axis=1), k.min(axis=1)
    first = xp.where(o.max() > 0.5 * EMPTY, o, high)  # the state is one more key, if it holds anything
    return (xp.maximum(high, first) - xp.minimum(low, first)).max() <= SHARE * math.log(xp.finfo(k.dtype).max)


def _wide(*kvwpqo) -> tuple:
    """The inputs to compute with: on a GPU in float64, where (9) allows 354; beyond that all is NaN."""
    if not on_gpu(kvwpqo[0]):
        return kvwpqo
    k, v, w, p, q, o = (x.astype("float64") for x in kvwpqo)
    return k + get_xp(k).where(_fits(k, o), 0.0, math.nan), v, w, p, q, o


def _plan(k, w, o, by_key: bool, exact: bool) -> tuple:
    """Blocks of queries, each: the keys that are `old` from there on, its rows, the keys `seen`, and biases (r, 1 + n)
    for the state, which holds what is old, and for those seen. And what is old in the end.
    """
    xp, (time, window), before = get_xp(k), w.shape, k.shape[1] - len(w)
    held = xp.where(o.max() > 0.5 * EMPTY, 0.0, -math.inf)
    size, blocks, done = 1 if exact else ROWS, [], 0
    for start in range(0, time, size):
        rows = slice(start, min(start + size, time))
        seen = slice(max(0, before + start - window + 1), before + rows.stop)
        r, n = rows.stop - start, seen.stop - seen.start
        bias = xp.empty((r, 1 + n), w.dtype)
        bias[:, 0] = 0.0 if seen.start else held
        near = w[rows, seen] if by_key else skewed(w[rows], n - r, n)  # (2)
        bias[:, 1:] = xp.where(xp.tri(r, n, n - r, dtype=bool), near, -math.inf)  # nothing of the future
        blocks.append((slice(done, seen.start), rows, seen, bias))
        done = seen.start
    return blocks, slice(done, max(0, before + time - window + 1))


def _factors(bias, exact: bool, state: tuple, k, v) -> tuple:
    """a (r, 1 + n), x (B, 2, 1 + n, C) and e (B, 1 + n, C): a x (B, 2, r, C) is numerator and denominator of a block.

    Its keys are the state, [p, q] (B, 2, C) and o (B, C), and then k, v (B, n, C); bias (r, 1 + n) is for all of them,
    e their weights without it.
    """
    xp, (pq, o) = get_xp(k), state
    keys = xp.concatenate([o[:, None], k], axis=1)
    if exact:  # r = 1: the biases of the one query go with the keys
        keys += bias.T
        bias = xp.zeros_like(bias)  # (10)
    keys -= keys.max(axis=1, keepdims=True)  # (7)
    e = xp.exp(keys, out=keys)
    x = xp.empty((len(k), 2, *e.shape[1:]), e.dtype)
    xp.multiply(e[:, :1], pq, out=x[:, :, 0])
    xp.multiply(e[:, 1:], v, out=x[:, 0, 1:])
    x[:, 1, 1:] = e[:, 1:]
    return xp.exp(bias - bias.max(axis=1, keepdims=True)), x, e  # (8)


def _factors_vjp(dy, a, x, e) -> tuple:
    """Of the gradient dy (B, 2, r, C) of a x: dbias (r, n), d[p, q] (B, 2, C), dk and dv (B, n, C)."""
    dbias = a * (dy @ x.swapaxes(2, 3)).sum(axis=(0, 1))  # (17)
    dx = a.T @ dy  # (15)
    dpq, dv = e[:, :1] * dx[:, :, 0], e[:, 1:] * dx[:, 0, 1:]  # (18) (16)
    dx *= x
    return dbias[:, 1:], dpq, dx[:, 0, 1:] + dx[:, 1, 1:], dv  # (16)


def _absorb(state: tuple, k, v) -> tuple:
    """(6): the state with the keys k, v (B, n, C), perhaps none: the sums of a block with one query and no bias."""
    xp, (_, o) = get_xp(k), state
    a, x, _ = _factors(xp.zeros((1, 1 + k.shape[1]), k.dtype), False, state, k, v)
    return (a @ x)[:, :, 0], xp.maximum(o, k.max(axis=1)) if k.shape[1] else o


def _absorb_vjp(dpq, state: tuple, k, v) -> tuple:
    """(19): d[p, q] of the state before, dk and dv."""
    factors = _factors(get_xp(k).zeros((1, 1 + k.shape[1]), k.dtype), False, state, k, v)
    return _factors_vjp(dpq[:, :, None], *factors)[1:]


def _tiles(k) -> list[slice]:
    """Some sequences of the batch at a time."""
    size = max(1, TILE // (k.shape[1] * k.shape[2]))
    return [slice(b, b + size) for b in range(0, len(k), size)]


def _means(k, v, w, p, q, o, by_key: bool, exact: bool) -> tuple:
    """k, v (B, R + T, C), p, q, o (B, C), w (T, s) of keys, s = R + T, or steps back -> n, den (B, T, C), p, q, o."""
    xp, dtype = get_xp(k), k.dtype
    k, v, w, p, q, o = _wide(k, v, w, p, q, o)
    blocks, last = _plan(k, w, o, by_key, exact)
    n = xp.empty((len(k), len(w), k.shape[2]), k.dtype)
    den, p_last, q_last, o_last = (xp.empty_like(x) for x in (n, p, q, o))
    for b in _tiles(k):
        kb, vb, state = k[b], v[b], (xp.stack([p[b], q[b]], axis=1), o[b])
        for old, rows, seen, bias in blocks:
            state = _absorb(state, kb[:, old], vb[:, old])
            a, x, _ = _factors(bias, exact, state, kb[:, seen], vb[:, seen])
            y = a @ x
            den[b, rows] = y[:, 1]
            xp.divide(y[:, 0], y[:, 1], out=n[b, rows])  # (5)
        pq, o_last[b] = _absorb(state, kb[:, last], vb[:, last])
        p_last[b], q_last[b] = pq[:, 0], pq[:, 1]
    n, p_last, q_last, o_last = (x.astype(dtype, copy=False) for x in (n, p_last, q_last, o_last))
    return n, den, p_last, q_last, o_last  # den may be too small for float32


def _means_vjp(g, dp_last, dq_last, k, v, w, p, q, o, by_key: bool, exact: bool, n, den) -> tuple:
    """dk, dv, dw and the gradients of the first p and q."""
    xp, dtype = get_xp(k), k.dtype
    k, v, w, p, q, o = _wide(k, v, w, p, q, o)
    blocks, last = _plan(k, w, o, by_key, exact)
    dk, dv, dw, dp, dq = (xp.zeros_like(x) for x in (k, v, w, p, q))
    for b in _tiles(k):
        kb, vb, dkb, dvb = k[b], v[b], dk[b], dv[b]
        states = [(xp.stack([p[b], q[b]], axis=1), o[b])]
        for old, *_ in blocks:
            states.append(_absorb(states[-1], kb[:, old], vb[:, old]))
        dpq = xp.stack([dp_last[b], dq_last[b]], axis=1)
        dpq, dkb[:, last], dvb[:, last] = _absorb_vjp(dpq, states[-1], kb[:, last], vb[:, last])
        for (old, rows, seen, bias), (before, after) in reversed(list(zip(blocks, pairwise(states), strict=True))):
            dnum = g[b, rows] / den[b, rows]
            dy = xp.stack([dnum, -dnum * n[b, rows]], axis=1)  # (14)
            factors = _factors(bias, exact, after, kb[:, seen], vb[:, seen])
            dbias, dpq_read, dk_seen, dv_seen = _factors_vjp(dy, *factors)
            dnear = dbias if by_key else skewed(dbias, dbias.shape[1] - len(dbias), w.shape[1])  # (2)
            dw[rows, seen if by_key else slice(None)] += dnear
            dkb[:, seen] += dk_seen
            dvb[:, seen] += dv_seen
            dpq, dk_old, dv_old = _absorb_vjp(dpq + dpq_read, before, kb[:, old], vb[:, old])
            dkb[:, old] += dk_old
            dvb[:, old] += dv_old
        dp[b], dq[b] = dpq[:, 0], dpq[:, 1]
    return tuple(x.astype(dtype, copy=False) for x in (dk, dv, dw, dp, dq))


@fused(naive_full)
def aft_full(k, v, w):
    """n (B, T, C) of keys and values k, v (B, S, C) and biases w (T, S), S >= T: the last T positions ask.

    Query t sees the keys i <= S - T + t; the rest of w is not used. O(T S C). Saves k, v, w, n, which are there anyway,
    and den, as large as n.
    """
    if k.ndim != 3 or v.shape != k.shape or w.ndim != 2 or w.shape[1] != k.shape[1] or not 1 <= len(w) <= w.shape[1]:
        raise ValueError("expected k and v of one shape (B, S, C) and w (T, S) with 1 <= T <= S")
    p, q, o = fresh_state(len(k), k.shape[2], k)
    n, den, *_ = _means(k, v, w, p, q, o, True, exact := not (on_gpu(k) or _fits(k, o)))
    return n, (k, v, w, n, den, exact)


@aft_full.vjp
def aft_full_vjp(g, k, v, w, n, den, exact):
    state = p, q, _ = fresh_state(len(k), k.shape[2], k)
    return _means_vjp(g, p, q, k, v, w, *state, True, exact, n, den)[:3]


def aft_simple(k, v, p, q, o):
    """(3): the running mean with weights e^k. It is WKV with decay rate 0 and bonus 0, so it is no op of its own.

    k, v (B, T, C), state p, q, o (B, C) of the past -> n (B, T, C) and p, q, o (B, C) after the last token.
    """
    xp = get_xp(array_of(k))
    return wkv(k, v, xp.full(k.shape[-1], -math.inf, k.dtype), xp.zeros(k.shape[-1], k.dtype), p, q, o)


@fused(naive_local, surrogate="the gauge o is held constant; p e^o and q e^o have exact gradients")
def aft_local(k, v, w, p, q, o, recent_k, recent_v):
    """n (B, T, C) of k, v (B, T, C) and w (T, s), w[t, j] for the key j steps back; and p, q, o (B, C) to go on with.

    recent_k, recent_v (B, R, C): the tokens just before, s - 1 of them, or all if there are fewer. The state p, q, o
    holds what is OLDER than those (wkv's `fresh_state` if nothing is); the state returned, what is older than the last
    s - 1 tokens of recent and k together, which the caller keeps. O(T s C). Saves the inputs, n, and den like n.
    """
    batch, time, width = k.shape if k.ndim == 3 else (0, 0, 0)
    if not time or v.shape != k.shape or w.ndim != 2 or len(w) != time or not w.shape[1]:
        raise ValueError("expected k and v of one shape (B, T, C), T >= 1, and w (T, s), s >= 1")
    recent = (batch, recent_k.shape[1] if recent_k.ndim == 3 else 0, width)
    if not recent_k.shape == recent_v.shape == recent or recent[1] >= w.shape[1]:
        raise ValueError(f"expected recent_k and recent_v ({batch}, R, {width}) with R < s = {w.shape[1]}")
    if not p.shape == q.shape == o.shape == (batch, width):
        raise ValueError(f"expected p, q, o ({batch}, {width})")
    k_all, v_all = (get_xp(k).concatenate(x, axis=1) for x in ((recent_k, k), (recent_v, v)))
    n, den, *state = _means(k_all, v_all, w, p, q, o, False, exact := not (on_gpu(k) or _fits(k_all, o)))
    return (n, *state), (k, v, w, p, q, o, recent_k, recent_v, n, den, exact)


@aft_local.vjp
def aft_local_vjp(gs, k, v, w, p, q, o, recent_k, recent_v, n, den, exact):
    xp, r = get_xp(k), recent_k.shape[1]
    k_all, v_all = (xp.concatenate(x, axis=1) for x in ((recent_k, k), (recent_v, v)))
    g, dp, dq, _ = (xp.zeros_like(x) if gx is None else gx for gx, x in zip(gs, (n, o, o, o), strict=True))
    dk, dv, dw, dp, dq = _means_vjp(g, dp, dq, k_all, v_all, w, p, q, o, False, exact, n, den)
    return dk[:, r:], dv[:, r:], dw, dp, dq, None, dk[:, :r], dv[:, :r]
