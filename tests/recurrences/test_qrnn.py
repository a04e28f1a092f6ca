"""QRNN pooling: fused equals naive, plain NumPy and `scan` with made gates; f, fo, ifo; extreme gates; what is kept."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.ops import concat, getitem, sigmoid, stack, tanh, transpose
from tinyrec.recurrences.qrnn import naive, qrnn
from tinyrec.recurrences.scan import scan
from tinyrec.tape import SecondOrderError, Tensor
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.recurrences.qrnn")
scan_module = importlib.import_module("tinyrec.recurrences.scan")
POOLINGS = ["f", "ifo"]


def draw(seed, pooling, batch, time, width, dtype="float64"):
    """z, f, i or None, c_init."""
    rng = np.random.default_rng(seed)
    z, f, i = (rng.standard_normal((batch, time, width)).astype(dtype) for _ in range(3))
    return [z, f, i if pooling == "ifo" else None, rng.standard_normal((batch, width)).astype(dtype)]


def plain(z, f, i, c):
    """The equations of the paper, step by step."""
    cells = []
    for t in range(z.shape[1]):
        ft = 1.0 / (1.0 + np.exp(-f[:, t]))
        it = 1.0 - ft if i is None else 1.0 / (1.0 + np.exp(-i[:, t]))
        c = ft * c + it * np.tanh(z[:, t])
        cells.append(c)
    return np.stack(cells, axis=1), c


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("sizes", [(2, 7, 5), (5, 2, 7), (3, 1, 4), (1, 300, 3)])
def test_equals_the_formula_in_plain_numpy(sizes, pooling):
    args = draw(0, pooling, *sizes)
    for got, expected in zip(qrnn(*args), plain(*args), strict=True):
        assert_close(got, expected, 1e-13)


@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 5)),
    pooling=st.sampled_from(POOLINGS),
    tile=st.sampled_from([1, 30, 48 * 1024]),
    two_level=st.booleans(),
    use=st.sampled_from([(0,), (1,), (0, 1)]),
    seed=st.integers(0, 99),
)
def test_fused_equals_naive(assert_same, sizes, pooling, tile, two_level, use, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        patch.setattr(scan_module, "SHORT_ROW", 10**9 if two_level else 0)
        patch.setattr(scan_module, "CHUNK", 3)
        assert_same(qrnn, naive, *draw(seed, pooling, *sizes), use=use)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("sizes", [(2, 900, 33), (1, 2, 25000), (1, 1, 50000)])  # tiles of 744 steps, of one, of less
def test_fused_equals_naive_at_the_real_tile_size(assert_same, sizes, pooling):
    assert_same(qrnn, naive, *draw(1, pooling, *sizes))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_agree_with_finite_differences(pooling):
    for sizes in ((2, 7, 5), (5, 2, 7)):
        assert gradcheck(qrnn, *draw(2, pooling, *sizes)).first < 1e-8


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("sizes", [(2, 7, 5), (3, 200, 4)])
def test_is_the_scan_of_its_gates(assert_same, sizes, pooling):
    """The op `scan`, time first, with a_t = ft_t and b_t = it_t zt_t, in outputs and every gradient."""

    def by_scan(z, f, i, c_init):
        z, f, i = (x if x is None else transpose(x, axes=(1, 0, 2)) for x in (z, f, i))
        a = sigmoid(f)
        b = (1.0 - a if i is None else sigmoid(i)) * tanh(z)
        c, c_last = scan(a, b, c_init)
        return transpose(c, axes=(1, 0, 2)), c_last

    assert_same(qrnn, by_scan, *draw(3, pooling, *sizes), tol=1e-13)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_equals_the_eager_pooling_of_the_benchmark(outputs_and_gradients, pooling):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_qrnn import pool

    args = draw(17, pooling, 2, 7, 5)
    ours = outputs_and_gradients(qrnn, *args)
    leaves = [x if x is None else torch.from_numpy(x.copy()).requires_grad_() for x in args]
    outputs = pool(*leaves)
    cotangents = [np.random.default_rng([11, k]).standard_normal(tuple(y.shape)) for k, y in enumerate(outputs)]
    torch.autograd.backward(outputs, [torch.from_numpy(g) for g in cotangents])
    theirs = [y.detach() for y in outputs] + [x.grad for x in leaves if x is not None]
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b.numpy(), 1e-12)


def test_fo_pooling_is_f_pooling_with_an_output_gate_outside(assert_same):
    o = np.random.default_rng(4).standard_normal((2, 7, 5))

    def fo(z, f, c_init, o):
        c, c_last = qrnn(z, f, None, c_init)
        return sigmoid(o) * c, c_last

    def step_by_step(z, f, c, o):
        hs = []
        for t in range(z.shape[1]):
            z_t, f_t, o_t = (getitem(x, index=(slice(None), t)) for x in (z, f, o))
            c = sigmoid(f_t) * c + (1.0 - sigmoid(f_t)) * tanh(z_t)
            hs.append(sigmoid(o_t) * c)
        return stack(*hs, axis=1), c

    z, f, _, c_init = draw(4, "f", 2, 7, 5)
    assert_same(fo, step_by_step, z, f, c_init, o)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cut", range(1, 9))
def test_cut_anywhere_and_chained(assert_same, cut, pooling):
    def chained(z, f, i, c_init):
        left, right = (slice(None), slice(0, cut)), (slice(None), slice(cut, None))
        c1, middle = qrnn(*(x if x is None else getitem(x, index=left) for x in (z, f, i)), c_init)
        c2, last = qrnn(*(x if x is None else getitem(x, index=right) for x in (z, f, i)), middle)
        return concat(c1, c2, axis=1), last

    for use in ((0,), (1,), (0, 1)):
        assert_same(chained, qrnn, *draw(5, pooling, 2, 9, 5), use=use, tol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("gate", [-1e3, 1e3], ids=["f -> 0", "f -> 1"])
def test_extreme_forget_gates(outputs_and_gradients, dtype, pooling, gate):
    z, f, i, c_init = draw(6, pooling, 2, 70, 5, dtype)
    f[...] = gate
    z[:, 3], z[:, 4] = 1e3, -1e3
    if i is not None:
        i[:, :35], i[:, 35:] = -1e3, 1e3
    results = outputs_and_gradients(qrnn, z, f, i, c_init)
    assert all(np.isfinite(x).all() and x.dtype == dtype for x in results)
    c, c_last, *gradients = results
    new = np.tanh(z)
    if pooling == "f":
        expected = new if gate < 0 else np.broadcast_to(c_init[:, None], c.shape)
    else:
        new[:, :35] = 0.0
        expected = new if gate < 0 else c_init[:, None] + np.cumsum(new, axis=1)  # it counts
    assert_close(c, expected, 1e-6)
    assert (c_last == c[:, -1]).all()
    assert (gradients[1] == 0.0).all()  # df: the gate is flat here


def test_f_pooling_stays_between_what_it_has_seen_and_ifo_does_not():
    z, f, i, c_init = draw(7, "ifo", 2, 70, 5)
    c_init = np.tanh(c_init)
    c, _ = qrnn(z, f, None, c_init)
    seen = np.concatenate([c_init[:, None], np.tanh(z)], axis=1)
    high, low = np.maximum.accumulate(seen, axis=1)[:, 1:], np.minimum.accumulate(seen, axis=1)[:, 1:]
    assert (c <= high + 1e-15).all() and (c >= low - 1e-15).all()
    c, _ = qrnn(np.abs(z) + 1.0, f + 3.0, i + 3.0, c_init)
    assert c.max() > 2.0


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("sizes", [(1, 4, 3), (3, 1, 2), (1, 1, 2), (2, 40, 3)])
def test_inputs_and_cotangents_are_not_modified(sizes, pooling):
    args = draw(8, pooling, *sizes)
    gs = [draw(9, pooling, *sizes)[0], draw(9, pooling, *sizes)[3]]
    arrays = [x for x in (*args, *gs) if x is not None]
    before = [x.copy() for x in arrays]
    outputs, saved = qrnn.op.forward(*args)
    kept = [x.copy() for x in outputs]
    gradients = qrnn.op.backward(tuple(gs), *saved)
    assert (gradients[2] is None) == (pooling == "f")
    assert outputs[1].base is None  # nor a view that keeps the buffer of a tile alive
    for x, y in zip((*arrays, *outputs), (*before, *kept), strict=True):
        assert (x == y).all()
    results = [x for x in (*outputs, *gradients) if x is not None]
    for k, x in enumerate(results):
        assert not any(np.shares_memory(x, y) for y in (*arrays, *results[:k]))


def test_strided_inputs_give_the_same():
    z, f, i, c_init = draw(11, "ifo", 2, 7, 5)
    strided = (np.asfortranarray(z), f[:, ::-1][:, ::-1], np.repeat(i, 2, axis=2)[..., ::2], np.asfortranarray(c_init))
    for got, expected in zip(qrnn(*strided), qrnn(z, f, i, c_init), strict=True):
        assert (got == expected).all()
    saved = qrnn.op.forward(z, f, i, c_init)[1]
    gradients = [qrnn.op.backward((dc, None), *saved) for dc in (z, np.asfortranarray(z))]
    for a, b in zip(*gradients, strict=True):
        assert (a == b).all()


@pytest.mark.parametrize(("pooling", "per_element"), [("f", 12), ("ifo", 16)])
def test_bytes_kept(pooling, per_element):
    args = draw(12, pooling, 2, 70, 5, "float32")
    z, f, i, c_init = (x if x is None else Tensor(x, requires_grad=True) for x in args)
    c, _ = qrnn(z, f, i, c_init)
    large = [x for x in c.node.saved if getattr(x, "ndim", 0) == 3]
    assert sum(x.nbytes for x in large) == per_element * z.size
    assert any(x is c.data for x in large)
    assert not any(np.shares_memory(x, y.data) for x in large for y in (z, f))  # z, f, i can be freed


@pytest.mark.parametrize("pooling", POOLINGS)
def test_float32_stays(outputs_and_gradients, pooling):
    results = outputs_and_gradients(qrnn, *draw(13, pooling, 2, 7, 5, "float32"))
    assert {x.dtype for x in results} == {np.dtype("float32")}
    exact = outputs_and_gradients(qrnn, *draw(13, pooling, 2, 7, 5))
    for a, b in zip(results, exact, strict=True):
        assert_close(a, b, 2e-6)


WRONG = [
    (0, (7, 5), "of one shape"),
    (1, (2, 7, 4), "of one shape"),
    (1, (7, 2, 5), "of one shape"),
    (2, (2, 6, 5), "of one shape"),
    (2, (5,), "of one shape"),
    (3, (5,), r"expected c_init \(2, 5\)"),
    (3, (1, 5), r"expected c_init \(2, 5\)"),
    (slice(3), (2, 0, 5), "T >= 1"),  # z, f and i
]


@pytest.mark.parametrize(("k", "shape", "words"), WRONG)
def test_wrong_shapes_are_refused(k, shape, words):
    args = draw(14, "ifo", 2, 7, 5)
    args[k] = np.zeros(shape) if isinstance(k, int) else np.zeros((3, *shape))
    with pytest.raises(ValueError, match=rf"qrnn\(z \(.*{words}"):
        qrnn(*args)


def test_second_order_is_refused_and_names_the_naive_form():
    leaves = [Tensor(x, requires_grad=True) for x in draw(16, "ifo", 2, 3, 5)]
    c, _ = qrnn(*leaves)
    with pytest.raises(SecondOrderError, match=r"tinyrec\.recurrences\.qrnn\.naive"):
        grad(c, leaves, np.ones(c.shape), create_graph=True)
