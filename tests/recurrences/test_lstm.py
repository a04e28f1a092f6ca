"""LSTM: fused equals naive, plain NumPy and torch.nn.LSTM; cuts, one step, saturated gates, what is kept."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.ops import concat, getitem, linear
from tinyrec.recurrences.lstm import lstm, naive
from tinyrec.tape import SecondOrderError, Tensor
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.recurrences.lstm")


def draw(seed, batch, time, width, dtype="float64"):
    """z, w_h, h_init, c_init; gates of order one."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((batch, time, 4 * width)), rng.standard_normal((width, 4 * width)) * width**-0.5]
    arrays += [rng.standard_normal((batch, width)) for _ in range(2)]
    return [x.astype(dtype) for x in arrays]


def plain(z, w_h, h, c):
    """The formulas of torch.nn.LSTM's documentation, step by step."""
    states = []
    for t in range(z.shape[1]):
        i, f, g, o = np.split(z[:, t] + h @ w_h, 4, axis=1)
        i, f, o = (1.0 / (1.0 + np.exp(-x)) for x in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        states.append(h)
    return np.stack(states, axis=1), h, c


@pytest.mark.parametrize("sizes", [(2, 7, 5), (5, 2, 7), (3, 1, 4), (1, 300, 3)])
def test_equals_the_formula_in_plain_numpy(sizes):
    args = draw(0, *sizes)
    for got, expected in zip(lstm(*args), plain(*args), strict=True):
        assert_close(got, expected, 1e-13)


@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 5)),
    tile=st.sampled_from([1, 60, 64 * 1024]),
    use=st.sampled_from([(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)]),
    seed=st.integers(0, 99),
)
def test_fused_equals_naive(assert_same, sizes, tile, use, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        assert_same(lstm, naive, *draw(seed, *sizes), use=use)


@pytest.mark.parametrize("sizes", [(3, 220, 50), (41, 3, 400)])  # tiles of 109 steps, of one
def test_fused_equals_naive_at_the_real_tile_size(assert_same, sizes):
    assert_same(lstm, naive, *draw(1, *sizes))


def test_gradients_agree_with_finite_differences():
    for sizes in ((2, 7, 5), (5, 2, 7)):
        assert gradcheck(lstm, *draw(2, *sizes)).first < 1e-8


@pytest.mark.parametrize("sizes", [(2, 7, 5, 3), (5, 2, 3, 7), (4, 1, 2, 3)])  # B, T, D, H
def test_equals_torch_in_outputs_and_gradients(outputs_and_gradients, sizes):
    torch = pytest.importorskip("torch")
    batch, time, inputs, width = sizes
    rng = np.random.default_rng(3)
    x = rng.standard_normal((batch, time, inputs))
    w_x, w_h = rng.standard_normal((inputs, 4 * width)), rng.standard_normal((width, 4 * width))
    b_x, b_h = rng.standard_normal((2, 4 * width))
    h_init, c_init = rng.standard_normal((2, batch, width))

    def ours(x, w_x, w_h, b_x, b_h, h_init, c_init):
        return lstm(linear(x, w_x, b_x + b_h), w_h, h_init, c_init)

    h, h_last, c_last, *gradients = outputs_and_gradients(ours, x, w_x, w_h, b_x, b_h, h_init, c_init)

    reference = torch.nn.LSTM(inputs, width, batch_first=True, dtype=torch.float64)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    parameters = [getattr(reference, name) for name in names]
    with torch.no_grad():
        for parameter, value in zip(parameters, (w_x.T, w_h.T, b_x, b_h), strict=True):
            parameter.copy_(torch.from_numpy(value.copy()))
    leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, h_init[None], c_init[None])]
    y, (y_last, s_last) = reference(leaves[0], (leaves[1], leaves[2]))
    outputs = (y, y_last[0], s_last[0])
    # The cotangents of outputs_and_gradients.
    cotangents = [np.random.default_rng([11, k]).standard_normal(tuple(a.shape)) for k, a in enumerate(outputs)]
    torch.autograd.backward(outputs, [torch.from_numpy(g) for g in cotangents])

    for got, expected in zip((h, h_last, c_last), outputs, strict=True):
        assert_close(got, expected.detach().numpy(), 1e-12)
    dx, dh_init, dc_init = (a.grad.numpy() for a in leaves)
    dw_x, dw_h, db_x, db_h = (p.grad.numpy() for p in parameters)
    expected = (dx, dw_x.T, dw_h.T, db_x, db_h, dh_init[0], dc_init[0])
    for name, a, b in zip(("x", "w_x", "w_h", "b_x", "b_h", "h_init", "c_init"), gradients, expected, strict=True):
        assert_close(a, b, 1e-12, f"the gradient of {name}")


def test_the_loop_of_the_benchmark_is_torchs_lstm():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_lstm import LSTM

    rng = np.random.default_rng(15)
    compiled, loop = torch.nn.LSTM(4, 5, batch_first=True), LSTM(4, 5)
    loop.load_state_dict(compiled.state_dict())  # the same names and shapes
    x, dh = (torch.from_numpy(rng.standard_normal((2, 7, width)).astype("float32")) for width in (4, 5))
    state = tuple(torch.from_numpy(rng.standard_normal((1, 2, 5)).astype("float32")) for _ in range(2))
    for layer in (compiled, loop):
        layer(x, state)[0].backward(dh)
    assert_close(loop(x, state)[0].detach().numpy(), compiled(x, state)[0].detach().numpy(), 1e-5)
    for mine, theirs in zip(loop.parameters(), compiled.parameters(), strict=True):
        assert_close(mine.grad.numpy(), theirs.grad.numpy(), 1e-5)


@pytest.mark.parametrize("cut", range(1, 7))
def test_cut_anywhere_and_chained(assert_same, cut):
    def chained(z, w_h, h_init, c_init):
        h1, *middle = lstm(getitem(z, index=(slice(None), slice(0, cut))), w_h, h_init, c_init)
        h2, *last = lstm(getitem(z, index=(slice(None), slice(cut, None))), w_h, *middle)
        return concat(h1, h2, axis=1), *last

    for use in ((0,), (1,), (2,), (0, 1, 2)):
        assert_same(chained, lstm, *draw(4, 2, 7, 5), use=use, tol=1e-13)


def test_the_gates_stand_in_the_order_i_f_g_o():
    """One step from zero weights: each gate alone is opened or shut."""
    width, shut, opened = 3, -50.0, 50.0
    w_h, h_init, c_init = np.zeros((width, 4 * width)), np.zeros((1, width)), np.full((1, width), 0.5)
    for i, f, o, cell in ((shut, opened, opened, 0.5), (opened, shut, opened, 1.0), (opened, opened, opened, 1.5)):
        z = np.repeat([i, f, opened, o], width).reshape(1, 1, -1)
        h, _, c_last = lstm(z, w_h, h_init, c_init)
        assert_close(c_last, np.full((1, width), cell), 1e-14)
        assert_close(h[:, 0], np.tanh(c_last), 1e-14)
    h, _, c_last = lstm(np.repeat([opened, opened, -opened, shut], width).reshape(1, 1, -1), w_h, h_init, c_init)
    assert_close(c_last, np.full((1, width), -0.5), 1e-14)
    assert np.abs(h).max() < 1e-15


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saturated_gates_stay_finite_without_warnings(outputs_and_gradients, dtype):
    z, w_h, h_init, c_init = draw(5, 2, 70, 5, dtype)
    z[...] = np.where(z > 0.0, 1e3, -1e3)
    results = outputs_and_gradients(lstm, z, w_h, h_init, c_init)
    assert all(np.isfinite(x).all() and x.dtype == dtype for x in results)
    dz, dw_h, dh_init = results[3:6]
    assert (dz == 0.0).all() and (dw_h == 0.0).all() and (dh_init == 0.0).all()  # no gate can be moved
    for got, expected in zip(results, plain_gates(z, c_init), strict=False):
        assert_close(got, expected, 1e-6)


def plain_gates(z, c):
    """h, h_last, c_last where every gate is 0, 1 or, for g, -1, 1."""
    states = []
    for t in range(z.shape[1]):
        i, f, g, o = (x > 0 for x in np.split(z[:, t], 4, axis=1))
        c = f * c + i * np.where(g, 1.0, -1.0)
        states.append(o * np.tanh(c))
    return np.stack(states, axis=1), states[-1], c


def test_an_open_forget_gate_carries_the_cell_and_its_gradient_unchanged(outputs_and_gradients):
    z, w_h, h_init, c_init = draw(6, 2, 70, 5)
    z[..., :5], z[..., 5:10] = -1e3, 1e3  # i = 0, f = 1
    _, _, c_last, *_, dc_init = outputs_and_gradients(lstm, z, w_h, h_init, c_init, use=(2,))
    assert (c_last == c_init).all()
    assert (dc_init == np.random.default_rng([11, 2]).standard_normal((2, 5))).all()


@pytest.mark.parametrize("sizes", [(1, 4, 3), (3, 1, 2), (1, 1, 2), (2, 40, 3)])
def test_inputs_and_cotangents_are_not_modified(sizes):
    args = draw(7, *sizes)
    rng = np.random.default_rng(8)
    gs = [rng.standard_normal(shape) for shape in (sizes, sizes[::2], sizes[::2])]
    before = [x.copy() for x in (*args, *gs)]
    outputs, saved = lstm.op.forward(*args)
    kept = [x.copy() for x in outputs]
    assert (kept[1] == kept[0][:, -1]).all()
    assert all(x.base is None for x in outputs)  # no view that keeps a whole buffer alive
    gradients = lstm.op.backward(tuple(gs), *saved)
    for x, y in zip((*args, *gs, *outputs), (*before, *kept), strict=True):
        assert (x == y).all()
    for k, x in enumerate((*outputs, *gradients)):
        assert not any(np.shares_memory(x, y) for y in (*args, *gs, *(*outputs, *gradients)[:k]))


def test_strided_inputs_give_the_same():
    z, w_h, h_init, c_init = draw(10, 2, 7, 5)
    strided = (np.asfortranarray(z), np.asfortranarray(w_h), np.repeat(h_init, 2, axis=1)[:, ::2], c_init[::-1][::-1])
    for got, expected in zip(lstm(*strided), lstm(z, w_h, h_init, c_init), strict=True):
        assert_close(got, expected, 1e-14)
    dz = lstm.op.backward((np.asfortranarray(z[..., :5]), None, None), *lstm.op.forward(z, w_h, h_init, c_init)[1])[0]
    same = lstm.op.backward((z[..., :5], None, None), *lstm.op.forward(z, w_h, h_init, c_init)[1])[0]
    assert (dz == same).all()


def test_twenty_four_bytes_per_element_are_kept():
    batch, time, width = 2, 70, 5
    args = [Tensor(x, requires_grad=True) for x in draw(11, batch, time, width, "float32")]
    h, _, _ = lstm(*args)
    gates, c, kept_h = (x for x in h.node.saved if x.ndim == 3)
    assert kept_h is h.data
    assert gates.nbytes + kept_h.nbytes == 20 * h.size
    assert c.nbytes == 4 * (h.size + batch * width)  # and the cell before the first step
    assert not any(np.shares_memory(x, args[0].data) for x in h.node.saved)  # z can be freed


def test_float32_stays(outputs_and_gradients):
    assert {x.dtype for x in outputs_and_gradients(lstm, *draw(12, 2, 7, 5, "float32"))} == {np.dtype("float32")}
    results = outputs_and_gradients(lstm, *draw(12, 2, 7, 5, "float32"))
    exact = outputs_and_gradients(lstm, *draw(12, 2, 7, 5))
    for a, b in zip(results, exact, strict=True):
        assert_close(a, b, 2e-6)


WRONG = [
    (0, (2, 7, 19), r"expected z \(B, T, 4H\) with T >= 1 and w_h \(H, 4H\)"),
    (0, (7, 20), r"expected z \(B, T, 4H\) with T >= 1 and w_h \(H, 4H\)"),
    (0, (2, 0, 20), "T >= 1"),
    (1, (20, 5), r"w_h \(H, 4H\)"),
    (1, (4, 16), r"w_h \(H, 4H\)"),
    (2, (5,), r"expected h_init and c_init \(2, 5\)"),
    (2, (1, 5), r"expected h_init and c_init \(2, 5\)"),
    (3, (2, 4), r"expected h_init and c_init \(2, 5\)"),
]


@pytest.mark.parametrize(("k", "shape", "words"), WRONG)
def test_wrong_shapes_are_refused(k, shape, words):
    args = draw(13, 2, 7, 5)
    args[k] = np.zeros(shape)
    with pytest.raises(ValueError, match=rf"lstm\(z \(.*{words}"):
        lstm(*args)


def test_second_order_is_refused_and_names_the_naive_form():
    leaves = [Tensor(x, requires_grad=True) for x in draw(14, 2, 3, 5)]
    h, _, _ = lstm(*leaves)
    with pytest.raises(SecondOrderError, match=r"tinyrec\.recurrences\.lstm\.naive"):
        grad(h, leaves, np.ones(h.shape), create_graph=True)
