"""Token shift: fused equals naive for any sizes and pieces; cut anywhere; outputs that nothing depends on."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.ops import concat, getitem, token_shift
from tinyrec.tape import Tensor
from tinyrec.walk import grad

module = importlib.import_module("tinyrec.ops.token_shift")


def draw(seed, batch, time, width, mixes, dtype="float64"):
    rng = np.random.default_rng(seed)
    shapes = [(batch, time, width), (batch, width), *[(width,)] * mixes]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3)),
    tile=st.sampled_from([1, 7, 32 * 1024]),
    use=st.sampled_from([(0,), (-1,), None]),
    seed=st.integers(0, 99),
)
def test_fused_equals_naive(assert_same, sizes, tile, use, seed):
    mixes = sizes[3]
    use = use if use is None else tuple(k % (mixes + 1) for k in use)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        assert_same(token_shift, module.naive, *draw(seed, *sizes), use=use, tol=1e-13)


@pytest.mark.parametrize("cut", range(1, 7))
def test_cut_anywhere_and_chained(assert_same, cut):
    def chained(x, last, mu, nu):
        y1, z1, middle = token_shift(getitem(x, index=(slice(None), slice(0, cut))), last, mu, nu)
        y2, z2, end = token_shift(getitem(x, index=(slice(None), slice(cut, None))), middle, mu, nu)
        return concat(y1, y2, axis=1), concat(z1, z2, axis=1), end

    assert_same(chained, token_shift, *draw(1, 2, 7, 5, 2), tol=1e-14)


def test_a_mix_may_lie_outside_of_0_and_1():
    x = np.array([[[1.0], [5.0]]])
    y, last = token_shift(x, np.array([[3.0]]), np.array([1.25]))
    assert y.ravel().tolist() == [0.5, 6.0] and last.tolist() == [[5.0]]


def test_keeps_only_its_input_and_float32():
    leaves = [Tensor(a, requires_grad=True) for a in draw(2, 2, 7, 5, 3, "float32")]
    *ys, last = token_shift(*leaves)
    saved = ys[0].node.saved
    assert [a.shape for a in saved] == [a.shape for a in leaves] and saved[0] is leaves[0].data
    gradients = grad(ys[1], leaves, np.ones(ys[1].shape, "float32"))
    assert {a.dtype for a in (*(y.data for y in ys), last.data, *gradients)} == {np.dtype("float32")}


def test_wrong_shapes_are_refused():
    x, last, mu = draw(3, 2, 7, 5, 1)
    for bad in ((x, last[:1], mu), (x, last, mu[:4]), (x[:, :0], last, mu)):
        with pytest.raises(ValueError, match=r"token_shift\(x .*: expected T >= 1, last \(2, 5\) and each mu \(5,\)"):
            token_shift(*bad)
