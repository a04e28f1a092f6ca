"""Figures to beat: what counting and a compressor reach on the same split, in bits per byte.

A training loss says little by itself. A model that is worse than a 5-gram has not learned what counting finds, and one
that is worse than xz has not found the repetitions.

n-grams with Witten-Bell smoothing (Witten & Bell 1991, in its interpolated form). With c the last k bytes, c' the last
k - 1, n the counts in train and t(c) the number of distinct bytes seen after c:

    p_k(x | c) = (n(c, x) + t(c) p_{k-1}(x | c')) / (n(c) + t(c)),        p_{-1}(x) = 1 / 256

A context with many different followers is trusted less, an unseen one (n = t = 0) not at all: p_k = p_{k-1}.
"""

import lzma

import numpy as np
import numpy.typing as npt

LONGEST = 7  # a 7-gram looks at 6 bytes of context; 8 bytes would still fit an uint64

Floats = npt.NDArray[np.float64]


def anchors(train: bytes, valid: bytes) -> dict[str, float]:
    """Return bits per byte of valid after having seen train: {"1-gram": ..., ..., "7-gram": ..., "xz": ...}.

    An n-gram has n - 1 bytes of context. Every byte of valid counts; the first ones have a shorter context.
    """
    if not train or not valid:
        raise ValueError(f"anchors need a train and a valid text, got {len(train)} and {len(valid)} bytes")
    figures = {
        f"{n}-gram": float(-np.log2(probabilities).mean())
        for n, probabilities in enumerate(witten_bell(train, valid, LONGEST), start=1)
    }
    return figures | {"xz": xz_bits_per_byte(train, valid)}


def best(figures: dict[str, float]) -> tuple[str, float]:
    """Return (name, bits per byte) of the lowest figure."""
    name = min(figures, key=lambda key: figures[key])
    return name, figures[name]


def witten_bell(train: bytes, valid: bytes, longest: int = LONGEST) -> list[Floats]:
    """Return, for n = 1 .. longest (at most 8), the probability (N,) that the n-gram model gives each byte of valid."""
    if not 1 <= longest <= 8:
        raise ValueError(f"n-grams of 1 to 8 bytes fit into a number of 64 bits, got n = {longest}")
    probabilities = np.full(len(valid), 1 / 256)
    result = []
    for n in range(1, longest + 1):
        if n <= min(len(train), len(valid)):
            followed, total, distinct = _counts(_grams(train, n), _grams(valid, n))
            shorter = probabilities[n - 1 :]  # p_{k-1}; the first n - 1 bytes have no longer context and keep it
            longer = np.where(total > 0, (followed + distinct * shorter) / np.maximum(total + distinct, 1), shorter)
            probabilities = np.concatenate([probabilities[: n - 1], longer])
        result.append(probabilities)
    return result


def xz_bits_per_byte(train: bytes, valid: bytes) -> float:
    """Return how much longer xz gets when valid follows train, in bits per byte of valid."""
    window = min(max(len(train) + len(valid), 4096), 3 << 29)  # all of train stays in sight, up to xz's limit
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]

    def size(text: bytes) -> int:
        return len(lzma.compress(text, filters=filters))

    return (size(train + valid) - size(train)) * 8 / len(valid)


def _grams(text: bytes, n: int) -> npt.NDArray[np.uint64]:
    """Return all n-grams (N - n + 1,) as numbers: the newest byte is the lowest, so `gram >> 8` is the context."""
    letters = np.frombuffer(text, np.uint8).astype(np.uint64)
    grams = np.zeros(len(text) - n + 1, np.uint64)
    for start in range(n):
        grams = grams << np.uint64(8) | letters[start : start + len(grams)]
    return grams


def _counts(seen: npt.NDArray[np.uint64], asked: npt.NDArray[np.uint64]) -> tuple[Floats, Floats, Floats]:
    """Return n(c, x), n(c) and t(c), each (M,), for the grams (c, x) asked, from the grams seen."""
    grams, count = np.unique(seen, return_counts=True)
    contexts, first = np.unique(grams >> np.uint64(8), return_index=True)  # grams are sorted: a context is one run
    total = np.add.reduceat(count, first)
    distinct = np.diff(np.append(first, len(grams)))
    context = asked >> np.uint64(8)
    return _look_up(grams, count, asked), _look_up(contexts, total, context), _look_up(contexts, distinct, context)


def _look_up(keys: npt.NDArray[np.uint64], values: npt.NDArray[np.int64], asked: npt.NDArray[np.uint64]) -> Floats:
    """Return values[i] where keys[i] (sorted) is what is asked, and 0 where it is not among the keys."""
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[place] == asked, values[place], 0).astype(np.float64)
