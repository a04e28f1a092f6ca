"""WKV, the recurrence of RWKV-4 (Peng et al. 2023): per channel, an average of the values so far, with weights e^k
that fade with age.

Equation numbers are those of docs/recurrences/wkv.md. With every step a token's exponent changes by
lam = -exp(time_decay) < 0; the current token has the bonus u = time_first instead.

    y_t = (sum_{i<t} e^{(t-1-i) lam + k_i} v_i + e^{u+k_t} v_t) / (the same sum without the v)                 (1)
    A_t = e^lam A_{t-1} + e^{k_t} v_t, B_t = e^lam B_{t-1} + e^{k_t} are the two sums over the past            (2)
    A = p e^o, B = q e^o                                                                                       (3)
    p_t = keep_t p_{t-1} + new_t v_t,  q_t = keep_t q_{t-1} + new_t                                            (6)
    y_t = (past_t p_{t-1} + now_t v_t) / (past_t q_{t-1} + now_t)                                              (7)

The gauge o is a free scale, chosen so that keep, new, past and now, all of them exponentials, neither overflow nor
vanish. Once it is fixed, (6) is the scan of scan.py, for p and q at once, and so is its backward (11).
"""

from __future__ import annotations

from ..backend import Array, get_xp
from ..cuda.launch import contiguous, launch
from ..cuda.switch import kernels_wanted
from ..ops.elementwise import exp
from ..tape import array_of, fused
from .scan import scan_into, time_major, time_tiles

EMPTY = -1e38  # the gauge of a state that has seen nothing: e^o is 0
TILE = 64 * 1024  # numbers worked on at a time
LEAST_STEPS = 16  # of a tile, however long the rows: the state before each tile is kept for the backward
LARGEST = {4: 60.0, 8: 600.0}  # |u + lam| up to which (9) is safe, by bytes of a number: far from its overflow


def fresh_state(batch: int, width: int, like: Array) -> tuple[Array, Array, Array]:
    """p = q = 0 and o = EMPTY, each (batch, width), of the array library and the dtype of `like`."""
    zeros = get_xp(array_of(like)).zeros
    p, q, o = (zeros((batch, width), like.dtype) for _ in range(3))
    o += EMPTY
    return p, q, o


def naive(k, v, time_decay, time_first, p, q, o):
    """The definition (1) in ops of the tape, as T x T weights over the past for every channel; see `wkv` for shapes.

    One more row, t = T, gives the state after the last step, in the gauge (4). Slow: B T^2 C numbers at a time.
    """
    o, time = array_of(o), k.shape[1]
    xp = get_xp(o)
    t, i = xp.arange(time + 1)[:, None], xp.arange(time)
    age, now, future = xp.maximum(t - 1 - i, 0), t == i, xp.where(i > t, -xp.inf, 0.0)  # (T+1, T)
    age, now, future = (x.astype(o.dtype)[..., None] for x in (age, now, future))
    lam = -exp(time_decay)
    z = age * lam + k[:, None] + now * time_first + future  # (B, T+1, T, C), the exponents of the tokens
    z_init = t.astype(o.dtype) * lam + o[:, None]  # (B, T+1, C), that of the first state
    gauge = xp.maximum(array_of(z).max(axis=2), array_of(z_init))  # a constant; any would do
    weight, weight_init = exp(z - gauge[:, :, None]), exp(z_init - gauge)
    num = (weight * v[:, None]).sum(axis=2) + weight_init * p[:, None]
    den = weight.sum(axis=2) + weight_init * q[:, None]
    rows = slice(None), slice(0, time)
    return num[rows] / den[rows], num[:, time], den[:, time], gauge[:, time]


def single_gauge(lam, time_first):
    """past / keep = e^{-u-lam} (C,) of (9); None where one of them is too large or too small: then (8) is used.

    On a GPU this waits for one number.
    """
    xp = get_xp(lam)
    exponent = -time_first - lam
    return xp.exp(exponent) if float(abs(exponent).max()) < LARGEST[lam.dtype.itemsize] else None


def _weights(before, after, k, lam, time_first, ratio) -> tuple:
    """keep and new of the state (6), past and now of the readout (7); k and the gauges before and after it (..., C).

    Only differences of gauges enter, so o may be rounded at every step: what it lost is made up for by keep.
    """
    xp = get_xp(k)
    kept, arrived = before - after, k - after
    keep, new = xp.exp(kept + lam), xp.exp(arrived)  # (5)
    if ratio is not None:
        return keep, new, keep * ratio, new  # (9)
    current = arrived + time_first
    largest = xp.maximum(kept, current)
    return keep, new, xp.exp(kept - largest), xp.exp(current - largest)  # (8)


def _run(k, v, lam, time_first, ratio, p, q, o) -> tuple:
    """(4) to (7) for a tile: k, v (t, B, C), p, q, o (B, C) the state before it.

    Returns y and its denominator (t, B, C), states (t+1, 2, B, C): p and q before each step and after the last, the
    last gauge (B, C), and the weights keep, new, past, now (t, B, C).
    """
    xp = get_xp(k)
    gauges = xp.empty((len(k) + 1, *o.shape), o.dtype)  # o before each step and after the last
    gauges[0] = o
    for before, after, kt in zip(gauges[:-1], gauges[1:], k, strict=True):
        xp.add(before, lam, out=after)
        xp.maximum(after, kt, out=after)  # (4)
    keep, new, past, now = weights = _weights(gauges[:-1], gauges[1:], k, lam, time_first, ratio)
    inputs = xp.empty((len(k), 2, *o.shape), k.dtype)
    xp.multiply(new, v, out=inputs[:, 0])
    inputs[:, 1] = new
    states = xp.empty((len(k) + 1, 2, *o.shape), k.dtype)
    states[0, 0], states[0, 1] = p, q
    scan_into(_twice(keep), inputs, states[0], states[1:])  # (6)
    y, den = past * states[:-1, 0], past * states[:-1, 1]
    y += now * v
    den += now
    y /= den  # (7)
    return y, den, states, gauges[-1], *weights


def _twice(keep):
    """keep (t, B, C) as the a_t of two scans at once, a view (t, 2, B, C)."""
    return get_xp(keep).broadcast_to(keep[:, None], (len(keep), 2, *keep.shape[1:]))


@fused(naive, surrogate="the gauge o is held constant; p e^o and q e^o have exact gradients")
def wkv(k, v, time_decay, time_first, p, q, o):
    """y (B, T, C) and the last state p, q, o (B, C) of k, v (B, T, C), time_decay, time_first (C,) and a first p, q, o.

    The official parameters and the official state: it stands for A = p e^o, B = q e^o, and `fresh_state` is empty.
    Saves k, v and the state before every tile of at least 16 steps, 3/16 of k or less; the backward recomputes the
    rest. No gradient for o, the scale in which the caller chose to write down A and B, and none comes from the last o.
    """
    batch, time, width = k.shape
    if v.shape != k.shape or time_decay.shape != (width,) or time_first.shape != (width,):
        raise ValueError(f"expected v like k, time_decay and time_first ({width},)")
    if time < 1 or any(x.shape != (batch, width) for x in (p, q, o)):
        raise ValueError(f"expected T >= 1 and p, q, o ({batch}, {width})")
    xp = get_xp(k)
    if time > 1 and kernels_wanted(xp, "wkv"):
        tiles, inputs = -(-time // (64 // k.itemsize)), contiguous(k, v, time_decay, time_first)  # STEPS of wkv.cu
        y, *last = outs = [xp.empty(x.shape, k.dtype) for x in (k, p, p, p)]
        starts = xp.empty((tiles, 3, batch, width), k.dtype)
        sizes = batch, time, width, tiles
        launch("wkv", "wkv_forward", *inputs, *contiguous(p, q, o), *outs, starts, *sizes, threads=p.size)
        return (y, *last), (*inputs, None, starts)
    lam = -xp.exp(time_decay)
    starts = [(p, q, o)]  # the state before each tile
    if time == 1:
        y, *state = step(k[:, 0], v[:, 0], lam, time_first, None, p, q, o)
        return (y[:, None], *state), (k, v, lam, time_first, None, starts)
    y, ratio = xp.empty_like(k), single_gauge(lam, time_first)
    for tile in time_tiles(k.shape, TILE, LEAST_STEPS):
        yt, _, states, o, *_ = _run(time_major(k, tile), time_major(v, tile), lam, time_first, ratio, *starts[-1])
        y[:, tile] = yt.swapaxes(0, 1)
        starts.append((states[-1, 0].copy(), states[-1, 1].copy(), o.copy()))
    return (y, *starts.pop()), (k, v, lam, time_first, ratio, starts)


def step(k, v, lam, time_first, ratio, p, q, o) -> tuple:
    """One step of decoding: everything (B, C), no tiles, no buffers. Returns y and the new p, q, o.

    lam = -exp(time_decay); ratio: `single_gauge` of lam and time_first, or None.
    """
    o_next = get_xp(k).maximum(o + lam, k)  # (4)
    keep, new, past, now = _weights(o, o_next, k, lam, time_first, ratio)
    y = (past * p + now * v) / (past * q + now)  # (7)
    return y, keep * p + new * v, keep * q + new, o_next  # (6)


@wkv.vjp
def wkv_vjp(gs, k, v, lam, time_first, ratio, starts):
    xp = get_xp(k)
    dy, dp, dq, _ = gs
    if type(starts) is not list:  # of the kernel, and lam is time_decay
        state, sizes = starts[0, 0], (*k.shape, len(starts))
        likes = zip((dy, dp, dq), (k, state, state), strict=True)
        given = contiguous(*(xp.zeros_like(x) if g is None else g for g, x in likes))
        dk, dv, ddecay, dfirst, dp, dq = grads = [xp.empty(x.shape, k.dtype) for x in (k, k, *4 * [state])]
        launch("wkv", "wkv_backward", k, v, lam, time_first, starts, *given, *grads, *sizes, threads=state.size)
        return dk, dv, ddecay.sum(axis=0), dfirst.sum(axis=0), dp, dq, None  # a row per sequence
    dk, dv, dlam, du = xp.empty_like(k), xp.empty_like(v), xp.zeros_like(lam), xp.zeros_like(lam)
    dstate = xp.stack([xp.zeros_like(k[:, 0]) if dx is None else dx for dx in (dp, dq)])
    for tile, start in reversed(list(zip(time_tiles(k.shape, TILE, LEAST_STEPS), starts, strict=True))):
        vt = time_major(v, tile)
        y, den, states, _, keep, new, past, now = _run(time_major(k, tile), vt, lam, time_first, ratio, *start)
        dnum = xp.zeros_like(vt) if dy is None else time_major(dy, tile)
        dnum /= den  # (10)
        reads = xp.empty((len(vt), 2, *dstate.shape[1:]), k.dtype)  # what the readout adds to the state's gradient
        xp.multiply(past, dnum, out=reads[:, 0])
        xp.multiply(reads[:, 0], -y, out=reads[:, 1])
        dstates = xp.empty_like(states)  # of p and q before each step and after the last
        dstates[-1] = dstate
        scan_into(_twice(keep)[::-1], reads[::-1], dstate, dstates[-2::-1])  # (11)
        dstate, after = dstates[0].copy(), dstates[1:]
        keep *= (after * states[:-1]).sum(axis=1)
        dlam += keep.sum(axis=(0, 1))  # (12)
        dnum *= now
        after *= new[:, None]
        dv[:, tile] = (dnum + after[:, 0]).swapaxes(0, 1)  # (13)
        dbonus = xp.subtract(vt, y, out=y)
        dbonus *= dnum  # (14)
        du += dbonus.sum(axis=(0, 1))  # (15)
        dbonus += after[:, 1]
        dbonus += xp.multiply(after[:, 0], vt, out=vt)
        dk[:, tile] = dbonus.swapaxes(0, 1)  # (16)
    return dk, dv, lam * dlam, du, dstate[0].copy(), dstate[1].copy(), None  # (17)
