"""TTT-Linear by itself: the numbers of the page, the PyTorch twin. What it shares with TTT-MLP: test_inner_loop.py."""

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.recurrences.ttt_linear import naive, primal, ttt_linear
from tinyrec.tape import Tensor
from tinyrec.walk import grad

Q = [[1.0, 0.0, 0.2], [0.5, -1.0, 0.4], [0.0, 2.0, -0.6], [1.0, 1.0, 0.8]]
K = [[0.5, 1.0, -0.3], [-1.0, 0.5, 0.6], [1.0, 0.0, 0.9], [0.3, 0.7, -1.2]]
V = [[1.0, 2.0, 0.5], [0.0, 1.0, -0.5], [-1.0, 0.5, 1.0], [2.0, -0.5, 0.0]]


def numbers_of_the_page():
    """docs/recurrences/ttt_linear.md: one head, d = 3, two mini-batches of 2."""
    q, k, v = (np.array(x)[None, :, None] for x in (Q, K, V))
    lam, tau = np.array([[[0.5], [0.25], [0.4], [0.3]]]), np.array([1.0, 0.5])
    gain, bias = np.array([[1.0, 0.9, 1.1]]), np.array([[0.0, 0.1, -0.1]])
    w, b = (np.arange(9.0).reshape(1, 1, 3, 3) - 4.0) / 10.0, np.array([[[0.1, -0.2, 0.3]]])
    return q, k, v, lam, tau, gain, bias, w, b, 0.0 * w, 0.0 * b


@pytest.mark.parametrize("form", [naive, primal, ttt_linear])
def test_the_numbers_of_the_page(form):
    """They were found with automatic differentiation of the published code, in float64, and rounded to 8 digits."""
    leaves = [Tensor(x, requires_grad=True) for x in numbers_of_the_page()]
    z, w_last, b_last, gw, gb = form(*leaves)
    expected = [
        [-0.05337101, -0.16144998, 1.57825809], [1.33439665, -2.16543665, 0.92880848],
        [-0.44588947, 1.25460567, 0.82373816], [-0.26851041, 1.1835311, 1.99326788],
    ]  # fmt: skip
    assert_close(z.data[0, :, 0], expected, 1e-8)
    expected = [
        [-1.96945093, 0.2349955, 0.83445543], [0.45695053, -0.12845384, -0.32849669],
        [-0.76462564, 0.38573387, 1.27889177],
    ]  # fmt: skip
    assert_close(w_last.data[0, 0], expected, 1e-8)
    assert_close(b_last.data[0, 0], [0.14962959, -0.26350205, 0.31387246], 1e-8)
    assert not gw.data.any() and not gb.data.any()
    cotangent = np.broadcast_to(np.array([1.0, -1.0, 2.0]), z.shape)
    _, dk, _, dlam, dtau, dgain, dbias, dw, db, _, _ = grad(z, leaves, cotangent)
    expected = [
        [14.35319647, -36.66599653, 22.31280006], [6.98829158, -1.35843350, -5.62985808],
        [15.57659277, 3.79616915, -19.37276192],
    ]  # fmt: skip
    assert_close(dw[0, 0], expected, 1e-8)
    assert_close(db[0, 0], [16.44201112, -4.45629551, -11.98571561], 1e-8)
    assert_close(dlam[0, :, 0], [-8.34750633, 39.35473611, -8.01302718, 0.17214751], 1e-8)
    assert_close(dtau, [-3.94859064, 12.91990977], 1e-8)
    assert_close(dgain[0], [32.49747374, -62.6439577, 40.7831159], 1e-8)
    assert_close(dbias[0], [-32.87637164, 17.41172534, 22.39412228], 1e-8)
    expected = [[-31.65807516, 18.69453003, 7.94985049], [4.51616537, 5.74783611, 15.70207662]]
    assert_close(dk[0, :2, 0], expected, 1e-8)
