"""The cases of the recurrences, for the table in cases.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import get_xp
from ..ops.shape import concat, reshape
from ..recurrences.aft import aft_full, aft_local
from ..recurrences.lstm import lstm
from ..recurrences.qrnn import qrnn
from ..recurrences.rglru import rglru
from ..recurrences.scan import adjoint_scan, scan, times_previous
from ..recurrences.selective_scan import selective_scan
from ..recurrences.ttt_linear import ttt_linear
from ..recurrences.ttt_mlp import ttt_mlp
from ..recurrences.wkv import wkv
from ..tape import array_of
from .draw import Draw


def recurrences(case: Callable, draw: Draw) -> None:
    """Small ones: their gradients are checked number by number."""
    for time, *rest in ((7, 2, 5), (1, 5, 2), (3, 800), (131, 3)):  # the loop; T = 1; long rows; two levels
        _scan(case, draw, time, *rest)
    for sizes in ((2, 7, 5), (5, 2, 7), (5, 1, 2), (1, 2, 13000)):  # the last: one time step per tile
        _rglru(case, draw, *sizes)
    for sizes in ((2, 7, 5), (5, 2, 7), (5, 1, 2), (1, 21, 3)):
        _wkv(case, draw, *sizes)
    for batch, time, width, states in ((2, 7, 5, 3), (5, 2, 3, 7), (5, 1, 2, 3), (1, 35, 2, 3)):
        _selective_scan(case, draw, batch, time, width, states)
    for sizes in ((2, 7, 5), (5, 2, 3), (5, 1, 2)):
        _lstm_and_qrnn(case, draw, *sizes)
    for batch, time, width, before in ((2, 7, 5, 0), (5, 2, 7, 3), (5, 1, 2, 1), (1, 70, 2, 1)):
        _aft(case, draw, batch, time, width, before)
    for batch, time, heads, width, size, at in ((2, 3, 1, 4, 2, 1), (1, 2, 3, 4, 1, 0), (3, 1, 2, 4, 5, 4)):
        _ttt(case, draw, batch, time, heads, width, size, at)


def wide_recurrences(case: Callable, draw: Draw) -> None:
    """For kernels: more than one block or warp, and rows that are whole sectors of 32 bytes (docs/cuda.md)."""
    _scan(case, draw, 460, 8)  # so long, with so few threads, that time is cut into chunks
    _scan(case, draw, 16, 2, 72)
    _rglru(case, draw, 2, 16, 72)
    _wkv(case, draw, 2, 16, 72)
    _selective_scan(case, draw, 2, 16, 72, 8)
    _lstm_and_qrnn(case, draw, 2, 16, 72)
    _ttt(case, draw, 1, 16, 2, 32, 8, 0)


def _scan(case: Callable, draw: Draw, time: int, *rest: int) -> None:
    normal, uniform = draw.normal, draw.rng.uniform
    case(scan, uniform(0.2, 0.9, (time, *rest)), normal(time, *rest), normal(*rest))
    case(adjoint_scan, uniform(0.2, 0.9, (time, *rest)), normal(time, *rest), normal(*rest))
    case(times_previous, normal(time, *rest), normal(time, *rest), normal(*rest))


def _rglru(case: Callable, draw: Draw, batch: int, time: int, width: int) -> None:
    gates = [draw.normal(batch, time, width) for _ in range(3)]
    starts = draw.rng.random((batch, time)) < 0.3 if batch == 5 else None
    case(rglru, *gates, draw.rng.uniform(-4.0, -1.0, width), draw.normal(batch, width), starts=starts)


def _wkv(case: Callable, draw: Draw, batch: int, time: int, width: int) -> None:
    k, v, sums = draw.normal(batch, time, width), draw.normal(batch, time, width), _first_sums(draw, batch, width)
    decay, first = draw.rng.uniform(-3.0, 1.0, width), draw.normal(width)
    case(wkv, k, v, decay, first, *sums, constants=(6,), reads=_without_gauge)


def _selective_scan(case: Callable, draw: Draw, batch: int, time: int, width: int, states: int) -> None:
    normal, uniform = draw.normal, draw.rng.uniform
    u, dt = normal(batch, time, width), uniform(0.05, 1.0, (batch, time, width))
    a, h_init = uniform(-2.0, -0.1, (width, states)), normal(batch, width, states)
    case(selective_scan, u, dt, a, *(normal(batch, time, states) for _ in range(2)), normal(width), h_init)


def _lstm_and_qrnn(case: Callable, draw: Draw, batch: int, time: int, width: int) -> None:
    normal = draw.normal
    z, w_h = normal(batch, time, 4 * width), normal(width, 4 * width)
    case(lstm, z, w_h, normal(batch, width), normal(batch, width))
    gates = [normal(batch, time, width) for _ in range(3)]
    case(qrnn, *gates, normal(batch, width))
    case(qrnn, *gates[:2], None, normal(batch, width))


def _aft(case: Callable, draw: Draw, batch: int, time: int, width: int, before: int) -> None:
    normal = draw.normal
    k, v = normal(batch, before + time, width), normal(batch, before + time, width)
    case(aft_full, k, v, normal(time, before + time))
    recent, sums = (k[:, :before], v[:, :before]), _first_sums(draw, batch, width)
    w = normal(time, 4)
    case(aft_local, k[:, before:], v[:, before:], w, *sums, *recent, constants=(5,), reads=_without_gauge)


def _ttt(case: Callable, draw: Draw, batch: int, time: int, heads: int, width: int, size: int, at: int) -> None:
    views, sizes = _ttt_views(draw, batch, time, heads, width, size), (batch, heads)
    for op, layers in ((ttt_linear, ((width, width),)), (ttt_mlp, ((width, 5), (5, width)))):
        weights = [draw.normal(*sizes, *shape) for n, m in layers for shape in ((n, m), (m,))]
        running = [0.3 * draw.normal(*w.shape) for w in weights]
        case(op, *views, *weights, *running, reads=_output_and_state, at=at)


def _ttt_views(draw: Draw, batch: int, time: int, heads: int, width: int, size: int) -> tuple:
    """q, k, v, lam, tau, gain and bias for mini-batches of `size`."""
    tokens, uniform = (batch, time, heads), draw.rng.uniform
    lam, tau = uniform(0.1, 0.5, tokens), uniform(0.2, 1.0, size)
    norm = draw.positive(heads, width), draw.normal(heads, width)
    return *(draw.normal(*tokens, width) for _ in range(3)), lam, tau, *norm


def _first_sums(draw: Draw, batch: int, width: int) -> tuple:
    """A state p, q, o (B, C) of WKV and AFT: of a past that has been, so that q is positive."""
    return draw.normal(batch, width), draw.positive(batch, width), draw.normal(batch, width)


def _output_and_state(z: Any, *state: Any) -> tuple:
    """The state of up to eight arrays as one: each output is checked by itself too, and these checks are slow."""
    return z, concat(*(reshape(x, shape=(x.size,)) for x in state))


def _without_gauge(y: Any, p: Any, q: Any, o: Any) -> tuple:
    """The output and the sums that the state stands for, p e^o and q e^o; the gauge o alone means nothing."""
    scale = get_xp(array_of(o)).exp(array_of(o))
    return y, p * scale, q * scale
