"""Initial values: the stated variance, one draw for every dtype."""

import numpy as np
import pytest

from tinyrec.nn import full, lecun_normal, normal, orthogonal, truncated, truncated_normal, uniform, zeros


def test_variances_and_dtypes():
    rng = np.random.default_rng(0)
    for tensor, std in ((normal(rng, (300, 200), 0.3), 0.3), (lecun_normal(rng, (300, 200), 50, scale=2.0), 0.2)):
        assert tensor.requires_grad and tensor.dtype == np.float32 and tensor.shape == (300, 200)
        assert tensor.data.std() == pytest.approx(std, rel=0.02) and abs(tensor.data.mean()) < 0.01
    nothing = zeros((2, 3))
    assert nothing.requires_grad and nothing.dtype == np.float32 and not nothing.data.any()


def test_every_dtype_starts_with_the_same_numbers():
    wide, narrow = (normal(np.random.default_rng(1), (5, 7), 1.0, dtype).data for dtype in ("float64", "float32"))
    assert wide.dtype == np.float64 and (wide.astype("float32") == narrow).all()


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_orthogonal(shape):
    w = orthogonal(np.random.default_rng(2), shape, 0.5, "float64").data
    short = w if shape[0] <= shape[1] else w.T
    np.testing.assert_allclose(short @ short.T, 0.25 * np.eye(min(shape)), atol=1e-15)


def test_orthogonal_prefers_no_sign():
    draws = [orthogonal(np.random.default_rng(seed), (3, 3), 1.0, "float64").data for seed in range(300)]
    share = np.mean([w > 0 for w in draws], axis=0)
    assert (abs(share - 0.5) < 0.15).all()  # five standard deviations of a fair coin; LAPACK's own signs fail


def test_uniform_and_full():
    w = uniform(np.random.default_rng(3), (300, 200), 0.5)
    assert w.requires_grad and w.dtype == np.float32 and abs(w.data).max() <= 0.5
    assert w.data.std() == pytest.approx(0.5 / 3**0.5, rel=0.02) and abs(w.data.mean()) < 0.01
    assert (full((2, 3), 1.5, "float64").data == np.full((2, 3), 1.5)).all()


def test_truncated():
    """What lies beyond 3 is drawn again, not cut down to 3: so the density within keeps its shape."""
    x = truncated(np.random.default_rng(4), (400, 500))
    assert x.dtype == np.float64 and abs(x).max() < 3.0 and (abs(x) > 2.99).sum() < 60  # 19 expected there
    assert x.std() == pytest.approx(0.98658, rel=4 / (2 * x.size) ** 0.5) and abs(x.mean()) < 4 / x.size**0.5
    within = 0.682689492 / 0.997300204  # P(|x| < 1) given that |x| < 3
    assert (abs(x) < 1.0).mean() == pytest.approx(within, abs=4 * (within * (1 - within) / x.size) ** 0.5)
    w = truncated_normal(np.random.default_rng(4), (400, 500), 0.3)
    assert w.requires_grad and w.dtype == np.float32 and (w.data == (0.3 * x).astype("float32")).all()
