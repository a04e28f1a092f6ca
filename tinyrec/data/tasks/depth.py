"""Synthetic tasks of depth: an answer is one step away from an answer before it, so more iterations should help.

Every token asks, and every answer is scored. The tasks differ in how well the steps can be avoided:

    prefix parity   carries a bit, which each 1 flips     count all the ones at once
    addition        carries the 1 of 7 + 5 = 12           look for the last pair of digits that stops a carry
    permutations    carries an arrangement of n things    n = 3, 4: in some fixed depth; n = 5: in none (*)
    chase           follows pointers back to a symbol     double them: point where my target points, log2 T times

(*) That holds for all lengths, and unless two classes of circuits are one: Barrington (1989); for sequence models
Merrill et al. (2024). Liu et al. (2023) construct the shortcuts for the others and find some in trained transformers.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from math import factorial

import numpy as np

from ..batches import IGNORE_INDEX
from ..errors import DataError
from .base import Ints, Task, between


@dataclass(frozen=True)
class Stepwise(Task):
    """What the first three share: `symbols` tokens that are read, then `vocab` answers, then perhaps one for "begin".

    Answers are tokens of their own. A model whose embedding is also its output would otherwise need one row for two
    things, "do this" and "the result is this", and would be drawn to repeat its input.
    """

    bos: int = between(0, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length <= self.bos:
            raise DataError(f"a sequence that begins with a token of its own needs length 2, got {self.length}")

    @property
    def symbols(self) -> int:
        """How many different tokens there are to read, besides "begin"."""
        raise NotImplementedError

    @property
    def vocab(self) -> int:
        """How many different answers there are: what is read and what is carried along is of one kind, mostly."""
        return self.symbols

    @property
    def vocab_size(self) -> int:
        return self.symbols + self.vocab + self.bos

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        tokens = self._draw((batch, self.length - self.bos), rng)
        targets = self.symbols + self._answers(tokens)
        begin, where = self.symbols + self.vocab, ((0, 0), (self.bos, 0))  # one more column at the left, or none
        return np.pad(tokens, where, constant_values=begin), np.pad(targets, where, constant_values=IGNORE_INDEX)

    @property
    def ceiling(self) -> float:
        """No causal attention without absolute positions can be more accurate than this: see PrefixParity.

        As long as a sequence repeats its first token, such a model repeats its first answer. Best is what is right for
        one token: if its probability p is at most 1/2, all places after the first weigh p^2 + p^3 + ... <= p.
        """
        if self.bos:
            return 1.0
        repeated = np.repeat(np.arange(self.symbols)[:, None], self.length, axis=1)  # (symbols, T)
        answers = self._answers(repeated)
        chances = self._chances()[:, None] ** np.arange(1, self.length + 1)  # that t + 1 tokens repeat the first
        return 1 - float(chances[answers != answers[:, :1]].sum()) / self.length

    def _draw(self, shape: tuple[int, int], rng: np.random.Generator) -> Ints:
        """Return random tokens (B, T), independent of each other."""
        return rng.integers(0, self.symbols, size=shape)

    def _chances(self) -> np.ndarray:
        """Return the probability (symbols,) of each token in `_draw`."""
        return np.full(self.symbols, 1 / self.symbols)

    def _answers(self, tokens: Ints) -> Ints:
        """Return the answers (B, T), 0 .. vocab - 1, to tokens (B, T)."""
        raise NotImplementedError


@dataclass(frozen=True)
class PrefixParity(Stepwise):
    """Say of every prefix whether its number of ones is even (2) or odd (3).

        tokens    0 1 1 0 1 0       length 6
        targets   2 3 2 2 3 3

    No token says where the sequence begins, and this has a price. Attention averages, and the average of equal values
    is that value whatever the weights: a causal transformer without absolute positions sees no difference between 1 and
    1 1 and 1 1 1, where 3 and 2 and 3 are right. L ones begin a sequence with probability 2^-L, so it had better
    say 3, and is wrong at every even L:

        ceiling = 1 - 1/T sum_{even L <= T} 2^-L = 1 - (1 - 4^-floor(T/2)) / (3 T)

    The price of naming the beginning is higher. With bos=1 (token 4, not scored; T - 1 bits are left) the ceiling is 1,
    but that one odd token lets attention count: its share of a uniform average is 1 / (t + 1). A model may then learn
    this parallel shortcut at the trained length, and gain little from iterations. Try it. (A recurrence or a
    convolution knows where it begins and has no ceiling. A model that starts from noise could tell by how much of it
    has averaged out, hardly in practice.)
    """

    @property
    def symbols(self) -> int:
        return 2

    def _answers(self, tokens: Ints) -> Ints:
        return tokens.cumsum(axis=1) % 2


@dataclass(frozen=True)
class Addition(Stepwise):
    """Add two numbers, the digits of least value first; a token is a pair of digits, the answer a digit of the sum.

        a         7 1 5 2           2517 + 6485 = 9002, base 10
        b         5 8 4 6
        tokens    75 18 54 26       base a + b
        targets   2  0  0  9        each + base^2; the last carry is dropped

    A pair whose sum is base - 1 passes a carry on; others stop it, or make one, whatever came in. With uniform digits
    only one pair in `base` passes it on, and carries die young. So `propagate` percent are of that kind: between a
    digit and the pair that decides its carry lie p / (1 - p) others on average, 3 at 75. Each digit is still uniform.
    """

    base: int = between(10, 2, 16)
    propagate: int = between(75, 0, 100)

    @property
    def symbols(self) -> int:
        return self.base**2

    @property
    def vocab(self) -> int:
        return self.base

    def _draw(self, shape: tuple[int, int], rng: np.random.Generator) -> Ints:
        a = rng.integers(0, self.base, size=shape)
        missed = rng.integers(1, self.base, size=shape)  # by how much b misses the digit that would propagate
        missed[rng.random(shape) < self.propagate / 100] = 0
        return self.base * a + (self.base - 1 - a + missed) % self.base

    def _chances(self) -> np.ndarray:
        a, b = np.divmod(np.arange(self.symbols), self.base)
        p = self.propagate / 100
        return np.where(a + b == self.base - 1, p, (1 - p) / (self.base - 1)) / self.base

    def _answers(self, tokens: Ints) -> Ints:
        total = np.add(*np.divmod(tokens, self.base))  # (B, T), without the carry
        carry = np.zeros_like(total[:, 0])
        for t in range(total.shape[1]):
            total[:, t] += carry
            carry = total[:, t] // self.base
        return total % self.base


@dataclass(frozen=True)
class Permutations(Stepwise):
    """Say how n things lie after all the permutations so far, one after the other: the word problem of the group S_n.

        tokens    1 2 4 5           n = 3; in lexicographic order 021, 102, 201, 210
        products  1 3 0 5           021; first 021, then 102 = 120; ... = 012, nothing has changed; 210
        targets   7 9 6 11          each + n!

    "First p, then q" takes i to q[p[i]]. All n! permutations are tokens, each equally likely, so every answer is too:
    there is nothing to guess from the last few. The order matters, so counting is no way out, as it is for parity.
    """

    n: int = between(3, 3, 5)

    @property
    def symbols(self) -> int:
        return factorial(self.n)

    def _answers(self, tokens: Ints) -> Ints:
        table, products = multiplication_table(self.n), tokens.copy()
        for t in range(1, tokens.shape[1]):
            products[:, t] = table[products[:, t - 1], tokens[:, t]]
        return products


@cache
def multiplication_table(n: int) -> Ints:
    """Return (n!, n!): at [p, q] the number of the permutation "first p, then q", all in lexicographic order."""
    elements = np.array(list(permutations(range(n))))  # (n!, n)
    products = elements[:, elements].swapaxes(0, 1)  # [p, q, i] = elements[q, elements[p, i]]
    digits = n ** np.arange(n)[::-1]  # read as numbers, they are in that order
    return np.searchsorted(elements @ digits, products @ digits)


@dataclass(frozen=True)
class Chase(Task):
    """Follow pointers back to a symbol and say which one.

        tokens    a b 1 3 c 2 2       length 7, chains 2, reach 3; 1 to 3 point at the token that many places before
        targets   a b b a c a c       the last but one: to the 3, to a

    The first tokens are symbols (0 .. vocab - 1), the heads of `chains`. Every other token goes on with one of them at
    random: it points at its last token, at most `reach` places back (token vocab - 1 + places), or, in `renew` percent,
    is a symbol with which that chain begins anew. Chains never meet: guessing which one it is does not help. Without
    new symbols there are few short chains, and those are what a model learns first.

    Made for iterations of one block. If each position holds the answer as far as it knows it, then one and the same
    step, "take over what the token holds that I point at", is right for all positions and all iterations: r of them
    solve whatever is up to r hops away, and more do no harm. No token need say where the sequence begins.
    """

    vocab: int = 8
    chains: int = 3
    reach: int = 5
    renew: int = between(15, 0, 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.chains < min(self.reach, self.length):
            given = f"{self.chains} chains, reach {self.reach}, length {self.length}"
            raise DataError(f"chase needs a reach and a length of more than the number of chains, got {given}")

    @property
    def vocab_size(self) -> int:
        return self.vocab + self.reach

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        tokens = rng.integers(0, self.vocab, size=(batch, self.length))  # symbols, until pointers take their places
        targets, rows = tokens.copy(), np.arange(batch)
        pointer = rng.random(tokens.shape) >= self.renew / 100
        last = np.tile(np.arange(self.chains), (batch, 1))  # (B, chains): the place of the last token of each
        for t in range(self.chains, self.length):
            due = last.min(axis=1) == t - self.reach  # one more place, and a chain would be out of reach
            chain = np.where(due, last.argmin(axis=1), rng.integers(0, self.chains, size=batch))
            parent = last[rows, chain]
            tokens[:, t] = np.where(pointer[:, t], self.vocab - 1 + t - parent, tokens[:, t])
            targets[:, t] = np.where(pointer[:, t], targets[rows, parent], targets[:, t])
            last[rows, chain] = t
        return tokens, targets

    def hops(self, tokens: Ints) -> Ints:
        """Return how many pointers lead from each of the tokens (B, T) to its symbol; 0 for a symbol."""
        back = np.maximum(tokens - (self.vocab - 1), 0)
        hops, rows = np.zeros_like(tokens), np.arange(len(tokens))
        for t in range(self.chains, tokens.shape[1]):
            hops[:, t] = np.where(back[:, t] > 0, 1 + hops[rows, t - back[:, t]], 0)
        return hops
