"""The recurrent-depth transformer: its parts, how a fresh model starts, its presets and sizes.

The official numbers are in tests/interop, truncated gradients in test_recurrent_depth_gradient.py.
"""

import math

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.models import build, make_config
from tinyrec.models.recurrent_depth import RecurrentDepth, Unrolling
from tinyrec.models.recurrent_depth_config import PRESETS, RecurrentDepthConfig
from tinyrec.nn import count, parameters
from tinyrec.ops import cross_entropy
from tinyrec.tape import Tensor, no_grad

SHAPE = dict(n_prelude=2, n_core=3, n_coda=1, mean_steps=5)  # l = 2 + 5 * 3 + 1 = 18
TRUNCATED = 0.98658  # the standard deviation of N(0, 1) without what lies beyond 3


def fresh(dtype="float64", preset="tiny", **options):
    return build("recurrent-depth", make_config("recurrent-depth", preset, **options), np.random.default_rng(0), dtype)


def draw_tokens(seed, batch, time, vocab=256):
    return np.random.default_rng([3, seed]).integers(0, vocab, (batch, time))


# --- the start --------------------------------------------------------------------------------------------------------


def nominal(name, h, layers):
    """The standard deviation that the paper gives to a matrix: those that write into the stream start smaller."""
    writes = name.endswith(("attention.out.w", "mlp.down.w"))
    return (1 / (5 * h * layers)) ** 0.5 if writes else (2 / (5 * h)) ** 0.5


def test_matrices_start_as_wide_as_the_paper_says_and_are_cut_off_at_three_deviations():
    seen = set()
    for name, tensor in parameters(fresh(**SHAPE)):
        if tensor.ndim < 2:
            continue
        seen.add(name.split(".", 2)[-1])
        w = tensor.data / nominal(name, h=64, layers=18)
        # 4 standard errors of a sample of this size; all six blocks and all kinds of matrices have to pass.
        assert w.std() == pytest.approx(TRUNCATED, rel=4 / math.sqrt(2 * w.size)), name
        assert abs(w.mean()) < 4 / math.sqrt(w.size), name
        assert 2.8 < abs(w).max() <= 3.0, name  # 4096 numbers without one in the last fifth: one time in 20 000
    qkv = {f"attention.{x}.w" for x in ("q", "k", "v", "out")}
    assert seen == {"embedding", "adapter_s", "adapter_e", "mlp.gate.w", "mlp.up.w", "mlp.down.w", *qkv}


def test_gains_start_at_one_and_biases_at_zero():
    vectors = {name: tensor.data for name, tensor in parameters(fresh(**SHAPE)) if tensor.ndim == 1}
    assert {name.rpartition(".")[2] for name in vectors} == {"gain", "b"}
    for name, x in vectors.items():
        assert (x == (1.0 if name.endswith("gain") else 0.0)).all(), name
    assert sum(name.endswith("gain") for name in vectors) == 4 * 6 + 1  # four in a block, and the last norm
    assert sum(name.endswith(("attention.q.b", "attention.k.b")) for name in vectors) == 2 * 6
    assert sum(name.endswith("b") for name in vectors) == 2 * 6  # and no others


def test_bad_run_1_starts_with_orthogonal_matrices_of_about_that_size():
    model = fresh(preset="bad-run-1", **SHAPE)
    assert model.adapter_s is None and model.adapter_e is None
    for name, tensor in parameters(model):
        w = tensor.data
        if name == "embedding":  # a table, no map
            assert w.std() == pytest.approx(TRUNCATED * nominal(name, 64, 18), rel=4 / math.sqrt(2 * w.size))
            continue
        short = w if w.shape[0] <= w.shape[1] else w.T  # no vectors: bad run 1 has neither gains nor biases
        gain = nominal(name, 64, 18) * max(w.shape) ** 0.5
        assert_close(short @ short.T, gain**2 * np.eye(len(short)), 1e-14, name)


@pytest.mark.parametrize("preset", ["main", "bad-run-2"])
def test_the_first_loss_is_a_little_more_than_that_of_guessing(preset):
    """Logits start with variance 2/5, as y has RMS 1 and E the variance 2 / (5 h): half of it comes on top of ln V.

    (In bad run 1 a token finds its own embedding again, because what is read is added in each iteration.)
    """
    model, tokens = fresh(preset=preset), draw_tokens(0, 8, 64)
    start = model.draw(np.random.default_rng(1), 8, 64)["initial_state"]
    with no_grad():
        logits = model(tokens, initial_state=start)
    assert logits.data.std() == pytest.approx(TRUNCATED * math.sqrt(0.4), rel=0.05)
    # The mean of 512 targets: 4 standard errors of 0.63 / sqrt(512).
    assert cross_entropy(logits, draw_tokens(1, 8, 64)).item() == pytest.approx(math.log(256) + 0.2, abs=0.11)


# --- the parts --------------------------------------------------------------------------------------------------------


def rms(x):
    return np.sqrt((x * x).mean(-1))


@no_grad()
def test_the_norms_on_the_sums_keep_the_state_at_rms_1():
    tokens, big = draw_tokens(2, 2, 7), 100.0 * np.random.default_rng(2).standard_normal((2, 7, 64))
    for start in (None, big):
        thought = Unrolling(fresh(n_core=2), tokens, start=start)
        assert_close(rms(thought.e.data), np.ones((2, 7)), 1e-6)  # eps = 1e-6 beside a mean square of order 1
        for _ in range(40):
            thought.iterate()
            assert_close(rms(thought.s.data), np.ones((2, 7)), 1e-6)
    loose = Unrolling(fresh(preset="bad-run-2"), tokens, start=big)
    loose.iterate()
    assert rms(loose.s.data).min() > 5.0  # nothing but the adapter holds it


def test_gamma_multiplies_what_is_read_and_nothing_else():
    tokens, model = draw_tokens(3, 2, 5), fresh(n_prelude=0, n_coda=0)
    e, _ = model.embed(tokens, None, None)
    assert_close(e, 8.0 * model.embedding.data[tokens], 1e-15)
    assert_close(model.head(e), e.data @ model.embedding.data.T, 1e-14)
    unscaled = fresh(preset="bad-run-1", n_prelude=0)
    assert (unscaled.embed(tokens, None, None)[0].data == unscaled.embedding.data[tokens]).all()


def test_the_last_norm_is_used_twice_and_not_between_iterations():
    model, tokens = fresh(n_coda=0), draw_tokens(4, 2, 5)
    model.norm.gain.data[:] = np.random.default_rng(4).uniform(0.5, 2.0, 64)
    thought = Unrolling(model, tokens)
    for _ in range(3):
        thought.iterate()
    z = thought.s.data / rms(thought.s.data)[..., None] * model.norm.gain.data
    y = z / rms(z)[..., None] * model.norm.gain.data
    assert_close(model(tokens, steps=3), y @ model.embedding.data.T, 2e-6)  # eps, twice
    twin = Unrolling(fresh(n_coda=0), tokens)
    for _ in range(3):
        twin.iterate()
    assert (twin.s.data == thought.s.data).all()  # the iterations know nothing of this norm


def test_in_bad_run_1_what_is_read_is_added():
    model, (s, e) = fresh(preset="bad-run-1"), np.random.default_rng(5).standard_normal((2, 2, 5, 64))
    rotation = Unrolling(model, draw_tokens(5, 2, 5)).rotation
    both, _ = model.iterate(Tensor(s), model.inject(Tensor(e)), rotation, None)
    block, _ = model.core[0](Tensor(s + e), rotation, None)
    assert (both.data == block.data).all()


def test_every_iteration_is_the_same_and_zero_is_the_usual_start():
    model, tokens = fresh(n_core=2), draw_tokens(6, 2, 5)
    thought = Unrolling(model, tokens)
    for _ in range(5):
        thought.iterate()
    again = Unrolling(model, tokens, start=thought.s)
    for _ in range(3):
        thought.iterate()
        again.iterate()
    assert (thought.s.data == again.s.data).all()
    assert (model(tokens, steps=8).data == thought.logits().data).all()
    assert (model(tokens).data == model(tokens, steps=8, initial_state=np.zeros((2, 5, 64))).data).all()


# --- sizes and presets ------------------------------------------------------------------------------------------------


def test_the_parameters_of_the_published_model(shaped_random, monkeypatch):
    monkeypatch.setattr("tinyrec.nn.init.truncated", lambda rng, shape: rng.standard_normal(shape))
    model = RecurrentDepth(make_config("recurrent-depth", "huginn-0125"), shaped_random)
    assert count(model) == 3_564_976_800
    assert model.config.matrices == pytest.approx(count(model), rel=1e-4)  # what `tinyrec info` estimates by
    assert count(model) + model.embedding.size == 3_911_006_880  # with a head of its own
    assert count([model.prelude, model.coda]) == count(model.core) == 1_581_592_320
    assert count([model.adapter_s, model.adapter_e]) == 55_756_800
    assert (model.embedding.size, count(model.norm)) == (346_030_080, 5280)


@pytest.mark.parametrize(("preset", "options"), [("tiny", SHAPE), ("tiny", {"qk_bias": False}), ("bad-run-2", {})])
def test_parameter_counts(preset, options):
    model = fresh(preset=preset, **options)
    c = model.config
    block = 4 * c.d_model**2 + 3 * c.d_model * c.d_mlp + (4 if c.block == "sandwich" else 2) * c.d_model
    block += 2 * c.d_model * c.qk_bias
    assert count(model) == c.vocab_size * c.d_model + 2 * c.d_model**2 + c.d_model + c.n_layers * block
    assert c.matrices == sum(p.size for _, p in parameters(model) if p.ndim == 2)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset):
    config = make_config("recurrent-depth", preset)
    assert config == RecurrentDepthConfig(**PRESETS[preset])
    assert config.depth == config.n_prelude + config.mean_steps * config.n_core + config.n_coda


def test_the_presets_of_the_runs():
    names = ("main", "bad-run-1", "bad-run-2", "fixed-depth")
    main, bad1, bad2, fixed = (make_config("recurrent-depth", name) for name in names)
    assert (main.gamma, bad1.gamma, bad2.gamma) == (8.0, 1.0, 8.0) and main.std == bad1.std == (2 / 320) ** 0.5
    kinds = [(c.block, c.norm_gain, c.injection, c.qk_bias, c.weight_init) for c in (main, bad1, bad2)]
    assert kinds == [
        ("sandwich", True, "adapter", True, "normal"),
        ("sandwich", False, "add", False, "orthogonal"),
        ("pre-norm", True, "adapter", True, "normal"),
    ]
    assert (fixed.mean_steps, fixed.grad_steps, fixed.sampler, fixed.depth) == (1, 1, "fixed", 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_core": 0}, "n_core must be at least 1, got 0"),
        ({"mean_steps": 0}, "mean_steps must be at least 1, got 0"),
        ({"n_coda": -1}, "n_prelude and n_coda must be 0 or more, got 1 and -1"),
        ({"n_heads": 3}, "d_model 64 must be n_heads 3 heads of an even width"),
        ({"d_model": 12}, "d_model 12 must be n_heads 4 heads of an even width"),
        ({"eps": 0.0}, "eps and rope_base must be positive, got 0.0 and 50000.0"),
        ({"block": "swin"}, "block must be 'sandwich' or 'pre-norm', got 'swin'"),
        ({"sampler": "geometric"}, "sampler must be 'lognormal-poisson' or .* or 'fixed', got 'geometric'"),
        ({"state_init": "one"}, "state_init must be 'like-init' or .*, got 'one'"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_config("recurrent-depth", **options)


def test_bad_calls_are_refused():
    model, tokens = fresh(), draw_tokens(7, 2, 5)
    with pytest.raises(ValueError, match=r"initial_state must be \(2, 5, 64\) for tokens \(2, 5\), got \(2, 1, 64\)"):
        model(tokens, initial_state=np.zeros((2, 1, 64)))
    for steps, grad_steps in ((4, -1), (-1, None)):
        with pytest.raises(ValueError, match=f"steps and grad_steps must be 0 or more, got {steps} and {grad_steps}"):
            model(tokens, steps=steps, grad_steps=grad_steps)
    thought = Unrolling(model, tokens)
    thought.iterate()
    with pytest.raises(ValueError, match="there is a state only after one that was given to go on from"):
        thought.state()
    with pytest.raises(ValueError, match="and at least one iteration"):
        model.prefill(tokens, model.initial_state(2), steps=0)
