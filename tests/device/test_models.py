"""Every model on a GPU, as `tinyrec train --device gpu` has it there: its losses, its text, and how often it waits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.generate import generate
from tinyrec.models import MODELS, decoder, make_config
from tinyrec.nn import parameters, without_tape
from tinyrec.train import Options, open_source, start, train

SIZES = {
    "griffin": dict(d_rnn=12, n_heads=2, gate_blocks=3, mlp_expansion=2, window=3, n_layers=3),
    "huginn": dict(n_heads=2, d_mlp=7, mean_steps=3, grad_steps=2),
    "rwkv4": dict(ffn_expansion=2),
    "mamba": dict(d_state=3, dt_rank=2),
    "ttt": dict(n_heads=2, mini_batch=4, d_mlp=5, conv_width=3),
    "baseline": dict(mlp_expansion=2, window=3, max_length=64, rank=4),
}
VARIANTS = [(name, {}) for name in MODELS]
VARIANTS += [("aft", {"kind": "full"}), ("aft", {"kind": "simple"}), ("qrnn", {"pooling": "ifo"})]
VARIANTS += [("ttt-linear", {"backbone": "transformer"}), ("recurrent-depth", {"recompute": True})]
VARIANTS += [("rwkv", {"l2wrap": 1e-4, "layerwise_lr": True})]
VARIANTS = [pytest.param(name, options, id=" ".join([name, *map(str, options.values())])) for name, options in VARIANTS]
STEPS, LAYERS = 3, 2


def options(device: str, **given) -> Options:
    """Warm-up, clipping, two batches a step, and validation at the end."""
    small = dict(task="copy:items=3,vocab=5", steps=STEPS, batch=2, accumulate=2, context=10, log_every=2)
    return Options(**small | dict(warmup=2, clip=0.3, device=device) | given)


def fresh(name: str, opts: Options, given: dict):
    sizes = {"d_model": 16, "n_layers": LAYERS, **SIZES[MODELS[name].family]}
    known = {field.name for field in dataclasses.fields(MODELS[name].config)}
    sizes = {key: value for key, value in sizes.items() if key in known}
    vocabulary = open_source(opts).vocab_size
    return start(name, make_config(name, **{"vocab_size": vocabulary, **sizes, **given}), opts)


def trained(name: str, device: str, given: dict, **more):
    """The state after STEPS steps, and what was recorded."""
    opts = options(device, **more)
    state = fresh(name, opts, given)
    return state, list(train(state, open_source(opts), opts))


def assert_same_run(a: list[dict], b: list[dict], rtol: float = 2e-5) -> None:
    """Float32, and gradients that are summed in another order: near, but not bit for bit."""
    clocks = {"seconds", "tokens_per_second"}
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        assert {k: v for k, v in x.items() if k not in clocks} == pytest.approx(
            {k: v for k, v in y.items() if k not in clocks}, rel=rtol, abs=1e-5
        )


@pytest.mark.parametrize(("name", "given"), VARIANTS)
def test_training_takes_the_same_steps(cupy, name, given):
    there, records = trained(name, "gpu", given)
    here, expected = trained(name, "cpu", given, threads=1)
    assert_same_run(records, expected)
    pairs = list(zip(parameters(there.model), parameters(here.model), strict=True))
    largest = max(abs(p.grad).max() for _, (_, p) in pairs)  # of a gradient that should be 0 there is only rounding
    for (name, p), (_, q) in pairs:
        assert isinstance(p.data, cupy.ndarray) and isinstance(p.grad, cupy.ndarray) and p.grad.dtype == "float32"
        assert abs(p.grad.get() - q.grad).max() <= 1e-4 * largest, name


@pytest.mark.parametrize(("name", "given"), VARIANTS)
def test_a_step_waits_once(double, tables, name, given):
    opts = options("gpu", steps=4, log_every=100, accumulate=1, valid_every=100)
    records = train(fresh(name, opts, given), open_source(opts), opts)
    next(records)
    tables.waits.clear()
    tables.copies.clear()
    next(records)
    assert len(tables.waits) == 1 and tables.waits[0].startswith("tolist in backend.py"), tables.waits
    copied = 3 if name == "recurrent-depth" else 2  # tokens, targets and perhaps the states s_0
    assert len(tables.copies) <= copied, tables.copies


@pytest.mark.parametrize(("name", "given"), VARIANTS)
def test_generation_writes_the_same_text(cupy, name, given):
    prompt = np.array([3, 1, 4, 1, 5])
    states = [fresh(name, options(device), given) for device in ("gpu", "cpu")]
    texts = [list(generate(s.model, prompt, 20, temperature=1.0, rng=np.random.default_rng(5))) for s in states]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("name", "given"), VARIANTS)
def test_a_decoder_is_made_with_few_waits(double, tables, name, given):
    model = fresh(name, options("gpu"), given).model
    tables.waits.clear()
    decoder(model)
    assert len(tables.waits) <= LAYERS, tables.waits


@pytest.mark.parametrize(("name", "given"), VARIANTS)
def test_a_token_waits_once(double, tables, name, given):
    """To be chosen, on the host; then it is copied back."""
    tokens = generate(fresh(name, options("gpu"), given).model, np.array([3, 1, 4]), 5, temperature=0.0)
    next(tokens), next(tokens)
    tables.waits.clear()
    tables.copies.clear()
    next(tokens)
    assert len(tables.waits) == len(tables.copies) == 1, (tables.waits, tables.copies)


@pytest.mark.parametrize("name", ["hawk", "griffin", "transformer"])
@pytest.mark.parametrize("batch", [1, 3])
def test_documents_that_end_inside_of_a_sequence(cupy, placed, name, batch):
    """Prompt and tokens of packed documents, where NumPy looks at the positions and a GPU is not asked."""
    rng = np.random.default_rng(2)
    tokens, more = rng.integers(0, 5, (batch, 9)), rng.integers(0, 5, (4, batch))
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 1], [5, 6, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7, 0]])
    positions = positions[:batch]
    found = []
    for device, move in (("gpu", placed), ("cpu", lambda x: x)):
        model = without_tape(fresh(name, options(device), {}).model)
        read, state = model.prefill(move(tokens), model.initial_state(batch), positions=move(positions))
        logits, steps = [read], (decoder(model).step, model.step)
        for step in steps:
            after = state
            for one in more:
                out, after = step(move(one), after)
                logits.append(out)
        found.append(logits)
    for x, y in zip(*found, strict=True):
        assert isinstance(x, cupy.ndarray)
        assert_close(x, y, 1e-5)
