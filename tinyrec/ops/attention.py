"""Causal softmax attention: many or one key/value head, a sliding window, packed documents, keys carried from before.

The fused form never holds the (T, T) scores: it takes a chunk of queries at a time against the keys that chunk may see,
which costs O(T W) with a window, and recomputes the weights in the backward from the saved log-sum (Dao et al. 2022).

Which keys a query may see is one integer each, its `reach`: key j is visible from query i iff 0 <= i - j <= reach_i.
A window of W past tokens plus itself is reach = W; inside a document at position p it is min(W, p).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..backend import get_xp
from ..tape import array_of, fused
from .elementwise import where
from .matmul import matmul
from .shape import reshape, transpose
from .softmax import softmax

CHUNK = 64  # queries at a time: their scores against a few hundred keys stay in the cache


def naive(q, k, v, *, reach=None):
    """The definition with the whole score matrix, in ops of the tape: the law, and the form to differentiate twice."""
    batch, time, heads, width = q.shape
    keys, kv_heads = k.shape[1:3]
    grouped = transpose(reshape(q, shape=(batch, time, kv_heads, heads // kv_heads, width)), axes=(0, 2, 3, 1, 4))
    k, v = (reshape(transpose(a, axes=(0, 2, 1, 3)), shape=(batch, kv_heads, 1, keys, width)) for a in (k, v))
    scores = matmul(grouped, transpose(k)) * width**-0.5  # (B, Hkv, G, T, keys)
    xp = get_xp(array_of(q))
    distance = xp.arange(keys - time, keys)[:, None] - xp.arange(keys)
    visible = (distance >= 0) & (distance <= (keys if reach is None else reach[:, None, None, :, None]))
    weights = softmax(where(visible, scores, -math.inf))
    return reshape(transpose(matmul(weights, v), axes=(0, 3, 1, 2, 4)), shape=(batch, time, heads, width))


def _blocks(q, k, reach) -> Iterator[tuple]:
    """(batch row, kv head, query slice, key slice, hidden (C, 1, keys) or None) for every chunk of queries."""
    xp = get_xp(q)
    (batch, time), keys = q.shape[:2], k.shape[1]
    before = keys - time  # keys carried from before the first query
    for n in range(batch):
        for start in range(0, time, CHUNK):
            stop = min(start + CHUNK, time)
            last = stop + before
            if stop - start == 1:  # a single query is given just the keys that it sees
                first, hidden = 0 if reach is None else max(0, last - 1 - int(reach[n, start])), None
            else:
                at = xp.arange(start, stop) + before  # the queries' places among the keys
                oldest = at * 0 if reach is None else xp.maximum(at - reach[n, start:stop], 0)
                first = int(oldest.min())
                column = xp.arange(first, last)
                hidden = ((column > at[:, None]) | (column < oldest[:, None]))[:, None, :]
            for h in range(k.shape[2]):
                yield n, h, slice(start, stop), slice(first, last), hidden


def _scores(qc, kc, hidden):
    """(C G, keys): scaled products of C G query rows with the keys, -inf where hidden."""
    scores = qc @ kc.T
    scores *= qc.shape[-1] ** -0.5
    if hidden is not None:
        by_query = scores.reshape(hidden.shape[0], -1, hidden.shape[2])
        get_xp(scores).copyto(by_query, -math.inf, where=hidden)
    return scores


@fused(naive)
def attention(q, k, v, *, reach=None):
    """out (B, T, H, K) = softmax(q k^T / sqrt(K)) v over the visible keys.

    q (B, T, H, K); k, v (B, S, Hkv, K) with S >= T: the last T keys belong to the queries, those before are carried.
    H is a multiple of Hkv (1 = multi-query). reach (B, T) integers >= 0, or None for all that came before.
    """
    xp = get_xp(q)
    (batch, time, heads, width), kv_heads = q.shape, k.shape[2]
    if k.shape != v.shape or k.shape[0] != batch or k.shape[3] != width or k.shape[1] < time or heads % kv_heads:
        raise ValueError("k and v must be (B, S, Hkv, K) with S >= T, and H a multiple of Hkv")
    grouped = q.reshape(batch, time, kv_heads, heads // kv_heads, width)
    out = xp.empty(grouped.shape, q.dtype)
    log_total = xp.empty(grouped.shape[:-1], q.dtype)
    for n, h, rows, cols, hidden in _blocks(q, k, reach):
        kc, vc = k[n, cols, h], v[n, cols, h]
        scores = _scores(grouped[n, rows, h].reshape(-1, width), kc, hidden)
        top = scores.max(axis=1, keepdims=True)
        scores -= top
        weights = xp.exp(scores, out=scores)
        total = weights.sum(axis=1, keepdims=True)
        out[n, rows, h] = ((weights @ vc) / total).reshape(out[n, rows, h].shape)
        log_total[n, rows, h] = (top + xp.log(total)).reshape(log_total[n, rows, h].shape)
    out = out.reshape(q.shape)
    return out, (q, k, v, out, log_total, reach)


@attention.vjp
def attention_vjp(g, q, k, v, out, log_total, reach):
    # P = e^(S - log total); dV = P^T dO; dS = P (dO V^T - rowsum(dO O)); dQ = dS K / sqrt K; dK = dS^T Q / sqrt K.
    # Query heads that share a key head are rows of one product, which adds their dK and dV.
    xp = get_xp(q)
    scale = q.shape[-1] ** -0.5
    dq, dk, dv = xp.empty_like(q), xp.zeros_like(k), xp.zeros_like(v)
    rowsum = xp.vecdot(g, out)  # (B, T, H)
    shape = (*log_total.shape, q.shape[-1])
    qg, gg, dqg, rowsum = q.reshape(shape), g.reshape(shape), dq.reshape(shape), rowsum.reshape(log_total.shape)
    for n, h, rows, cols, hidden in _blocks(q, k, reach):
        qc, gc = (a[n, rows, h].reshape(-1, shape[-1]) for a in (qg, gg))
        kc, vc = k[n, cols, h], v[n, cols, h]
        weights = _scores(qc, kc, hidden)
        weights -= log_total[n, rows, h].reshape(-1, 1)
        xp.exp(weights, out=weights)
        dv[n, cols, h] += weights.T @ gc
        dscores = gc @ vc.T
        dscores -= rowsum[n, rows, h].reshape(-1, 1)
        dscores *= weights
        dscores *= scale
        dqg[n, rows, h] = (dscores @ kc).reshape(dqg[n, rows, h].shape)
        dk[n, cols, h] += dscores.T @ qc
    return dq, dk, dv
