"""Attention: fused equals naive equals loops, for any heads, window, documents and carried keys; and what it costs."""

import importlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close
from tinyrec.ops import attention, concat, getitem
from tinyrec.tape import SecondOrderError, Tensor
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.ops.attention")


def draw(seed, batch, time, carried, kv_heads, group, width, dtype="float64"):
    """q, k, v."""
    rng = np.random.default_rng(seed)
    keys = (batch, carried + time, kv_heads, width)
    shapes = (batch, time, kv_heads * group, width), keys, keys
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def draw_reach(seed, kind, batch, time, carried):
    rng = np.random.default_rng([1, seed])
    if kind == "window":
        return np.broadcast_to(rng.integers(0, 4), (batch, time))
    if kind == "documents":  # places in the document, which may begin among the carried keys
        positions = np.broadcast_to(np.arange(carried, carried + time), (batch, time)).copy()
        for row in positions:
            for start in rng.integers(0, time, 2):
                row[start:] = np.arange(time - start)
        return positions
    return rng.integers(0, time + carried + 2, (batch, time)) if kind == "random" else None


def by_loops(q, k, v, reach=None):
    (batch, time, heads, width), (keys, kv_heads) = q.shape, k.shape[1:3]
    out = np.zeros_like(q)
    for n, t, h in np.ndindex(batch, time, heads):
        i, shared = t + keys - time, h // (heads // kv_heads)
        oldest = 0 if reach is None else max(0, i - reach[n, t])
        scores = k[n, oldest : i + 1, shared] @ q[n, t, h] / np.sqrt(width)
        weights = np.exp(scores - scores.max())
        out[n, t, h] = weights @ v[n, oldest : i + 1, shared] / weights.sum()
    return out


REACHES = ["all", "window", "documents", "random"]


@pytest.mark.parametrize("kind", REACHES)
@pytest.mark.parametrize("sizes", [(3, 11, 0, 2, 1, 3), (3, 7, 4, 1, 2, 5)])
def test_how_scores_are_cut_into_blocks_changes_nothing(sizes, kind, monkeypatch, outputs_and_gradients):
    args, reach = draw(11, *sizes), draw_reach(11, kind, *sizes[:3])
    whole = outputs_and_gradients(attention, *args, reach=reach)
    for chunk, block in ((4, 1), (4, 300), (1, 10**6)):  # one sequence at a time, two, all
        monkeypatch.setattr(module, "CHUNK", chunk)
        monkeypatch.setattr(module, "BLOCK", block)
        for a, b in zip(outputs_and_gradients(attention, *args, reach=reach), whole, strict=True):
            assert_close(a, b, 1e-13)


@pytest.mark.parametrize("kind", REACHES)
@pytest.mark.parametrize("sizes", [(2, 7, 0, 1, 4, 6), (3, 5, 4, 2, 3, 2), (2, 1, 6, 3, 1, 5), (1, 70, 3, 1, 2, 4)])
def test_equals_the_definition_written_with_loops(sizes, kind):
    args, reach = draw(0, *sizes), draw_reach(0, kind, *sizes[:3])
    assert_close(attention(*args, reach=reach), by_loops(*args, reach), 1e-13)


@settings(max_examples=80)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(0, 5), *(st.integers(1, 3) for _ in range(3))),
    kind=st.sampled_from(REACHES),
    chunk=st.sampled_from([1, 2, 4, 64]),
    seed=st.integers(0, 99),
)
def test_fused_equals_naive(assert_same, sizes, kind, chunk, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        assert_same(attention, module.naive, *draw(seed, *sizes), reach=draw_reach(seed, kind, *sizes[:3]))


@pytest.mark.parametrize("kind", REACHES)
def test_more_than_one_chunk_of_the_real_size(assert_same, kind):
    sizes = 2, 2 * module.CHUNK + 3, 5, 2, 2, 3
    assert_same(attention, module.naive, *draw(1, *sizes), reach=draw_reach(1, kind, *sizes[:3]))


@pytest.mark.parametrize("cut", range(1, 9))
@pytest.mark.parametrize("kind", REACHES)
def test_cut_anywhere_with_the_keys_carried(assert_same, kind, cut):
    sizes = 2, 9, 2, 1, 3, 4
    reach = draw_reach(2, kind, *sizes[:3])

    def piece(q, k, v, t0, t1):
        t, seen = (slice(None), slice(t0, t1)), (slice(None), slice(0, t1 + 2))
        r = None if reach is None else reach[t]
        return attention(getitem(q, index=t), getitem(k, index=seen), getitem(v, index=seen), reach=r)

    def chained(q, k, v):
        return concat(piece(q, k, v, 0, cut), piece(q, k, v, cut, 9), axis=1)

    def whole(q, k, v):
        return attention(q, k, v, reach=reach)

    assert_same(chained, whole, *draw(2, *sizes), tol=1e-13)


def test_documents_side_by_side_equal_documents_alone():
    q, k, v = draw(3, 1, 9, 0, 1, 2, 4)
    positions = np.array([[0, 1, 2, 3, 0, 1, 0, 1, 2]])
    packed = attention(q, k, v, reach=positions)
    for rows in (slice(0, 4), slice(4, 6), slice(6, 9)):
        assert_close(packed[:, rows], attention(q[:, rows], k[:, rows], v[:, rows]), 1e-14)


def test_hidden_keys_have_no_influence_and_no_gradient():
    q, k, v = (Tensor(a, requires_grad=True) for a in draw(4, 1, 8, 0, 1, 2, 4))
    out = attention(q, k, v, reach=np.full((1, 8), 2))
    g = np.zeros(out.shape)
    g[:, 5] = 1.0 + np.random.default_rng(0).random(g[:, 5].shape)  # query 5 sees keys 3, 4, 5
    expected = np.array([False, False, False, True, True, True, False, False])
    for a in grad(out, [k, v], g):
        assert ((a[0] != 0.0).any(axis=(1, 2)) == expected).all()
    k.data[:, [0, 1, 2, 6, 7]] = v.data[:, [0, 1, 2, 6, 7]] = 1e30
    assert (attention(q, k, v, reach=np.full((1, 8), 2)).data[:, 5] == out.data[:, 5]).all()


def test_a_reach_of_zero_sees_only_itself():
    q, k, v = draw(5, 2, 7, 3, 1, 4, 5)
    out = attention(q, k, v, reach=np.zeros((2, 7), int))
    assert_close(out, np.broadcast_to(v[:, 3:], out.shape), 1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_of_ten_thousand_pick_one_key_without_warnings(outputs_and_gradients, assert_same, dtype):
    q, k, v = draw(6, 2, 7, 0, 1, 2, 4, dtype)
    q, k = 100.0 * q, 200.0 * k  # scores of about 1e4, far beyond exp's range
    scores = np.einsum("bthk,bsk->bhts", q, k[:, :, 0]) / 2.0
    scores[..., ~np.tri(7, dtype=bool)] = -np.inf
    assert np.abs(scores[np.isfinite(scores)]).max() > 1e4
    picked = scores.argmax(axis=-1).transpose(0, 2, 1)  # (B, T, H)
    out, *gradients = outputs_and_gradients(attention, q, k, v)
    assert_close(out, v[np.arange(2)[:, None, None], picked, 0], 1e-6)
    assert all(np.isfinite(a).all() and a.dtype == dtype for a in gradients)
    if dtype == "float64":
        assert_same(attention, module.naive, q, k, v, tol=1e-9)


def peak_bytes(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_with_a_window_no_square_of_scores_is_ever_held(outputs_and_gradients):
    time, window = 1024, 16
    args, reach = draw(7, 1, time, 0, 1, 1, 4), np.full((1, time), window)
    square = time * time * 8
    fused = peak_bytes(lambda: outputs_and_gradients(attention, *args, reach=reach))
    assert fused < square / 8
    assert peak_bytes(lambda: module.naive(*args, reach=reach)) > square  # so the measure sees what it should


def test_with_a_window_the_work_grows_with_it_and_not_with_the_length():
    time, window, chunk = 1024, 16, module.CHUNK
    (q, k, _), reach = draw(8, 1, time, 0, 1, 1, 4), np.full((1, time), window)
    scores = [(q.stop - q.start) * (k.stop - k.start) for _, q, k, _ in module._blocks(q, k, reach)]
    assert time * (window + 1) <= sum(scores) <= time * (window + chunk)


def test_what_is_saved_is_linear_in_the_length():
    q, k, v = (Tensor(a, requires_grad=True) for a in draw(9, 2, 65, 3, 1, 2, 4, "float32"))
    out = attention(q, k, v)
    log_total = out.size // 4  # one number for each query and head
    assert sum(a.nbytes for a in out.node.saved if a is not None) == 4 * (2 * q.size + 2 * k.size + log_total)


WRONG = [
    ((2, 7, 3, 5), (2, 7, 2, 5), (2, 7, 2, 5)),  # 3 heads on 2
    ((2, 7, 2, 5), (2, 6, 2, 5), (2, 6, 2, 5)),  # fewer keys than queries
    ((2, 7, 2, 5), (2, 7, 2, 5), (2, 8, 2, 5)),
    ((2, 7, 2, 5), (3, 7, 2, 5), (3, 7, 2, 5)),
    ((2, 7, 2, 5), (2, 7, 2, 4), (2, 7, 2, 4)),
]


@pytest.mark.parametrize("shapes", WRONG)
def test_wrong_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"attention\(q .*k and v must be \(B, S, Hkv, K\)"):
        attention(*map(np.zeros, shapes))


def test_second_order_is_refused_and_names_the_naive_form():
    leaves = [Tensor(a, requires_grad=True) for a in draw(10, 1, 3, 0, 1, 1, 2)]
    out = attention(*leaves)
    with pytest.raises(SecondOrderError, match=r"tinyrec\.ops\.attention\.naive"):
        grad(out, leaves, np.ones(out.shape), create_graph=True)
