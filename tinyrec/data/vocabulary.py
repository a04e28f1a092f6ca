"""The vocabulary of the language models here: the 256 bytes. Nothing to train, nothing unknown, any file fits."""

import numpy as np
import numpy.typing as npt

VOCAB_SIZE = 256


def encode(text: bytes | str) -> npt.NDArray[np.uint8]:
    """Return the tokens (T,) of a text; a str is encoded as UTF-8 first."""
    data = text.encode("utf-8") if isinstance(text, str) else text
    return np.frombuffer(data, dtype=np.uint8).copy()  # a copy, because frombuffer's array cannot be written to


def decode(tokens: npt.ArrayLike) -> bytes:
    """Return the bytes of tokens (T,)."""
    array = np.asarray(tokens)
    if array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= VOCAB_SIZE):
        raise ValueError(f"byte tokens are integers from 0 to {VOCAB_SIZE - 1}, got {array.dtype} up to {array.max()}")
    return array.astype(np.uint8).tobytes()


def decode_text(tokens: npt.ArrayLike) -> str:
    """Return tokens (T,) as text; bytes that are not UTF-8 (a character cut in two) appear as U+FFFD."""
    return decode(tokens).decode("utf-8", errors="replace")
