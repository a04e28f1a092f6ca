"""Text from a model: choose a token, feed it back, repeat. However long it runs, it only keeps the recurrent state."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .backend import get_xp, to_cpu
from .data.vocabulary import decode
from .models import decoder
from .nn import parameters, without_tape
from .tape import Tensor

CHUNK = 256  # tokens of the prompt that are read at a time: enough to be fast, and a long prompt costs no more memory


def candidates(
    logits: np.ndarray | Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may come next, most likely first, and their probabilities: ids (k,) and p (k,), summing to 1.

    logits (V,); -inf forbids a token. In this order:
    top_k          keep the k most likely (0: all); of equal ones the smaller id goes first
    temperature    p = softmax(logits / temperature); 0: only the most likely one
    top_p          keep the fewest, most likely first, that together have at least this probability; at least one
    """
    if not 0.0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 (greedy) or more, got {temperature}")
    if top_k < 0 or top_k != int(top_k):
        raise ValueError(f"top_k must be a whole number, 0 (all) or more, got {top_k}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be above 0 and at most 1 (all), got {top_p}")
    x = np.asarray(to_cpu(logits.data if isinstance(logits, Tensor) else logits), np.float64)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"logits must have the shape (V,) of one position, got {x.shape}")
    if np.isnan(x).any() or x.max() == math.inf:
        raise ValueError("the logits hold nan or +inf: the model has diverged")
    if x.max() == -math.inf:
        raise ValueError("all logits are -inf: no token is allowed")

    ids: np.ndarray = np.argsort(-x, kind="stable")  # (V,)
    if top_k:
        ids = ids[: int(top_k)]
    if temperature == 0.0:
        return ids[:1], np.ones(1)
    with np.errstate(over="ignore", under="ignore"):  # far below the best one: -inf, whose exp is 0
        p = np.exp((x[ids] - x[ids[0]]) / temperature)
    p = p[p > 0.0]  # what is left out is at the end
    p /= p.sum()
    if top_p < 1.0:
        p = p[: 1 + int((np.cumsum(p)[:-1] < top_p).sum())]  # token i stays if those before it are not enough
        p /= p.sum()
    return ids[: len(p)], p


def sample(
    logits: np.ndarray | Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rng: np.random.Generator | None = None,
) -> int:
    """One token drawn from `candidates(logits (V,), ...)`, with exactly one random number; none if temperature is 0."""
    _check_rng(temperature, rng)
    ids, p = candidates(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    if temperature == 0.0 or rng is None:
        return int(ids[0])
    index = int(np.searchsorted(np.cumsum(p), rng.random(), side="right"))  # token i owns p[i] of the line from 0 to 1
    return int(ids[min(index, len(p) - 1)])  # the sum may round to just below 1


def generate(
    model: Any,
    prompt_ids: Sequence[int] | np.ndarray,
    n: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rng: np.random.Generator | None = None,
    reader: Any = None,
) -> Iterator[int]:
    """Yield n tokens that follow the prompt, each as soon as it is chosen.

    prompt_ids (T,): at least one token, because a model predicts what follows something; where there is no prompt, a
    line feed (10) is a good one. The prompt is read by model.prefill, then model.step sees one token at a time. Nothing
    is recorded, and nothing is kept but the state. Arguments are checked here, before the first token is asked for.
    reader: what reads prompt and tokens instead, with the model's own methods initial_state, prefill and step: a
    DepthDecoder, say.
    """
    vocabulary = model.config.vocab_size
    prompt = np.asarray(prompt_ids)
    if prompt.ndim != 1 or not prompt.size:
        raise ValueError(f"the prompt must be a row of at least one token, got shape {prompt.shape}")
    if prompt.dtype.kind not in "iu" or prompt.min() < 0 or prompt.max() >= vocabulary:
        raise ValueError(f"tokens of the prompt must be whole numbers from 0 to {vocabulary - 1}, got {prompt!r:.60}")
    if n < 0:
        raise ValueError(f"the number of tokens must be 0 or more, got {n}")
    choice: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    candidates(np.zeros(vocabulary), **choice)  # raises for bad settings
    _check_rng(temperature, rng)
    readers = (reader, reader) if reader is not None else (without_tape(model), decoder(model))
    xp = get_xp(next(parameters(model))[1].data)
    return _tokens(readers, xp.asarray(prompt.astype(np.int64)), n, choice, rng)


def _tokens(
    readers: tuple[Any, Any], prompt: Any, n: int, choice: dict[str, Any], rng: np.random.Generator | None
) -> Iterator[int]:
    (reader, writer), xp = readers, get_xp(prompt)
    state = reader.initial_state(1)
    for start in range(0, len(prompt) if n else 0, CHUNK):
        logits, state = reader.prefill(prompt[None, start : start + CHUNK], state)  # (1, t, V)
    for i in range(n):
        token = sample(logits.reshape(-1, logits.shape[-1])[-1], **choice, rng=rng)
        yield token
        if i + 1 < n:
            logits, state = writer.step(xp.asarray([token]), state)  # (1, V)


def _check_rng(temperature: float, rng: Any) -> None:
    if temperature != 0.0 and not isinstance(rng, np.random.Generator):
        raise ValueError("sampling needs rng, a np.random.Generator; only temperature 0 goes without")


def state_bytes(state: Any) -> int:
    """How many bytes the arrays of a state take: nested tuples, lists and dicts of arrays or Tensors."""
    if isinstance(state, dict):
        return sum(state_bytes(part) for part in state.values())
    if isinstance(state, list | tuple):
        return sum(state_bytes(part) for part in state)
    return int(getattr(state.data if isinstance(state, Tensor) else state, "nbytes", 0))


def stream_text(ids: Iterable[int], to_bytes: Callable[[Sequence[int]], bytes] = decode) -> Iterator[str]:
    """Turn a stream of tokens into text as it comes; a character of several bytes appears when its last one is there.

    Joined, it is what decoding everything at once would give: bytes that are no UTF-8 become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        if text := decoder.decode(to_bytes([token])):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
