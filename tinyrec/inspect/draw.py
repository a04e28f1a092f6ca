"""Random arrays for the table of cases."""

from __future__ import annotations

import numpy as np


class Draw:
    """Random arrays of a given shape."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def normal(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.standard_normal(shape))

    def positive(self, *shape: int) -> np.ndarray:
        """Between 1/2 and 2: clear of zero, for log, sqrt and div."""
        return np.asarray(self.rng.uniform(0.5, 2.0, shape))

    def distinct(self, *shape: int) -> np.ndarray:
        """The odd multiples of 1/n between -1 and 1, shuffled: no ties, none near zero."""
        n = int(np.prod(shape))
        return self.rng.permutation((2.0 * np.arange(n) + 1.0) / n - 1.0).reshape(shape)

    def integers(self, stop: int, *shape: int, start: int = 0) -> np.ndarray:
        return self.rng.integers(start, stop, shape)
