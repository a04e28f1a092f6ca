"""Initial values: the stated variance, one draw for every dtype."""

import numpy as np
import pytest

from tinyrec.nn import lecun_normal, normal, zeros


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
