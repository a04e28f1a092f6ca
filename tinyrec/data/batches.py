"""Batches of windows from a long row of tokens: random ones to train on, consecutive ones to evaluate on.

    text      w h a t   i s   i t
    tokens    w h a t   i s   i          (B, T)
    targets   h a t   i s   i t          (B, T), the token that follows each
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import DataError

IGNORE_INDEX = -1  # a target with this value is not scored

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batches:
    """Windows of `length` tokens (T) from a text's tokens (N,).

    It keeps no position of its own: random windows depend on the Generator alone, so saving the Generator's state
    is all that a bit-exact resume needs.
    """

    tokens: npt.NDArray[np.integer]
    length: int

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.tokens.dtype.kind not in "iu":
            raise DataError(f"tokens must be one row of integers, got {self.tokens.dtype} {self.tokens.shape}")
        if self.length < 1:
            raise DataError(f"the length of a window must be at least 1, got {self.length}")

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return (tokens (B, T), targets (B, T)) of windows that start anywhere, each start equally likely."""
        starts = len(self.tokens) - self.length
        if starts < 1:
            raise DataError(f"{len(self.tokens)} tokens are too few for windows of {self.length} and their targets")
        index = rng.integers(0, starts, size=batch)[:, None] + np.arange(self.length)  # (B, T)
        return self.tokens[index].astype(np.int64), self.tokens[index + 1].astype(np.int64)

    def consecutive(self, batch: int) -> Iterator[tuple[Ints, Ints]]:
        """Yield (tokens (b, T), targets (b, T)) with b <= B: every token but the first is a target exactly once.

        The last window is filled up with token 0 and targets -1 (not scored). Each window starts without memory of
        the one before, so a loss over them is a little above that of one long walk through the text.
        """
        if batch < 1 or len(self.tokens) < 2:
            raise DataError(f"evaluation needs a batch >= 1 and 2 tokens or more, got {batch} and {len(self.tokens)}")
        windows = -(-(len(self.tokens) - 1) // self.length)  # rounded up
        for first in range(0, windows, batch):
            rows = min(batch, windows - first)
            piece = self.tokens[first * self.length : (first + rows) * self.length + 1]
            tokens = np.zeros((rows, self.length), np.int64)
            targets = np.full((rows, self.length), IGNORE_INDEX, np.int64)
            tokens.flat[: len(piece) - 1] = piece[:-1]
            targets.flat[: len(piece) - 1] = piece[1:]
            yield tokens, targets
