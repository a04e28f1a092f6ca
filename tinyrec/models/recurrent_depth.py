"""The recurrent-depth transformer (Geiping et al. 2025, arXiv 2502.05171): think longer by running one block again.

    tokens -> gamma E -> prelude -> e -----------.                    e    what is read, the same in every iteration
                                                 v                    s_i  what is thought, from noise s_0
    noise s_0 -> s --> A [s; e] -> core block -> s                    r    iterations: drawn for each training step,
                 ^                               |                         and any number afterwards
                 '------------ r times ----------+--> norm -> coda -> norm -> product with E -> logits
                                                      (the same norm object in both places)

      x --> norm_1 -> attention -(+)-> norm_2 -> x' --> norm_3 -> MLP -(+)-> norm_4 -> x''     a sandwich block:
        '------------------------'                 '---------------------'                     norms on the sums

    paper        here              shape
    h            d_model           width of everything
    e            e                 (B, T, h)   the embedded input; no norm after the prelude
    s_i          s                 (B, T, h)   the latent state after i iterations
    A [s; e]     adapter_s/_e      (h, h) each: s A_s + e A_e, and the second term is the same in every iteration
    gamma        config.gamma      sqrt(h), a constant
    r, k         steps, grad_steps iterations, and how many of the last ones are recorded for the backward

The paper speaks of a norm at the end of the core block; in the published code, and here, the raw s_i goes into the next
iteration, and the norm is applied once, after the last. Equation numbers, as in # (2): docs/recurrent_depth.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..backend import get_xp
from ..nn import KVCache, parameters, truncated_normal
from ..ops import embedding, linear, recompute, reshape, rope_tables, transpose
from ..tape import Tensor, array_of, no_grad
from .recurrent_depth_blocks import make_block, make_norm, matrix, run
from .recurrent_depth_config import RecurrentDepthConfig
from .recurrent_depth_draw import draw_state, draw_steps
from .recurrent_depth_monitor import watched


class DepthState(NamedTuple):
    """What a sequence carries along.

    position: tokens read. prelude, coda: a KVCache for each block. core[slot][block]: iteration i (from 0) has its keys
    and values in slot i mod len(core), so with at least as many slots as iterations each has its own, and with fewer
    the memory stays bounded however long the model thinks. latent (B, h): norm(s_r) of the last token.
    """

    position: int
    prelude: tuple[KVCache, ...]
    core: tuple[tuple[KVCache, ...], ...]
    coda: tuple[KVCache, ...]
    latent: Any


class RecurrentDepth:
    """The language model, figure 2."""

    def __init__(self, config: RecurrentDepthConfig, rng: Any, dtype: Any = "float32"):
        self.config = config
        h, std = config.d_model, config.std
        self.embedding = truncated_normal(rng, (config.vocab_size, h), std, dtype)
        self.prelude = [make_block(config, rng, dtype) for _ in range(config.n_prelude)]
        adds = config.injection == "add"
        self.adapter_s, self.adapter_e = (None if adds else matrix(config, rng, (h, h), std, dtype) for _ in range(2))
        self.core = [make_block(config, rng, dtype) for _ in range(config.n_core)]
        self.coda = [make_block(config, rng, dtype) for _ in range(config.n_coda)]
        self.norm = make_norm(config, dtype)

    def __call__(
        self, tokens: Any, steps: int | None = None, grad_steps: int | None = None, initial_state: Any = None
    ) -> Tensor:
        """Logits (B, T, V) for tokens (B, T) after r = `steps` iterations (None: config.mean_steps).

        grad_steps: k, the number of last iterations that are recorded; None: all, which gives the whole gradient.
        initial_state s_0 (B, T, h): where thinking starts, see draw_state; None: zeros.
        """
        steps = self.config.mean_steps if steps is None else steps
        k = steps if grad_steps is None else min(grad_steps, steps)  # k' = min(k, r), n = max(r - k, 0)
        if k < 0:
            raise ValueError(f"steps and grad_steps must be 0 or more, got {steps} and {grad_steps}")
        thought = Unrolling(self, tokens, start=initial_state)
        with no_grad():
            for _ in range(steps - k):  # n silent iterations: s_n is a constant to what follows (20)
                thought.iterate()
        for _ in range(k):  # k recorded ones; e, recorded before them, gets its gradient from these alone (20)
            thought.iterate()
        return thought.logits()

    def prefill(
        self, tokens: Any, state: DepthState, steps: int | None = None, initial_state: Any = None
    ) -> tuple[Tensor, DepthState]:
        """Read tokens (B, T) on top of `state`: logits (B, T, V) and the state after them.

        Gradients flow through the tokens of this call only: keys and values cached by an earlier one are constants.
        """
        thought = Unrolling(self, tokens, state, initial_state)
        for _ in range(self.config.mean_steps if steps is None else steps):
            thought.iterate()
        return thought.logits(), thought.state()

    def step(
        self, tokens: Any, state: DepthState, steps: int | None = None, initial_state: Any = None
    ) -> tuple[Tensor, DepthState]:
        """Read one token (B,) for each sequence from initial_state (B, h): logits (B, V), and the new state."""
        start = None if initial_state is None else initial_state[:, None]
        logits, state = self.prefill(tokens[:, None], state, steps, start)
        return reshape(logits, shape=(len(tokens), self.config.vocab_size)), state

    def initial_state(self, batch: int, slots: int | None = None) -> DepthState:
        """The state of `batch` sequences before their first token; slots: see DepthState (None: config.mean_steps)."""
        slots, like = slots or self.config.mean_steps, array_of(self.embedding)
        none = get_xp(like).zeros((batch, 0, self.config.n_heads, self.config.head_width), like.dtype)
        prelude, coda = (tuple(KVCache(none, none) for _ in blocks) for blocks in (self.prelude, self.coda))
        core = tuple(tuple(KVCache(none, none) for _ in self.core) for _ in range(slots))
        return DepthState(0, prelude, core, coda, get_xp(like).zeros((batch, self.config.d_model), like.dtype))

    def draw(self, rng: Any, batch: int, time: int, steps: int | None = None) -> dict[str, Any]:
        """The keyword arguments of one training call: one r for all tokens, k and s_0; steps: r, if not left to rng."""
        steps = draw_steps(rng, self.config) if steps is None else steps
        start = draw_state(rng, self.config, batch, time, array_of(self.embedding))
        return {"steps": steps, "grad_steps": self.config.grad_steps, "initial_state": start}

    def logits_by_steps(self, tokens: Any, steps: Iterable[int], initial_state: Any = None) -> Iterator[tuple]:
        """(r, logits (B, T, V) after r iterations) for each r of `steps`, which ascend."""
        thought = Unrolling(self, tokens, start=initial_state)
        for r in steps:
            while thought.steps < r:
                thought.iterate()
            yield r, thought.logits()

    @no_grad()
    def monitor(self, tokens: Any, steps: int, initial_state: Any, **_: Any) -> dict[str, float]:
        """What to watch while training: do tokens become alike, does the state settle? Section 4.2, figure 5."""
        thought = Unrolling(self, tokens, start=initial_state)
        for _i in range(steps):
            previous = array_of(thought.s)
            thought.iterate()
        return watched(thought, previous)

    # The parts of the figure; what attends also returns the caches after it, None where there are none.

    def rotation(self, position: int, time: int) -> Any:
        """What turns the queries and keys of `time` tokens after the first `position`: cosines and sines."""
        like, config = array_of(self.embedding), self.config
        places = get_xp(like).arange(position, position + time)[None]
        return rope_tables(places, config.head_width, config.rope_base, like.dtype)

    def embed(self, tokens: Any, rotation: Any, caches: Any) -> tuple[Tensor, tuple]:
        """tokens (B, T) -> e (B, T, h): lookup, times gamma, prelude."""
        x = embedding(self.embedding, tokens)
        if self.config.scaled_embedding:
            x = x * self.config.gamma  # (1)
        return run(self.prelude, x, rotation, caches)

    def inject(self, e: Tensor) -> Tensor:
        """What every iteration adds to the state: e A_e, or e itself in bad run 1. (B, T, h)"""
        return e if self.adapter_e is None else linear(e, self.adapter_e)  # (4)

    def iterate(self, s: Tensor, injected: Tensor, rotation: Any, caches: Any) -> tuple[Tensor, tuple]:
        """s_i = core(A [s_{i-1}; e]), (B, T, h). Nothing depends on i."""
        if self.config.recompute and caches is None:
            weights = [tensor for _, tensor in parameters([self.adapter_s, self.core])]
            once = lambda s, injected: self._iterate(s, injected, rotation, None)[0]  # noqa: E731
            return recompute(s, injected, *weights, call=once, weights=weights), ()
        return self._iterate(s, injected, rotation, caches)

    def _iterate(self, s: Tensor, injected: Tensor, rotation: Any, caches: Any) -> tuple[Tensor, tuple]:
        x = (s if self.adapter_s is None else linear(s, self.adapter_s)) + injected  # (4)
        return run(self.core, x, rotation, caches)  # (2)

    def finish(self, z: Tensor, rotation: Any, caches: Any) -> tuple[Tensor, tuple]:
        """z = norm(s_r) (B, T, h) -> y (B, T, h): coda, then the same norm again."""
        y, caches = run(self.coda, z, rotation, caches)
        return self.norm(y), caches  # (3)

    def head(self, y: Tensor) -> Tensor:
        """y (B, T, h) -> logits (B, T, V): tied to the embedding, without gamma."""
        return linear(y, transpose(self.embedding))  # (3)


class Unrolling:
    """Tokens on their way through the model: call `iterate` as often as wanted, look at `logits` whenever wanted.

    Everything that runs the model runs through this: training, generation, early exits, pictures of the state.
    """

    def __init__(self, model: RecurrentDepth, tokens: Any, state: DepthState | None = None, start: Any = None):
        """tokens (B, T); start: s_0 (B, T, h), None for zeros; state: what was read before, None for the first call."""
        if tokens.ndim != 2:
            raise ValueError(f"expected tokens (B, T), got {tokens.shape}")
        self.model, self.before, self.steps, self.time = model, state, 0, tokens.shape[1]
        like, shape = array_of(model.embedding), (*tokens.shape, model.config.d_model)
        self.s = get_xp(like).zeros(shape, like.dtype) if start is None else start
        if self.s.shape != shape:
            raise ValueError(f"initial_state must be {shape} for tokens {tokens.shape}, got {self.s.shape}")
        self.rotation = model.rotation(0 if state is None else state.position, self.time)
        self.e, self.prelude = model.embed(tokens, self.rotation, state and state.prelude)
        self.injected = model.inject(self.e)
        self.core: list[Any] = [] if state is None else list(state.core)
        self.coda: Any = state and state.coda
        self.read = -1  # iterations after which the coda last read these tokens; -1: its caches are without them

    def iterate(self) -> None:
        """s becomes the next iterate."""
        slot, caches = 0, None
        if self.before is not None:  # these tokens as they are now, behind past ones as they last wrote this slot
            slot = self.steps % len(self.core)
            caches = self._past(self.core[slot]) if self.steps >= len(self.core) else self.core[slot]
        self.s, caches = self.model.iterate(self.s, self.injected, self.rotation, caches)
        if self.before is not None:
            self.core[slot] = caches
        self.steps += 1

    def latent(self) -> Tensor:
        """norm(s) (B, T, h), what the coda reads."""
        return self.model.norm(self.s)

    def output(self) -> Tensor:
        """y (B, T, h) of the state as it is now, what the head reads."""
        caches = self._past(self.coda) if self.read >= 0 else self.coda
        y, self.coda = self.model.finish(self.latent(), self.rotation, caches)
        self.read = -1 if self.before is None else self.steps
        return y

    def logits(self) -> Tensor:
        """(B, T, V) of the state as it is now."""
        return self.model.head(self.output())

    def state(self) -> DepthState:
        """The state after these tokens.

        Slots that were not reached take the latest keys and values: what a later token sees that thinks longer.
        """
        if self.before is None or not self.steps:
            raise ValueError("there is a state only after one that was given to go on from, and at least one iteration")
        if self.read != self.steps:
            self.output()
        core = list(self.core)
        for slot in range(self.steps, len(core)):
            core[slot] = tuple(
                cache.append(new.keys[:, -self.time :], new.values[:, -self.time :])
                for cache, new in zip(core[slot], core[self.steps - 1], strict=True)
            )
        latent = array_of(self.latent())[:, -1]
        return DepthState(self.before.position + self.time, self.prelude, tuple(core), self.coda, latent)

    def _past(self, caches: Any) -> tuple[KVCache, ...]:
        """The caches before these tokens, whose keys and values are about to be written again."""
        return tuple(cache.without_last(self.time) for cache in caches)
