"""The kernels of TTT-Linear equal the fused NumPy form, and the checker has nothing to say, but of planted mistakes."""

import numpy as np
import pytest

from tinyrec.backend import get_xp, to_cpu, to_gpu
from tinyrec.cuda import launch as launching
from tinyrec.cuda.launch import host_build, kernel_text, launch
from tinyrec.recurrences.ttt_linear import ttt_linear

#         B, T, H, d, K, at
SIZES = [(1, 1, 1, 3, 1, 0), (1, 1, 1, 5, 4, 3), (2, 7, 3, 6, 1, 0), (1, 3, 2, 4, 8, 2), (2, 9, 2, 8, 4, 2)]
SIZES += [(1, 12, 1, 9, 6, 0), (3, 5, 1, 7, 5, 4), (1, 23, 2, 33, 7, 3), (2, 20, 1, 12, 16, 0)]
NAMES = ["z", "w_last", "s_last", "dq", "dk", "dv", "dlam", "dtau", "dgain", "dbias", "dw", "ds"]


def draw(batch, time, heads, d, size, at, seed=0, w_std=1.0):
    """q, k, v, lam, tau, gain, bias, w, s: the last two with the bias as their last row; s is 0 if at is."""
    rng = np.random.default_rng(seed)
    views = rng.standard_normal((3, batch, time, heads, d))
    lam, tau = rng.uniform(0.2, 1, (batch, time, heads)) / d, rng.uniform(0.2, 1, size)
    w, s = rng.standard_normal((2, batch, heads, d + 1, d))
    return [*views, lam, tau, *rng.uniform(0.5, 1.5, (2, heads, d)), w_std * w, s]


def threads_for(most, d):
    """Threads of a block: one for each tile of 4 rows and a column, in whole warps."""
    return min(256, -(-(-(-most // 4) * d) // 32) * 32)


def shared_numbers(most, d, size, threads):
    """Of the forward and of the backward: the two formulas in the head comment of the kernel."""
    row, square = (d + 1) | 1, most * (most | 1)
    forward = (d + 1) * row + 4 * most * row + square
    return forward, 2 * (d + 1) * row + 6 * most * row + 2 * square + threads // 32 * (2 * d + 1) + size


def forward(q, k, v, lam, tau, gain, bias, w, s, *, at, every, threads=None, keep=True):
    """z, w_last, s_last, g, saved; and what a backward is started with."""
    xp, (batch, time, heads, d), size = get_xp(q), q.shape, len(tau)
    groups, most = (at + time - 1) // size // every + 1, min(size, time)
    threads = threads or threads_for(most, d)
    there = shared_numbers(most, d, size, threads)

    def start(name, *args):
        sizes, count = (batch, time, heads, d, d + 1, size, at, groups, every), there["backward" in name]
        shape = {"grid": (batch * heads,), "block": (threads,)}
        launch("ttt_linear", name, *args, *sizes, **shape, shared_mem=count * q.itemsize)

    outs = [xp.full(shape, np.nan, q.dtype) for shape in (q.shape, w.shape, s.shape, q.shape, (groups, *w.shape))]
    if not keep:
        outs[3:] = None, None
    start("ttt_linear_forward", q, k, v, lam, tau, gain, bias, w, s, *outs)
    return outs, start


def kernel(*args, at, every=2, threads=None):
    """z, w_last, s_last, and all gradients for cotangents(...), in the order of NAMES."""
    q, _, _, lam, tau, gain, _, w, s = args
    (z, w_last, s_last, g, saved), start = forward(*args, at=at, every=every, threads=threads)
    shapes = [q.shape, q.shape, q.shape, lam.shape, (*w.shape[:2], len(tau)), (len(w), *gain.shape)]
    shapes += [shapes[-1], w.shape, s.shape]
    grads = [get_xp(q).full(shape, np.nan, q.dtype) for shape in shapes]
    start("ttt_linear_backward", *args[:7], s, g, saved, *cotangents(z, w, s), *grads)
    grads[4:7] = grads[4].sum(axis=(0, 1)), grads[5].sum(axis=0), grads[6].sum(axis=0)
    return [z, w_last, s_last, *grads]


def cotangents(*like):
    draws = [np.random.default_rng([11, n]).standard_normal(x.shape).astype(x.dtype) for n, x in enumerate(like)]
    return [get_xp(like[0]).asarray(x) for x in draws]


def fused(*args, at, checkpoint=0):
    """The same of the NumPy form."""
    w, s = args[7:]
    parts = w[:, :, :-1], w[:, :, -1], s[:, :, :-1], s[:, :, -1]
    (z, *last), saved = ttt_linear.op.forward(*args[:7], *parts, at=at, checkpoint=checkpoint)
    dz, dw, ds = cotangents(z, w, s)
    gs = dz, dw[:, :, :-1], dw[:, :, -1], ds[:, :, :-1], ds[:, :, -1]
    *grads, dw, db, dgw, dgb = ttt_linear.op.backward(gs, *saved)
    return [z, joined(*last[:2]), joined(*last[2:]), *grads, joined(dw, db), joined(dgw, dgb)]


def joined(w, b):
    return np.concatenate([w, b[:, :, None]], axis=2)


def apart(got, expected):
    """name -> largest difference, relative to the largest entry."""
    assert [x.shape for x in got] == [x.shape for x in expected]
    pairs = zip(NAMES, map(to_cpu, got), expected, strict=True)
    return {name: float(np.abs(x - y).max() / max(1.0, np.abs(y).max())) for name, x, y in pairs}


@pytest.mark.parametrize("build", ["fiber", "check"])
def test_kernel_equals_fused(cpp, build):
    for seed, sizes in enumerate(SIZES):
        args, at = draw(*sizes, seed), sizes[-1]
        for every, threads in ((1, None), (2, 96), (99, 32)):
            with host_build(build) as reports:
                off = apart(kernel(*args, at=at, every=every, threads=threads), fused(*args, at=at))
            assert all(x < 1e-13 for x in off.values()), (sizes, off)  # 2e-15 is what is seen
            assert [finding for report in reports for finding in report.findings] == []


@pytest.mark.gpu
def test_kernel_on_a_gpu_equals_fused():
    for seed, sizes in enumerate([*SIZES, (2, 50, 2, 64, 8, 3)]):
        args, at = draw(*sizes, seed), sizes[-1]
        off = apart(kernel(*map(to_gpu, args), at=at), fused(*args, at=at))
        assert all(x < 1e-12 for x in off.values()), (sizes, off)


@pytest.mark.parametrize("w_std", [1.0, 0.02, 0.0])
def test_kernel_in_float32(cpp, w_std):
    """At 0 every row of the first mini-batch is 0, and rho at its largest; 0.02 is how the published layer starts."""
    for sizes in ((1, 70, 2, 64, 16, 5), (1, 200, 1, 16, 4, 0)):
        args = draw(*sizes, 3, w_std)
        args[8] *= sizes[-1] > 0
        single = [x.astype(np.float32) for x in args]
        got = kernel(*single, at=sizes[-1])
        assert all(x.dtype == np.float32 for x in got)
        off = apart(got, fused(*(x.astype(np.float64) for x in single), at=sizes[-1]))
        assert all(x < 2e-5 for x in off.values()), (sizes, off)  # 4e-6 is what is seen


def test_how_often_w_is_saved_changes_no_bit(cpp):
    args = [x.astype(np.float32) for x in draw(2, 41, 2, 9, 4, 3)]
    first, *others = (kernel(*args, at=3, every=every) for every in (1, 2, 5, 99))
    assert all((x == y).all() for other in others for x, y in zip(first, other, strict=True))


def test_nothing_is_kept_where_no_gradient_is_asked(cpp):
    args = draw(2, 9, 2, 8, 4, 2)
    kept, bare = (forward(*args, at=2, every=1, keep=keep)[0][:3] for keep in (True, False))
    assert all((x == y).all() for x, y in zip(kept, bare, strict=True))


def test_pieces_of_a_sequence_chain(cpp):
    q, k, v, lam, *rest, w, s = draw(1, 30, 2, 6, 7, 0)
    whole = forward(q, k, v, lam, *rest, w, s, at=0, every=1)[0]
    for cuts in ((7, 21), (1, 6, 20), range(1, 30)):
        zs, state = [], (w, s)
        for start, stop in zip((0, *cuts), (*cuts, 30), strict=True):
            views = (np.ascontiguousarray(x[:, start:stop]) for x in (q, k, v, lam))
            z, *state = forward(*views, *rest, *state, at=start % 7, every=1, keep=False)[0][:3]
            zs.append(z)
        for x, y in zip((np.concatenate(zs, axis=1), *state), whole[:3], strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("every", [1, 2])
def test_the_bytes_of_the_head_comment(cpp, every):
    sizes = 1, 64, 2, 8, 4, 0
    args = draw(*sizes)
    wide, matrix = args[0].nbytes, args[7].nbytes
    with host_build("check") as reports:
        kernel(*args, at=0, every=every)
    expected = {"ttt_linear_forward": 5 * wide, "ttt_linear_backward": 8 * wide}
    for report in reports:
        floor = expected[report.kernel] + 16 // every * matrix
        assert floor < report.distinct < floor + 5 * matrix + wide / 2  # states, rates, gain and bias


def test_the_shared_memory_of_the_head_comment(cpp):
    assert [4 * n for n in shared_numbers(16, 64, 16, 256)] == [34628, 65128]  # 65536 is the least that GPUs have
    for sizes in ((1, 9, 1, 6, 4, 2), (1, 5, 1, 7, 9, 0)):  # the check build knows the end of what was asked for
        with host_build("check") as reports:
            kernel(*draw(*sizes), at=sizes[-1])
        assert [finding for report in reports for finding in report.findings] == []


BARRIER = "__syncthreads();"
#            what is planted, instead of what (or the number of a barrier that is left out), words of the finding
MUTANTS = [(n, "", "a race") for n in (1, 3, 9, 15)]
MUTANTS += [("min(i + a, rows - 1) * x.row", "(i + a) * x.row", "which nobody has written")]
MUTANTS += [("min(stop, time) - start", "stop - start", "out of bounds")]
MUTANTS += [("if (threadIdx.x % 32 == 0) dtaus", "dtaus", "a race")]


@pytest.fixture
def plant(monkeypatch):
    def forget():
        launching._host_module.cache_clear()
        launching._function.cache_clear()

    def change_to(text):
        monkeypatch.setattr(launching, "kernel_text", lambda stem: text)
        forget()

    yield change_to
    forget()


@pytest.mark.parametrize(("right", "wrong", "words"), MUTANTS)
def test_a_planted_mistake_is_found(cpp, plant, right, wrong, words):
    text = kernel_text("ttt_linear")
    if isinstance(right, int):
        parts = text.split(BARRIER)
        plant(BARRIER.join(parts[: right + 1]) + BARRIER.join(parts[right + 1 :]))
    else:
        assert right in text
        plant(text.replace(right, wrong))
    with host_build("check") as reports:
        kernel(*draw(1, 9, 1, 6, 4, 2), at=2, threads=64)
    assert any(words in finding for report in reports for finding in report.findings)
