"""Writing with a recurrent-depth model: everything that the paper does at test time without training for it, section 6.

steps            any number of iterations for each token
exit             adaptive: a token stops when a criterion says so (recurrent_depth_exit.py), after `steps` at most
slots            the key-value cache keeps `slots` iterations of each token, however many there are
warm_start       a continuous chain of thought: a token starts from the last state of the token before
speculate        guess some tokens with few iterations, verify them all at once with many
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..backend import get_xp, to_cpu
from ..suggest import check_known
from .recurrent_depth import DepthState, RecurrentDepth, Unrolling
from .recurrent_depth_draw import draw_state
from .recurrent_depth_exit import THRESHOLDS, ExitWatch
from .recurrent_depth_plain import PlainRecurrentDepth


class DepthDecoder:
    """Reads tokens for `generate`, by these rules. After each call `taken` says how many iterations it took.

    It reads them with the parameters as they are when it is made.
    """

    def __init__(
        self,
        model: RecurrentDepth,
        steps: int | None = None,
        exit: str | None = None,
        threshold: float | None = None,
        slots: int | None = None,
        warm_start: bool = False,
        rng: Any = None,
    ):
        """steps, slots None: the config's mean_steps, and as many slots as steps; rng None: each s_0 is zero."""
        self.model, self.config = PlainRecurrentDepth(model), model.config
        self.steps = self.config.mean_steps if steps is None else steps
        self.slots = self.steps if slots is None else slots
        if self.steps < 1 or self.slots < 1:
            raise ValueError(f"steps and slots must be at least 1, got {self.steps} and {self.slots}")
        if exit is not None:
            check_known(exit, THRESHOLDS, "exit criterion")
        elif threshold is not None:
            raise ValueError(f"a threshold, {threshold}, needs an exit criterion: one of {', '.join(THRESHOLDS)}")
        self.exit, self.threshold, self.warm_start, self.rng = exit, threshold, warm_start, rng
        self.taken: list[int] = []

    def initial_state(self, batch: int) -> DepthState:
        return self.model.initial_state(batch, self.slots)

    def prefill(self, tokens: Any, state: DepthState) -> tuple[Any, DepthState]:
        """Read tokens (B, T): logits (B, T, V) and the state after them. With `exit` the last token decides for all."""
        return self._read(tokens, state, self._noise(tokens.shape))

    def step(self, tokens: Any, state: DepthState) -> tuple[Any, DepthState]:
        """Read one token (B,) for each sequence: logits (B, V) and the new state."""
        # The published code is at odds with itself here: its plain generator hands norm(s_r) on, as here, the adaptive
        # one the raw s_r.
        warm = self.warm_start and state.position > 0
        start = state.latent[:, None] if warm else self._noise((len(tokens), 1))
        logits, state = self._read(tokens[:, None], state, start)
        return logits[:, 0], state

    def _read(self, tokens: Any, state: DepthState, start: Any) -> tuple[Any, DepthState]:
        thought = Unrolling(self.model, tokens, state, start)
        watch = ExitWatch(self.exit, self.threshold, thought) if self.exit else None
        logits = None
        while thought.steps < self.steps:
            thought.iterate()
            if watch is not None and watch.done()[:, -1].all():
                logits = watch.logits
                break
        logits = thought.logits() if logits is None else logits
        self.taken.append(thought.steps)
        return logits, thought.state()

    def _noise(self, shape: tuple[int, int]) -> Any:
        return None if self.rng is None else draw_state(self.rng, self.config, *shape, self.model.embedding)


def speculate(
    model: RecurrentDepth,
    prompt: Any,
    n: int,
    steps: int | None = None,
    draft_steps: int = 4,
    draft_tokens: int = 4,
    tolerance: float = 1.0,
) -> Iterator[list[int]]:
    """n tokens after prompt (T,), greedily: lists of those that one verification has made certain.

    The model drafts `draft_tokens` tokens with draft_steps iterations each, then reads all of them at once with `steps`
    and keeps those that it would have written itself, and the one after them. So every list has at least one token, and
    with s_0 = 0, as here, the text is that of plain decoding. tolerance tau < 1 also keeps a token whose probability is
    at least tau times that of the likeliest; then the text is another.
    """
    steps = model.config.mean_steps if steps is None else steps
    if min(n, steps, draft_steps, draft_tokens) < 1 or not 0.0 < tolerance <= 1.0:
        raise ValueError(
            "expected n, steps, draft_steps and draft_tokens of at least 1 and a tolerance in (0, 1], "
            f"got {n}, {steps}, {draft_steps}, {draft_tokens} and {tolerance}"
        )
    return _rounds(PlainRecurrentDepth(model), prompt, n, steps, draft_steps, draft_tokens, tolerance)


def _rounds(
    plain: Any, prompt: Any, n: int, steps: int, draft_steps: int, draft_tokens: int, tolerance: float
) -> Iterator[list[int]]:
    xp = get_xp(plain.embedding)
    logits, state = plain.prefill(xp.asarray(prompt)[None], plain.initial_state(1, steps), steps)
    token = int(logits[0, -1].argmax())
    yield [token]
    written = 1
    while written < n:
        draft, guess = [token], state
        for _ in range(draft_tokens):
            logits, guess = plain.step(xp.asarray(draft[-1:]), guess, draft_steps)
            draft.append(int(logits[0].argmax()))
        logits, after = plain.prefill(xp.asarray(draft)[None], without_last(state, 0), steps)
        verified = to_cpu(logits[0])  # (draft_tokens + 1, V): after the token, after each guess
        kept = 0
        while kept < draft_tokens and _accepts(verified[kept], draft[kept + 1], tolerance):
            kept += 1
        token = int(verified[kept].argmax())
        state = without_last(after, draft_tokens - kept)  # the guesses that were wrong are taken back
        found = [*draft[1 : kept + 1], token][: n - written]
        written += len(found)
        yield found


def _accepts(logits: Any, guess: int, tolerance: float) -> bool:
    """Is p(guess) >= tolerance * max p? With tolerance 1: is it the likeliest?"""
    if tolerance == 1.0:
        return bool(logits.argmax() == guess)
    return bool(logits[guess] >= logits.max() + math.log(tolerance))


def without_last(state: DepthState, n: int) -> DepthState:
    """The state before its last n tokens; what continues it is given up, see KVCache.without_last.

    Its `latent` stays that of the token that was last: do not start warm from it.
    """

    def cut(caches: tuple) -> tuple:
        return tuple(cache.without_last(n) for cache in caches)

    core = tuple(cut(slot) for slot in state.core)
    return DepthState(state.position - n, cut(state.prelude), core, cut(state.coda), state.latent)
