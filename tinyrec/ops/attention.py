"""Causal softmax attention: many or one key/value head, a sliding window, packed documents, keys carried from before.

The fused form never holds the (T, T) scores: it takes a chunk of queries at a time against the keys that chunk may see,
which costs O(T W) with a window, and recomputes the weights in the backward from the saved log-sum (Dao et al. 2022).

Which keys a query may see is one integer each, its `reach`: key j is visible from query i iff 0 <= i - j <= reach_i.
A window of W past tokens plus itself is reach = W; inside a document at position p it is min(W, p).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..backend import get_xp, on_gpu, row_dots
from ..tape import array_of, fused
from .elementwise import where
from .matmul import matmul
from .shape import reshape, transpose
from .softmax import softmax

CHUNK, ROWS = 64, 128  # queries at a time, against all the keys that they see; and rows, of all heads that share a key
BLOCK = 2**17  # scores at a time, about: as many sequences are taken together as stay in the cache


def naive(q, k, v, *, reach=None, window=None):
    """The definition with the whole score matrix, in ops of the tape: the law, and the form to differentiate twice."""
    batch, time, heads, width = q.shape
    keys, kv_heads = k.shape[1:3]
    grouped = transpose(reshape(q, shape=(batch, time, kv_heads, heads // kv_heads, width)), axes=(0, 2, 3, 1, 4))
    k, v = (reshape(transpose(a, axes=(0, 2, 1, 3)), shape=(batch, kv_heads, 1, keys, width)) for a in (k, v))
    scores = matmul(grouped, transpose(k)) * width**-0.5  # (B, Hkv, G, T, keys)
    xp = get_xp(array_of(q))
    reach = reach if window is None else xp.minimum(reach, window)
    distance = xp.arange(keys - time, keys)[:, None] - xp.arange(keys)
    visible = (distance >= 0) & (distance <= (keys if reach is None else reach[:, None, None, :, None]))
    weights = softmax(where(visible, scores, -math.inf))
    return reshape(transpose(matmul(weights, v), axes=(0, 3, 1, 2, 4)), shape=(batch, time, heads, width))


def _blocks(q, k, reach, window=None) -> Iterator[tuple]:
    """(batch slice, query slice, key slice, hidden) for every block of scores: N sequences, C queries, S keys.

    hidden (N or 1, 1, M, C, 1): which of the last M keys of the slice a query may not see; it sees all of the others.
    None: it sees them all.
    """
    xp = get_xp(q)
    (batch, time, heads), (keys, kv_heads) = q.shape[:3], k.shape[1:3]
    before = keys - time  # keys carried from before the first query
    chunk = max(1, min(CHUNK, ROWS * kv_heads // heads))
    for start in range(0, time, chunk):
        stop = min(start + chunk, time)
        at, last = xp.arange(start, stop) + before, stop + before  # the queries' places among the keys
        together = max(1, BLOCK // (heads * (stop - start) * last))
        for n in range(0, batch, together):
            rows, first, alike = slice(n, min(n + together, batch)), 0, True
            if reach is not None:
                oldest = xp.maximum(at - reach[rows, start:stop], 0)  # (N, C)
                if on_gpu(oldest):  # it is not asked, for it would have to be waited for
                    first, alike = 0 if window is None else max(0, start + before - window), False
                else:
                    first = int(oldest.min())
                    alike = bool((oldest == first).all())
            hidden = None
            if stop - start > 1 or not alike:  # if all see the same past, only the keys of the chunk itself are hidden
                place = xp.arange(start + before + 1 if alike else first, last)[:, None]  # (M, 1)
                hidden = place > at if alike else (place > at) | (place < oldest[:, None])
                hidden = hidden.reshape(-1, 1, len(place), stop - start, 1)
            yield rows, slice(start, stop), slice(first, last), hidden


def _rows(x):
    """x (N, C, Hkv, G, K), a block of queries or what belongs to them -> (N, Hkv, C G, K): a matrix per key head."""
    n, c, heads, g, width = x.shape
    return x.transpose(0, 2, 1, 3, 4).reshape(n, heads, c * g, width)


def _put(block, rows):
    """The other way: write rows (N, Hkv, C G, K) into block (N, C, Hkv, G, K)."""
    n, c, heads, g, width = block.shape
    block[...] = rows.reshape(n, heads, c, g, width).transpose(0, 2, 1, 3, 4)


def _heads_first(x):
    """A view of x (N, S, Hkv, K) as (N, Hkv, S, K)."""
    return x.transpose(0, 2, 1, 3)


def _turned(x):
    """Each matrix of x (..., N, M) transposed."""
    return x.swapaxes(-1, -2)


def _scores(kc, qc, hidden):
    """(N, Hkv, S, C G): products of the keys kc (N, Hkv, S, K) with the query rows qc (N, Hkv, C G, K), -inf if hidden.

    Keys come first, so that maximum and sum over them add whole rows, and what is subtracted is one row.
    """
    xp = get_xp(qc)
    scores = kc @ xp.asarray(_turned(qc), order="C")
    if hidden is not None:
        by_query = scores.reshape(*scores.shape[:3], hidden.shape[3], -1)
        xp.copyto(by_query[:, :, scores.shape[2] - hidden.shape[2] :], -math.inf, where=hidden)
    return scores


@fused(naive)
def attention(q, k, v, *, reach=None, window=None):
    """out (B, T, H, K) = softmax(q k^T / sqrt(K)) v over the visible keys.

    q (B, T, H, K); k, v (B, S, Hkv, K) with S >= T: the last T keys belong to the queries, those before are carried.
    H is a multiple of Hkv (1 = multi-query). reach (B, T) integers >= 0, or None for all that came before. window: no
    reach counts for more than this; None: all of it. It spares a GPU the keys before it; NumPy looks at reach itself.
    """
    xp = get_xp(q)
    reach = reach if window is None else xp.minimum(reach, window)
    (batch, time, heads, width), kv_heads = q.shape, k.shape[2]
    if k.shape != v.shape or k.shape[0] != batch or k.shape[3] != width or k.shape[1] < time or heads % kv_heads:
        raise ValueError("k and v must be (B, S, Hkv, K) with S >= T, and H a multiple of Hkv")
    grouped = q.reshape(batch, time, kv_heads, heads // kv_heads, width)
    out = xp.empty(grouped.shape, q.dtype)
    log_total = xp.empty((*grouped.shape[:-1], 1), q.dtype)
    for n, rows, cols, hidden in _blocks(q, k, reach, window):
        kc, vc = (_heads_first(a[n, cols]) for a in (k, v))  # (N, Hkv, S, K)
        scores = _scores(kc, _rows(grouped[n, rows]) * width**-0.5, hidden)
        top = scores.max(axis=2, keepdims=True)  # (N, Hkv, 1, C G)
        scores -= top
        weights = xp.exp(scores, out=scores)
        total = _turned(xp.ones((1, weights.shape[2]), q.dtype) @ weights)  # a product is faster than .sum(2)
        mixed = _turned(weights) @ vc  # (N, Hkv, C G, K)
        mixed /= total
        _put(out[n, rows], mixed)
        _put(log_total[n, rows], _turned(top) + xp.log(total))
    out = out.reshape(q.shape)
    return out, (q, k, v, out, log_total, reach, window)


@attention.vjp
def attention_vjp(g, q, k, v, out, log_total, reach, window):
    # P = e^(S - log total); dV = P^T dO; dS = P (dO V^T - rowsum(dO O)); dQ = dS K / sqrt K; dK = dS^T Q / sqrt K.
    # Query heads that share a key head are rows of one product, which adds their dK and dV.
    xp = get_xp(q)
    scale = q.shape[-1] ** -0.5
    dq, dk, dv = xp.empty_like(q), xp.zeros_like(k), xp.zeros_like(v)
    shape = (*log_total.shape[:-1], q.shape[-1])  # (B, T, Hkv, G, K)
    rowsum = row_dots(g, out).reshape(log_total.shape)
    qg, gg, dqg = q.reshape(shape), g.reshape(shape), dq.reshape(shape)
    for n, rows, cols, hidden in _blocks(q, k, reach, window):
        kc, vc, dkc, dvc = (_heads_first(a[n, cols]) for a in (k, v, dk, dv))  # (N, Hkv, S, K)
        qc, gc = _rows(qg[n, rows]) * scale, _rows(gg[n, rows])  # (N, Hkv, C G, K)
        weights = _scores(kc, qc, hidden)  # P^T (N, Hkv, S, C G)
        weights -= _turned(_rows(log_total[n, rows]))
        xp.exp(weights, out=weights)
        dvc += weights @ gc
        dscores = vc @ xp.asarray(_turned(gc), order="C")
        dscores -= _turned(_rows(rowsum[n, rows]))
        dscores *= weights
        _put(dqg[n, rows], _turned(dscores) @ kc * scale)
        dkc += dscores @ qc
    return dq, dk, dv
