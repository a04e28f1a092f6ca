"""Reading token by token: the caches of the recurrent-depth transformer against a reference without any."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.generate import state_bytes
from tinyrec.models.recurrent_depth import Unrolling
from tinyrec.nn import without_tape
from tinyrec.tape import array_of, no_grad

TOLERANCE = 1e-12  # both sides compute in float64, in another order


def draw(seed, batch, time):
    """tokens (B, T) and s_0 (B, T, h)."""
    rng = np.random.default_rng([5, seed])
    return rng.integers(0, 11, (batch, time)), 0.6 * rng.standard_normal((batch, time, 8))


class Reference:
    """The model in its own formulas, token by token. It remembers the keys and values of every iteration of each token.

    What an iteration sees of a token of an earlier call, if the cache has `slots` slots: the last iteration of that
    token that has the same number mod `slots`; if none has, for it thought too briefly, its last one.
    """

    def __init__(self, model, slots):
        self.model, self.slots, self.read = without_tape(model), slots, 0
        self.past = {}  # (block, iteration or None) -> [(keys, values) (B, H, K) of each token]
        self.taken = []  # iterations of each token

    def rms(self, norm, x):
        return norm.gain * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def rotated(self, x, position):
        number = x[..., 0::2] + 1j * x[..., 1::2]
        angle = position * 50000.0 ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1])
        turned = number * np.exp(1j * angle)
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    def seen(self, block, i, token):
        """Keys and values of a token of an earlier call; i: which iteration asks, None outside of the core."""
        if i is not None:
            alike = [j for j in range(self.taken[token]) if j % self.slots == i % self.slots]
            i = alike[-1] if alike else self.taken[token] - 1
        return self.past[block, i][token]

    def block(self, name, block, xs, i, kept):
        """One block on the rows xs, (B, h) for each token of this call."""
        after, mine = [], []
        for t, x in enumerate(xs):
            z, place = self.rms(block.norm_1, x), self.read + t
            a = block.attention
            heads = [(z @ f.w + (0 if f.b is None else f.b)).reshape(len(x), a.heads, -1) for f in (a.q, a.k, a.v)]
            q, k = (self.rotated(part, place) for part in heads[:2])
            mine.append((k, heads[2]))
            everything = [self.seen(name, i, token) for token in range(self.read)] + mine
            keys, values = (np.stack(part, axis=2) for part in zip(*everything, strict=True))  # (B, H, n, K)
            scores = (keys @ q[..., None])[..., 0] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            mixed = (weights[:, :, None] @ values).reshape(x.shape) @ a.out.w
            x = self.rms(block.norm_2, x + mixed)
            gate, up = (self.rms(block.norm_3, x) @ f.w for f in (block.mlp.gate, block.mlp.up))
            after.append(self.rms(block.norm_4, x + (gate / (1 + np.exp(-gate)) * up) @ block.mlp.down.w))
        kept[name, i] = mine
        return after

    def read_tokens(self, tokens, start, steps):
        """Logits (B, T, V) of a call."""
        model, kept = self.model, {}
        e = [8**0.5 * model.embedding[column] for column in tokens.T]
        for b, block in enumerate(model.prelude):
            e = self.block(("prelude", b), block, e, None, kept)
        s = list(start.transpose(1, 0, 2))
        for i in range(steps):
            s = [x @ model.adapter_s + y @ model.adapter_e for x, y in zip(s, e, strict=True)]
            for b, block in enumerate(model.core):
                s = self.block(("core", b), block, s, i, kept)
        y = [self.rms(model.norm, x) for x in s]
        for b, block in enumerate(model.coda):
            y = self.block(("coda", b), block, y, None, kept)
        nothing = [None] * self.read
        for key in {*self.past, *kept}:
            self.past[key] = self.past.get(key, nothing) + kept.get(key, [None] * len(e))
        self.read += len(e)
        self.taken += [steps] * len(e)
        return np.stack([self.rms(model.norm, x) @ model.embedding.T for x in y], axis=1)


def read(model, calls, slots, batch=2):
    """Logits of each call (tokens, s_0, steps), and the last state; a call of one token is a step."""
    state, found = model.initial_state(batch, slots), []
    for tokens, start, steps in calls:
        if tokens.shape[1] == 1:
            logits, state = model.step(tokens[:, 0], state, steps, start[:, 0])
            logits = array_of(logits)[:, None]
        else:
            logits, state = model.prefill(tokens, state, steps, start)
        found.append(array_of(logits))
    return found, state


@pytest.mark.parametrize("options", [{}, {"n_prelude": 2, "n_coda": 0}])
def test_the_reference_is_the_model(tiny, options):
    model, (tokens, start) = tiny("recurrent-depth", **options), draw(0, 2, 9)
    for steps in (1, 5):
        expected = Reference(model, slots=steps).read_tokens(tokens, start, steps)
        assert_close(model(tokens, steps=steps, initial_state=start), expected, TOLERANCE)


@settings(max_examples=25)
@given(
    pieces=st.lists(st.integers(1, 4), min_size=1, max_size=4), steps=st.integers(1, 5), spare=st.integers(0, 3),
    plain=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_cut_with_a_slot_for_each_iteration_equals_the_parallel_form(tiny, pieces, steps, spare, plain, seed):
    model, (tokens, start) = tiny("recurrent-depth", seed=seed), draw(seed, 2, sum(pieces))
    stops = np.cumsum(pieces)
    calls = [(tokens[:, a:b], start[:, a:b], steps) for a, b in zip(stops - pieces, stops, strict=True)]
    with no_grad():
        found, _ = read(without_tape(model) if plain else model, calls, steps + spare)
        assert_close(np.concatenate(found, axis=1), model(tokens, steps=steps, initial_state=start).data, TOLERANCE)


@settings(max_examples=50)
@given(
    calls=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=2, max_size=5), slots=st.integers(1, 6),
    plain=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_number_of_slots_and_of_iterations_in_each_call(tiny, calls, slots, plain, seed):
    """calls: (tokens, iterations). With slots for all of them this is "min(i, r_t - 1)"; with fewer, the last write."""
    model = tiny("recurrent-depth", seed=seed)
    drawn = [(*draw(100 * seed + i, 2, time), steps) for i, (time, steps) in enumerate(calls)]
    with no_grad():
        found, state = read(without_tape(model) if plain else model, drawn, slots)
    reference = Reference(model, slots)
    for logits, call in zip(found, drawn, strict=True):
        assert_close(logits, reference.read_tokens(*call), TOLERANCE)
    assert state.position == reference.read and len(state.core) == slots


def test_a_brief_token_shows_its_last_iteration_to_deeper_ones(tiny):
    """The rule itself, on the keys that are kept: those of min(i, r_t - 1)."""
    model, (tokens, start) = without_tape(tiny("recurrent-depth")), draw(1, 2, 2)
    state = model.initial_state(2, slots=4)
    for t, steps in enumerate((2, 4)):
        _, state = model.step(tokens[:, t], state, steps, start[:, t])
    brief = [slot[0].keys[:, 0] for slot in state.core]
    deep = [slot[0].keys[:, 1] for slot in state.core]
    assert (brief[1] == brief[2]).all() and (brief[1] == brief[3]).all() and not (brief[0] == brief[1]).any()
    assert not any((deep[i] == deep[i + 1]).any() for i in range(3))


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_gradients_through_the_tokens_of_a_call(tiny, slots):
    """A recorded call whose later iterations write over the keys of earlier ones keeps what its backward needs."""
    model, (tokens, start) = tiny("recurrent-depth"), draw(2, 2, 7)
    with no_grad():
        _, state = model.prefill(tokens[:, :3], model.initial_state(2, slots), 3, start[:, :3])
        _, state = model.step(tokens[:, 3], state, 3, start[:, 3])  # from now on there is room in the buffers
    gradcheck(lambda s: model.prefill(tokens[:, 4:], state, 4, s)[0], start[:, 4:], tol=1e-8)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 4, 6])
def test_a_state_can_be_gone_on_from_more_than_once(tiny, arrays_in, slots, plain):
    model, (tokens, start) = tiny("recurrent-depth"), draw(3, 2, 8)
    model = without_tape(model) if plain else model
    with no_grad():
        _, state = model.prefill(tokens[:, :3], model.initial_state(2, slots), 4, start[:, :3])
        _, state = model.step(tokens[:, 3], state, 4, start[:, 3])  # from now on there is room in the buffers
        before = [x.copy() for x in arrays_in(state)]
        branches = []
        for places, steps in ((slice(4, 7), 4), (slice(5, 8), 3), (slice(4, 7), 4)):
            branches.append([])
            after = state
            for t in range(places.start, places.stop):
                logits, after = model.step(tokens[:, t], after, steps, start[:, t])
                branches[-1].append(array_of(logits))
            for x, old in zip(arrays_in(state), before, strict=True):
                assert np.array_equal(x, old)
        assert np.array_equal(branches[0], branches[2]) and not np.array_equal(branches[0], branches[1])
        calls = [(tokens[:, :3], start[:, :3], 4), *((tokens[:, t : t + 1], start[:, t : t + 1], 4) for t in (3, 5))]
        two, _ = read(model, [*calls[:2], (*calls[2][:2], 3)], slots)
        assert_close(branches[1][0], two[-1][:, 0], TOLERANCE)


def test_a_state_knows_what_was_iterated_after_the_last_look(tiny, arrays_in):
    """Logits and states that were read out on the way leave nothing behind."""
    model, (tokens, start) = without_tape(tiny("recurrent-depth")), draw(4, 2, 3)
    looked, blind = (Unrolling(model, tokens, model.initial_state(2), start) for _ in range(2))
    for i in range(3):
        looked.iterate()
        blind.iterate()
        if i < 2:
            looked.logits()
        if i < 1:
            looked.state()  # with two slots that this iteration has not reached
    for ours, theirs in zip(arrays_in(looked.state()), arrays_in(blind.state()), strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(looked.logits(), blind.logits())


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_memory_is_bounded_by_the_slots_however_long_it_thinks(tiny, steps):
    model, (tokens, start) = tiny("recurrent-depth", "float32"), draw(5, 2, 9)
    for slots in (1, 3):
        _, state = read(without_tape(model), [(tokens, start.astype("float32"), steps)], slots)
        caches = [*state.prelude, *state.coda, *(cache for slot in state.core for cache in slot)]
        # T h numbers for keys and for values, in each block of prelude and coda, and in each slot of those of the core.
        assert sum(cache.nbytes for cache in caches) == 2 * (2 * 9 * 8 * 4) * (1 + 2 * slots + 1)
        assert state_bytes(state.latent) == 2 * 8 * 4
