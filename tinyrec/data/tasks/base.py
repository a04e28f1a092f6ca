"""What all synthetic tasks share: their three members, how options are checked, how answers are counted."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ..batches import IGNORE_INDEX
from ..errors import DataError

Ints = npt.NDArray[np.int64]


def between(default: int, least: int, most: int) -> Any:
    """An option of a task that must be a whole number from `least` to `most`; without this, 1 or more."""
    return field(default=default, metadata={"between": (least, most)})


@dataclass(frozen=True)
class Task:
    """What the tasks share: `length` tokens (T) a sequence, and `vocab` different answers."""

    length: int = 64

    SPECIAL_TOKENS = 0

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            least, most = option.metadata.get("between", (2 if option.name == "vocab" else 1, math.inf))
            if not isinstance(value, int) or not least <= value <= most:
                wanted = f"at least {least}" if most == math.inf else f"{least} to {most}"
                raise DataError(f"{option.name} of a task must be a whole number, {wanted}, got {value!r}")

    @property
    def vocab(self) -> int:
        """How many different answers there are: an option of some tasks, fixed in others."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        return self.vocab + self.SPECIAL_TOKENS

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return tokens (B, T) and targets (B, T), all of it decided by the Generator."""
        raise NotImplementedError

    def accuracy(self, logits: npt.NDArray[np.floating], targets: Ints) -> float:
        """Return the share of scored targets (B, T) that have the largest of the logits (B, T, V)."""
        if logits.shape != (*targets.shape, self.vocab_size):
            raise DataError(f"logits must be {(*targets.shape, self.vocab_size)} for these targets, got {logits.shape}")
        scored = targets != IGNORE_INDEX
        return float((logits.argmax(axis=-1) == targets)[scored].mean())
