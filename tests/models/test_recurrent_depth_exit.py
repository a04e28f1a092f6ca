"""When to stop thinking: each criterion against its formula, and the decoder that stops, starts warm or from noise."""

import math

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.generate import generate
from tinyrec.models.recurrent_depth import Unrolling
from tinyrec.models.recurrent_depth_decode import DepthDecoder
from tinyrec.models.recurrent_depth_draw import draw_state
from tinyrec.models.recurrent_depth_exit import THRESHOLDS, ExitWatch
from tinyrec.nn import without_tape

TOLERANCE = 1e-12  # the same formulas in float64, in another order

# --- criteria ---------------------------------------------------------------------------------------------------------


def draw(seed, batch, time):
    """tokens (B, T) and s_0 (B, T, h)."""
    rng = np.random.default_rng([6, seed])
    return rng.integers(0, 11, (batch, time)), 0.6 * rng.standard_normal((batch, time, 8))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cut(p):
    """What is below a tenth of the largest counts as 1 / V."""
    q = np.array([1 / len(p) if a < 0.1 * max(p) else a for a in p])
    return q / q.sum()


def entropy(p):
    return -sum(a * math.log(a) for a in p)


def by_hand(criterion, states, logits):
    """The values for one token: states s_0 ... s_r (h,), logits after 1 ... r iterations (V,)."""
    predictions, values, same = [softmax(x) for x in logits], [], 0
    for i in range(1, len(states)):
        s, old = states[i], states[i - 1]
        p, before = predictions[i - 1], predictions[i - 2] if i > 1 else np.full(len(logits[0]), 1 / len(logits[0]))
        same = same + 1 if i > 1 and p.argmax() == before.argmax() else 0
        values.append({
            "kl": lambda p=p, q=before: kl(q, p),
            "minp-kl": lambda p=p, q=before: kl(cut(q), cut(p)),
            "entropy-diff": lambda p=p, q=before, i=i: abs(entropy(p) - (entropy(q) if i > 1 else 100.0)),
            "argmax-stability": lambda same=same: -same,
            "latent-diff": lambda s=s, old=old: math.dist(s, old) / math.hypot(*s),
            "cosine": lambda s=s, old=old: 1 - s @ old / (math.hypot(*s) * math.hypot(*old) + 1e-8),
        }[criterion]())  # fmt: skip
    return values


@pytest.mark.parametrize("zero_start", [False, True])
@pytest.mark.parametrize("criterion", THRESHOLDS)
def test_each_criterion_is_its_formula(tiny, criterion, zero_start):
    model, (tokens, start) = tiny("recurrent-depth"), draw(0, 2, 5)
    if zero_start:
        start = 0.0 * start
    thought = Unrolling(without_tape(model), tokens, start=start)
    watch = ExitWatch(criterion, None, thought)
    states, logits, found, done = [thought.s], [], [], []
    for _ in range(8):
        thought.iterate()
        found.append(watch.look())
        states.append(thought.s)
        logits.append(model(tokens, steps=thought.steps, initial_state=start).data)
        assert found[-1].shape == (2, 5)
    for b, t in np.ndindex(2, 5):
        values = by_hand(criterion, [s[b, t] for s in states], [x[b, t] for x in logits])
        # Differences of numbers of order 1, in float64.
        np.testing.assert_allclose([x[b, t] for x in found], values, rtol=1e-11, atol=1e-14)
    again = Unrolling(without_tape(model), tokens, start=start)
    middle = float(np.median(found))
    watch = ExitWatch(criterion, middle, again)
    for value in found:
        again.iterate()
        done.append(watch.done())
        assert (done[-1] == (value <= middle)).all()
    assert 0 < np.mean(done) < 1


class Scripted:
    """A thought whose likeliest tokens (B, T) are given for each iteration."""

    def __init__(self, *likeliest):
        self.s, self.script = np.zeros((1, 1, 1)), [np.eye(5)[np.array(tokens)] for tokens in likeliest]

    def logits(self):
        return self.script.pop(0)


def test_stability_counts_the_iterations_since_the_last_change():
    changes = [[2, 0]], [[2, 0]], [[1, 0]], [[1, 0]], [[1, 0]], [[2, 0]]
    watch = ExitWatch("argmax-stability", None, Scripted(*changes))
    assert [watch.look().tolist() for _ in changes] == [
        [[0, 0]], [[-1, -1]], [[0, -2]], [[-1, -3]], [[-2, -4]], [[0, -5]],
    ]  # fmt: skip
    watch = ExitWatch("argmax-stability", None, Scripted(*changes))
    assert [watch.done().tolist() for _ in changes] == [[[False, False]]] * 5 + [[[False, True]]]  # five times the same


def test_an_unknown_criterion_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown exit criterion 'kll'; did you mean 'kl'\?"):
        ExitWatch("kll", None, Scripted())


# --- the decoder ------------------------------------------------------------------------------------------------------


def decode(reader, tokens, prompt):
    """Logits of the last token of the prompt and of those that follow, (n, B, V), and the last state."""
    logits, state = reader.prefill(tokens[:, :prompt], reader.initial_state(len(tokens)))
    found = [logits[:, -1]]
    for t in range(prompt, tokens.shape[1]):
        logits, state = reader.step(tokens[:, t], state)
        found.append(logits)
    return np.array(found), state


@pytest.mark.parametrize("slots", [None, 2])
@pytest.mark.parametrize("criterion", [*THRESHOLDS, None])
def test_an_exit_leaves_what_so_many_iterations_give(tiny, arrays_in, criterion, slots):
    """`taken` says how many; with as many asked for from the start, logits and caches are the same."""
    model, (tokens, _) = tiny("recurrent-depth"), draw(1, 1, 12)
    threshold = {"argmax-stability": -1.0, None: None}.get(criterion, 0.05)
    reader = DepthDecoder(model, 9, criterion, threshold, slots)
    logits, state = decode(reader, tokens, 4)
    assert len(reader.taken) == 9 and max(reader.taken) <= 9
    if criterion is None:
        assert reader.taken == [9] * 9
    else:
        assert len(set(reader.taken)) > 1 and sum(reader.taken) < 81
    plain, asked = without_tape(model), reader.taken
    first, again = plain.prefill(tokens[:, :4], plain.initial_state(1, slots or 9), asked[0])
    expected = [first[:, -1]]
    for t, steps in zip(range(4, 12), asked[1:], strict=True):
        one, again = plain.step(tokens[:, t], again, steps)
        expected.append(one)
    assert_close(logits, np.array(expected), TOLERANCE)
    for ours, theirs in zip(arrays_in(state), arrays_in(again), strict=True):
        assert_close(ours, theirs, TOLERANCE)


def test_it_stops_when_all_sequences_may(tiny):
    model, (tokens, _) = tiny("recurrent-depth"), draw(2, 3, 6)
    thought = Unrolling(without_tape(model), tokens)
    watch, values = ExitWatch("latent-diff", None, thought), []
    for _ in range(12):
        thought.iterate()
        values.append(watch.look()[:, -1])
    for threshold in np.quantile(values, [0.1, 0.3, 0.5]):
        reader = DepthDecoder(model, 12, "latent-diff", threshold)
        reader.prefill(tokens, reader.initial_state(3))
        assert reader.taken == [1 + int(np.argmax([(value <= threshold).all() for value in values]))]


@pytest.mark.parametrize("criterion", ["kl", "argmax-stability", "cosine"])
def test_the_two_ends_of_the_threshold(tiny, criterion):
    model, (tokens, _) = tiny("recurrent-depth"), draw(3, 2, 6)
    for threshold, taken in ((-math.inf, 7), (math.inf, 1)):
        reader = DepthDecoder(model, 7, criterion, threshold)
        logits, _ = decode(reader, tokens, 3)
        assert reader.taken == [taken] * 4
        if threshold < 0:  # with a slot for each of its iterations it is the model itself
            assert_close(logits[-1], model(tokens, steps=7).data[:, -1], TOLERANCE)


def test_the_usual_numbers_are_those_of_the_config(tiny):
    reader = DepthDecoder(tiny("recurrent-depth"))
    assert (reader.steps, reader.slots) == (3, 3) and len(reader.initial_state(2).core) == 3
    assert DepthDecoder(tiny("recurrent-depth"), 5).slots == 5
    assert (DepthDecoder(tiny("recurrent-depth"), 5, slots=2).steps, len(reader.taken)) == (5, 0)


def test_a_warm_start_is_the_norm_of_the_last_state(tiny):
    model, (tokens, _) = tiny("recurrent-depth"), draw(4, 2, 6)
    reader, plain = DepthDecoder(model, 4, warm_start=True, rng=np.random.default_rng(7)), without_tape(model)
    logits, state = reader.prefill(tokens[:, :3], reader.initial_state(2))
    noise = draw_state(np.random.default_rng(7), model.config, 2, 3, plain.embedding)  # the prompt starts from noise
    thought = Unrolling(plain, tokens[:, :3], plain.initial_state(2, 4), noise)
    for _ in range(4):
        thought.iterate()
    assert_close(logits, thought.logits(), TOLERANCE)
    mine = thought.state()
    for t in range(3, 6):
        latent = thought.s[:, -1:] / np.sqrt((thought.s[:, -1:] ** 2).mean(-1, keepdims=True) + 1e-6)
        assert_close(state.latent, latent[:, 0] * model.norm.gain.data, TOLERANCE)
        logits, state = reader.step(tokens[:, t], state)
        thought = Unrolling(plain, tokens[:, t : t + 1], mine, plain.norm(thought.s[:, -1:]))
        for _ in range(4):
            thought.iterate()
        assert_close(logits, thought.logits()[:, 0], TOLERANCE)
        mine = thought.state()
    first = DepthDecoder(model, 4, warm_start=True, rng=np.random.default_rng(8))  # nothing came before: noise
    noise = draw_state(np.random.default_rng(8), model.config, 2, 1, plain.embedding)
    expected = model(tokens[:, :1], steps=4, initial_state=noise).data[:, 0]
    assert_close(first.step(tokens[:, 0], first.initial_state(2))[0], expected, TOLERANCE)


def test_the_generator_decides_the_noise(tiny):
    model, (tokens, _) = tiny("recurrent-depth"), draw(5, 2, 6)

    def logits(seed):
        rng = None if seed is None else np.random.default_rng(seed)
        return decode(DepthDecoder(model, 2, rng=rng), tokens, 3)[0]

    assert np.array_equal(logits(0), logits(0)) and not np.array_equal(logits(0), logits(1))
    rng = np.random.default_rng(0)
    start = [draw_state(rng, model.config, 2, time, model.embedding.data) for time in (3, 1, 1, 1)]
    whole = model(tokens, steps=2, initial_state=np.concatenate(start, axis=1)).data
    assert_close(logits(0), whole[:, 2:].transpose(1, 0, 2), TOLERANCE)
    assert_close(logits(None), model(tokens, steps=2).data[:, 2:].transpose(1, 0, 2), TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"slots": 2}, {"warm_start": True}])
def test_a_batch_is_read_as_each_of_its_sequences(tiny, options):
    model, (tokens, _) = tiny("recurrent-depth"), draw(6, 3, 7)
    together, _ = decode(DepthDecoder(model, 5, **options), tokens, 3)
    for b in range(3):
        alone, _ = decode(DepthDecoder(model, 5, **options), tokens[b : b + 1], 3)
        assert_close(together[:, b : b + 1], alone, TOLERANCE)


def test_generate_reads_with_it(tiny):
    model = tiny("recurrent-depth")
    expected = list(generate(model, [1, 2, 3], 12, temperature=0))
    assert list(generate(model, [1, 2, 3], 12, temperature=0, reader=DepthDecoder(model))) == expected
    reader = DepthDecoder(model, 30, "kl", 0.05)
    assert len(list(generate(model, [1, 2, 3], 12, temperature=0, reader=reader))) == 12
    assert len(reader.taken) == 12 and max(reader.taken) < 30  # the prompt, and eleven tokens that are read again


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps and slots must be at least 1, got 0 and 0"),
        ({"slots": 0}, "steps and slots must be at least 1, got 3 and 0"),
        ({"exit": "cosin"}, "unknown exit criterion 'cosin'; did you mean 'cosine'"),
        ({"threshold": 0.1}, "a threshold, 0.1, needs an exit criterion: one of kl, minp-kl, entropy-diff, "),
    ],
)
def test_bad_options_are_refused_at_once(tiny, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        DepthDecoder(tiny("recurrent-depth"), **options)
