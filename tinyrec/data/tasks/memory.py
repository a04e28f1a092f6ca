"""Synthetic tasks of memory: keep symbols 0 .. vocab - 1 for a while, choose what to keep, look up, find out the rule.

In the pictures a to h are symbols, `_` is a blank, `?` asks for an answer, and `.` is a target that is not scored.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..batches import IGNORE_INDEX
from ..errors import DataError
from .base import Ints, Task, between


@dataclass(frozen=True)
class Copy(Task):
    """Repeat `items` symbols after a pause that is always equally long (Arjovsky et al. 2016).

        tokens    c a d a _ _ _ _ ? ? ? ?       length 12, items 4
        targets   . . . . . . . . c a d a

    Solved by anything that can delay its input by a fixed time, a convolution for instance. The answers so far are not
    shown to the model: it must know by itself where it stands. blank = vocab, ? = vocab + 1.
    """

    vocab: int = 8
    items: int = 8

    SPECIAL_TOKENS = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 2 * self.items:
            raise DataError(f"{self.items} items and their answers need length {2 * self.items}, got {self.length}")

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        positions = np.broadcast_to(np.arange(self.items), (batch, self.items))
        return self._layout(positions, rng.integers(0, self.vocab, size=(batch, self.items)))

    def _layout(self, positions: Ints, items: Ints) -> tuple[Ints, Ints]:
        """Put items (B, n) at positions (B, n) among blanks, and ask for them in the last n places."""
        blank, ask = self.vocab, self.vocab + 1
        tokens = np.full((len(items), self.length), blank, np.int64)
        np.put_along_axis(tokens, positions, items, axis=1)
        tokens[:, -self.items :] = ask
        targets = np.full_like(tokens, IGNORE_INDEX)
        targets[:, -self.items :] = items
        return tokens, targets


@dataclass(frozen=True)
class SelectiveCopy(Copy):
    """Repeat `items` symbols that stand at random places among blanks, in their order.

        tokens    _ c _ _ a d _ a ? ? ? ?       length 12, items 4
        targets   . . . . . . . . c a d a

    The variant of the copying task of Arjovsky et al. (2016) in Gu & Dao (2023), also in De et al. (2024, section 6).
    A fixed delay does not help: what to keep must be chosen by what it is, so gates have to depend on the input.
    """

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        positions = _random_places(batch, self.length - self.items, self.items, rng)
        return self._layout(positions, rng.integers(0, self.vocab, size=(batch, self.items)))


@dataclass(frozen=True)
class Induction(Task):
    """Say what followed the special token before: the pattern of induction heads, A B ... A -> B (Olsson et al. 2022).

        tokens    c a ! f d h ! f b ! f c       length 12, occurrences 3; "!" is the special token
        targets   . . . . . . f . . f . .

    The special token (= vocab) is always followed by the same symbol, another one in each sequence; the rest is noise.
    Scored are its occurrences 2 to n. With occurrences = 2 this is close to the form of Gu & Dao (2023), one answer a
    sequence, which a toy learns very slowly; more occurrences give it more to learn from. Sample with a larger
    `length` and the same `occurrences` to see whether what was learned holds over wider gaps.
    """

    vocab: int = 8
    occurrences: int = 4

    SPECIAL_TOKENS = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.occurrences < 2 or self.length < 2 * self.occurrences:
            raise DataError(
                f"induction needs 2 occurrences or more and 2 tokens for each, "
                f"got {self.occurrences} occurrences in length {self.length}"
            )

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        n = self.occurrences
        tokens = rng.integers(0, self.vocab, size=(batch, self.length))
        values = rng.integers(0, self.vocab, size=(batch, 1))
        # A special token and its value are one piece: choose n places, then let each piece push the later ones by 1.
        places = _random_places(batch, self.length - n, n, rng) + np.arange(n)  # (B, n)
        np.put_along_axis(tokens, places, self.vocab, axis=1)
        np.put_along_axis(tokens, places + 1, np.broadcast_to(values, places.shape), axis=1)
        targets = np.full_like(tokens, IGNORE_INDEX)
        np.put_along_axis(targets, places[:, 1:], np.broadcast_to(values, places[:, 1:].shape), axis=1)
        return tokens, targets


@dataclass(frozen=True)
class Markov(Task):
    """Say what comes next in a chain that mostly follows a rule of its own, a random permutation of the symbols.

        rule      a -> c -> d -> a, b -> b        another one in each sequence
        tokens    a c d a b b c d a c             length 10, symbols 4
        targets   c d a b b c d a c d             the next token; a to b and b to c are noise

    The first token is uniform. After it the next one is the successor of the current one, or, in `noise` percent, any
    symbol at all, the successor included. Every target is scored. No weights can hold the rule: it must be read off the
    sequence while it goes by, and the more of it has gone by, the better it can be known. Who knows it loses, in nats
    a token, with e = noise / 100, n = symbols, and p = 1 - e + e/n for the successor,

        floor = -p log p - (n - 1) (e/n) log(e/n)

    which is 0.526 at the defaults; who knows nothing loses log n, here 2.485. The mean over a sequence stays above the
    floor, since the first arrow out of a symbol cannot be known. The most probable guess is right with probability p.
    """

    symbols: int = between(12, 2, 256)
    noise: int = between(10, 0, 100)

    @property
    def vocab(self) -> int:
        return self.symbols

    @property
    def floor(self) -> float:
        """The loss in nats a token of a model that knows the rule: the entropy of the next token."""
        other = self.noise / 100 / self.symbols  # the probability of each symbol that is not the successor
        chances = [1 - (self.symbols - 1) * other] + [other] * (self.symbols - 1)
        return -sum(p * math.log(p) for p in chances if p > 0)

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        successor = rng.permuted(np.tile(np.arange(self.symbols), (batch, 1)), axis=1)  # (B, symbols)
        chain = rng.integers(0, self.symbols, size=(batch, self.length + 1))  # noise, until the rule takes its place
        obeys, rows = rng.random(chain.shape) >= self.noise / 100, np.arange(batch)
        for t in range(1, self.length + 1):
            chain[:, t] = np.where(obeys[:, t], successor[rows, chain[:, t - 1]], chain[:, t])
        return chain[:, :-1].copy(), chain[:, 1:].copy()


def _random_places(batch: int, length: int, count: int, rng: np.random.Generator) -> Ints:
    """Return (B, count) different places in 0 .. length - 1, ascending, each choice equally likely."""
    order = rng.random((batch, length)).argsort(axis=1)
    return np.sort(order[:, :count], axis=1)
