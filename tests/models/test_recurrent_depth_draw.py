"""What the recurrent-depth transformer leaves to chance, what it reports, how it is validated; runs cut and resumed."""

import itertools
import math

import numpy as np
import pytest

from tinyrec import checkpoint
from tinyrec.cli.models import load_state
from tinyrec.evaluate import evaluate, evaluate_by_steps
from tinyrec.models import build, make_config
from tinyrec.models.recurrent_depth import Unrolling
from tinyrec.models.recurrent_depth_draw import draw_state, draw_steps
from tinyrec.models.recurrent_depth_monitor import token_correlation
from tinyrec.nn import parameters
from tinyrec.tape import Tensor
from tinyrec.train import Options, open_source, start, step_rng, streams, train

# --- the number of iterations -----------------------------------------------------------------------------------------


def config(**options):
    return make_config("recurrent-depth", **options)


def poisson(rate, n=600):
    """P(0) ... P(n - 1), rate (..., 1)."""
    j = np.arange(n)
    return np.exp(j * np.log(rate) - rate - np.concatenate([[0.0], np.cumsum(np.log(j[1:]))]))


def distribution(sampler, mean):
    """P(r = 0), P(r = 1), ... worked out exactly."""
    if sampler == "fixed":
        return np.eye(600)[mean]
    if sampler == "uniform":
        return np.concatenate([[0.0], np.full(2 * mean + 1, 1 / (2 * mean + 1)), np.zeros(600 - 2 * mean - 2)])
    if sampler == "poisson":
        p = poisson(float(mean))
    else:  # the integral over tau ~ N(log mean - 1/8, 1/4)
        x, weight = np.polynomial.hermite_e.hermegauss(80)
        rates = np.exp(math.log(mean) - 0.125 + 0.5 * x)
        p = (weight / weight.sum()) @ poisson(rates[:, None])
    return np.concatenate([[0.0], p[:-1]])  # + 1


def quantile(p, q):
    return int(np.searchsorted(np.cumsum(p), q))


@pytest.mark.parametrize(
    ("mean", "std", "mode", "quantiles"), [(32, 18.0, 23, [12, 29, 67, 94]), (8, 5.1, None, [3, 8, 19, 26])]
)
def test_the_distribution_of_the_paper(mean, std, mode, quantiles):
    """So the sum below is what the published sampler draws from: its figures are from two million draws of that."""
    p, r = distribution("lognormal-poisson", mean), np.arange(600)
    assert p.sum() == pytest.approx(1.0, abs=1e-9) and p @ r == pytest.approx(mean + 1, abs=1e-6)
    assert math.sqrt(p @ (r - mean - 1) ** 2) == pytest.approx(std, abs=0.05)
    assert [quantile(p, q) for q in (0.05, 0.5, 0.95, 0.99)] == quantiles
    assert mode is None or p.argmax() == mode
    assert mean != 32 or p[:9].sum() == pytest.approx(0.014, abs=5e-4)


@pytest.mark.parametrize("mean", [8, 32])
@pytest.mark.parametrize("sampler", ["lognormal-poisson", "poisson", "uniform", "fixed"])
def test_steps_are_drawn_from_it(sampler, mean):
    n, rng, asked = 20_000, np.random.default_rng([7, mean]), config(sampler=sampler, mean_steps=mean)
    drawn = np.array([draw_steps(rng, asked) for _ in range(n)])
    p, r = distribution(sampler, mean), np.arange(600)
    assert drawn.min() >= 1 and {type(draw_steps(rng, asked))} == {int}
    expected = mean + (sampler != "fixed")
    spread = math.sqrt(p @ (r - expected) ** 2)
    assert p @ r == pytest.approx(expected, abs=1e-6)
    assert abs(drawn.mean() - expected) <= 3.5 * spread / math.sqrt(n)
    seen = np.bincount(drawn, minlength=600)[:600] / n
    # The largest distance between the two sums is beyond this in one sample of 1000 (Kolmogorov).
    assert abs(np.cumsum(seen) - np.cumsum(p)).max() < 1.95 / math.sqrt(n)


# --- the start --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "std"), [("like-init", math.sqrt(0.4)), ("normal", 1.0), ("embed", 1 / 8), ("unit", None), ("zero", 0.0)]
)
def test_the_start_of_each_kind(kind, std):
    x = draw_state(np.random.default_rng(8), config(state_init=kind), 5, 80, np.zeros(1))
    assert x.shape == (5, 80, 64) and x.dtype == np.float64
    if kind == "zero":
        assert not x.any()
        return
    assert len(np.unique(x)) == x.size  # another one for each sequence and each token
    if kind == "unit":
        np.testing.assert_allclose(x.mean(-1), 0.0, atol=1e-15)
        np.testing.assert_allclose(x.std(-1), 1.0, rtol=1e-14)
        return
    assert x.std() == pytest.approx(0.98658 * std, rel=4 / math.sqrt(2 * x.size))  # cut off at 3
    assert 2.9 < abs(x).max() / std <= 3.0


def test_without_gamma_the_start_is_small_too():
    x = draw_state(np.random.default_rng(9), make_config("recurrent-depth", "bad-run-1"), 5, 80, np.zeros(1))
    assert x.std() == pytest.approx(0.98658 * math.sqrt(2 / (5 * 64)), rel=4 / math.sqrt(2 * x.size))


def test_one_generator_gives_one_draw_in_every_dtype():
    wide, narrow = (
        build("recurrent-depth", config(), np.random.default_rng(0), dtype).draw(np.random.default_rng(10), 2, 7)
        for dtype in ("float64", "float32")
    )
    assert wide["steps"] == narrow["steps"] and wide["grad_steps"] == narrow["grad_steps"] == 4
    assert narrow["initial_state"].dtype == np.float32 and wide["initial_state"].shape == (2, 7, 64)
    assert (wide["initial_state"].astype("float32") == narrow["initial_state"]).all()


def test_iterations_may_be_asked_for(tiny):
    model = tiny("recurrent-depth")
    assert [model.draw(np.random.default_rng(11), 2, 7, steps=r)["steps"] for r in (1, 50)] == [1, 50]


# --- figures of health ------------------------------------------------------------------------------------------------


def correlation_by_pairs(x):
    total = 0.0
    for tokens in x:
        centred = [token - token.mean() for token in tokens]
        total += sum(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in centred for b in centred)
    time = x.shape[1]
    return total / len(x) / time**2 - 1 / time


def test_token_correlation():
    rng = np.random.default_rng(12)
    x = rng.standard_normal((3, 5, 8))
    assert token_correlation(x) == pytest.approx(correlation_by_pairs(x), abs=1e-15)
    assert token_correlation(Tensor(x)) == token_correlation(x)
    same = np.repeat(x[:, :1], 5, axis=1)
    assert token_correlation(same) == pytest.approx(1 - 1 / 5, abs=1e-14)
    assert token_correlation(2.0 * same + 7.0) == pytest.approx(1 - 1 / 5, abs=1e-14)  # neither size nor mean counts
    waves = np.cos(np.pi / 8 * (np.arange(8) + 0.5) * np.arange(1, 6)[:, None])[None]  # orthogonal, and of mean 0
    assert token_correlation(waves) == pytest.approx(0.0, abs=1e-15)
    opposite = np.stack([x[0, 0], -x[0, 0]])[None]
    assert token_correlation(opposite) == pytest.approx(-0.5, abs=1e-15)
    assert token_correlation(x[:, :1]) == pytest.approx(0.0, abs=1e-15)  # no pair


def test_the_monitor(tiny):
    model, tokens = tiny("recurrent-depth"), np.random.default_rng(13).integers(0, 11, (2, 7))
    inputs = model.draw(np.random.default_rng(14), 2, 7, steps=5)
    record = model.monitor(tokens, **inputs)
    thought = Unrolling(model, tokens, start=inputs["initial_state"])
    states = []
    for _ in range(5):
        thought.iterate()
        states.append(thought.s.data)
    z, e = thought.latent().data, thought.e.data

    def length(x):
        return np.mean([math.sqrt(token @ token) for token in x.reshape(-1, 8)])

    expected = {
        "state_correlation": correlation_by_pairs(z), "output_correlation": correlation_by_pairs(thought.output().data),
        "state_norm": length(states[-1]), "distance_to_input": length(z - e),
        "residual": length(states[-1] - states[-2]) / length(states[-1]),
    }  # fmt: skip
    assert record.keys() == expected.keys()
    for key, value in expected.items():
        assert type(record[key]) is float and record[key] == pytest.approx(value, rel=1e-12, abs=1e-14), key
    assert model.monitor(tokens, **inputs | {"steps": 40})["residual"] < 0.1 * record["residual"]  # it settles


# --- validation, and runs that are resumed ----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_all_iterations_are_validated_at_once(tiny, threads):
    """Exactly what one validation for each number of iterations gives: the same noise, the same operations."""
    model, rng = tiny("recurrent-depth"), np.random.default_rng(15)
    batches = [tuple(rng.integers(0, 11, (2, rows, 7))) for rows in (3, 2)]
    batches[0][1][0, 3:] = -1
    found = evaluate_by_steps(model, batches, (4, 1, 7, 4))
    assert list(found) == [1, 4, 7]
    for r, figures in found.items():
        assert figures == evaluate(model, batches, threads=threads, steps=r)
    assert len({figures[0] for figures in found.values()}) == 3
    assert evaluate(model, batches) == evaluate(model, batches, steps=3)  # mean_steps
    assert evaluate(model, batches, steps=0) == evaluate_by_steps(model, batches, [0])[0] != evaluate(model, batches)


def test_only_this_model_takes_steps(tiny):
    with pytest.raises(ValueError, match="only a model of recurrent depth takes a number of steps"):
        evaluate(tiny("hawk"), [(np.zeros((1, 2), int), np.zeros((1, 2), int))], steps=3)


def test_the_chance_of_a_step_follows_from_seed_and_step():
    def first(rng):
        return rng.random()

    assert first(step_rng(3, 5)) == first(step_rng(3, 5))
    others = [*streams(3), *(step_rng(3, step) for step in range(7)), step_rng(4, 5)]
    assert len({first(rng) for rng in others}) == len(others)


def options(**given):
    small = dict(task="induction", steps=6, batch=3, accumulate=2, context=9, warmup=2, log_every=2, valid_every=3)
    return Options(**small | dict(threads=1) | given)


def fresh(opts):
    size = dict(vocab_size=open_source(opts).vocab_size, d_model=8, n_heads=2, d_mlp=7, mean_steps=3, grad_steps=2)
    return start("recurrent-depth", make_config("recurrent-depth", **size), opts)


def records(state, opts, stop=None):
    """Those of a run, without what depends on the clock."""
    found = itertools.islice(train(state, open_source(opts), opts), stop)
    return [{key: value for key, value in record.items() if "second" not in key} for record in found]


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_cut_run_iterates_as_often_and_from_the_same_noise(cut, tmp_path):
    opts = options()
    whole, state = fresh(opts), fresh(opts)
    expected = records(whole, opts)
    first = records(state, opts, cut)
    checkpoint.save_run(tmp_path / "x", state.model, state.optimizer, state.step, state.data_rng)
    rest = load_state(checkpoint.load_run(tmp_path / "x"), opts)
    assert first + records(rest, opts) == expected
    assert len({record["iterations"] for record in expected}) > 2
    for (name, ours), (_, theirs) in zip(parameters(rest.model), parameters(whole.model), strict=True):
        assert ours.data.tobytes() == theirs.data.tobytes(), name


def test_records_say_how_often_it_iterated_and_how_healthy_it_is():
    opts = options()
    found = records(fresh(opts), opts)
    asked = fresh(opts).model
    for record in found:
        rng = step_rng(opts.seed, record["step"] - 1)
        drawn = [asked.draw(rng, 3, 9)["steps"] for _ in range(2)]  # each of the two batches draws its own
        assert record["iterations"] == sum(drawn) / 2
    assert [r["step"] for r in found if "state_correlation" in r] == [2, 4, 6]
    assert [r["step"] for r in found if "valid_accuracy_r64" in r] == [3, 6]
    assert all(f"valid_bits_r{r}" in found[-1] for r in (1, 4, 8, 16, 64))
