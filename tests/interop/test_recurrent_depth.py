"""The recurrent-depth transformer against the official code: states, logits, gradients whole and truncated, generation.

The golden file is a float64 run of the published model file (seal-rg/recurrent-pretraining), on weights away from
their start. Names and configs are in test_recurrent_depth_names.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tinyrec import ops
from tinyrec.check import assert_close
from tinyrec.interop import from_official, to_official
from tinyrec.models import build, make_config
from tinyrec.models.recurrent_depth import Unrolling
from tinyrec.models.recurrent_depth_decode import DepthDecoder
from tinyrec.models.recurrent_depth_exit import ExitWatch
from tinyrec.nn import without_tape
from tinyrec.tape import Tensor, no_grad
from tinyrec.walk import grad

GOLDEN = Path(__file__).parents[1] / "golden" / "recurrent_depth.npz"
TOLERANCE = 1e-10  # of the largest entry; both sides compute in float64, and differ by 1e-14 at most
FLOAT32 = 2e-5  # some hundred roundings of 6e-8 in a row


@pytest.fixture(scope="module")
def z():
    with np.load(GOLDEN, allow_pickle=False) as z:
        return {key: z[key] for key in z.files}


def official(z, dtype="float64"):
    weights = {key[2:]: x.astype(dtype) for key, x in z.items() if key.startswith("w/")}
    return from_official("huginn", weights, json.loads(str(z["config_json"])))


# --- the whole model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", TOLERANCE), ("float32", FLOAT32)])
def test_logits_after_any_number_of_iterations(z, dtype, tolerance):
    model = official(z, dtype)
    for r in (1, 2, 3, 4, 8, 16):
        logits = model(z["ids"], steps=r, initial_state=z["s0"].astype(dtype))
        assert logits.dtype == dtype
        assert_close(logits, z[f"logits/r{r}"], tolerance, f"{r} iterations")


@no_grad()
def test_every_state_on_the_way(z):
    thought = Unrolling(official(z), z["ids"], start=z["s0"])
    assert_close(thought.e, z["e"], TOLERANCE)
    for r in range(17):
        assert_close(thought.s, z["states"][r], TOLERANCE, f"s_{r}")
        if f"latent/r{r}" in z:
            assert_close(thought.latent(), z[f"latent/r{r}"], TOLERANCE, f"norm(s_{r})")
        thought.iterate()


def loss_and_gradients(model, z, steps, grad_steps, start):
    logits = model(z["ids"], steps=steps, grad_steps=grad_steps, initial_state=start)
    loss = ops.cross_entropy(logits, z["labels"], ignore_index=-100)
    loss.backward()
    return loss, to_official(model, "grad")


@pytest.mark.parametrize(("n", "k"), [(0, 1), (0, 4), (3, 2), (5, 3), (4, 0)])
def test_the_loss_and_every_truncated_gradient(z, n, k):
    model, start, call = official(z), Tensor(z["s0"], requires_grad=True), f"train/{n}_{k}"
    loss, ours = loss_and_gradients(model, z, n + k, k, start)
    assert_close(loss, z[f"{call}/loss"], TOLERANCE)
    assert len(ours) == 39 and {f"{call}/g/{name}" for name in ours} == {key for key in z if f"{call}/g/" in key}
    for name, g in ours.items():
        assert_close(g, z[f"{call}/g/{name}"], TOLERANCE, name)
    silent = {str(name) for name in z[f"{call}/none_grads"] if name}
    assert {name for name, g in ours.items() if not g.any()} == silent
    assert len(silent) == (28 if k == 0 else 0)  # of prelude, adapter and core, if nothing is recorded there
    if n:
        assert start.grad is None
    else:
        assert_close(start.grad, z[f"{call}/g_s0"], TOLERANCE)


@pytest.mark.parametrize(("n", "k"), [(3, 2), (5, 3)])
def test_every_gradient_through_all_iterations(z, n, k):
    _, ours = loss_and_gradients(official(z), z, n + k, None, z["s0"])
    for name, g in ours.items():
        assert_close(g, z[f"train_nodetach/{n}_{k}/g/{name}"], TOLERANCE, name)


# --- its parts --------------------------------------------------------------------------------------------------------


def rotation():
    return ops.rope_tables(np.arange(11)[None], 8, 50000.0, "float64")


@pytest.mark.parametrize(
    ("part", "names"), [("attn", ["Wqkv.weight", "qk_bias", "proj.weight"]), ("mlp", ["fc.weight", "proj.weight"])]
)
def test_attention_and_mlp_and_their_gradients(z, part, names):
    model = official(z)
    block, x = model.core[0], Tensor(z[f"{part}/in0"], requires_grad=True)
    y = block.mlp(x) if part == "mlp" else block.attention(x, rotation(), None)[0]
    assert_close(y, z[f"{part}/out"], TOLERANCE)
    y.backward(z[f"{part}/cot"])
    assert_close(x.grad, z[f"{part}/g0"], TOLERANCE)
    ours = to_official(model, "grad")
    for i, name in enumerate(names, start=1):
        assert_close(ours[f"transformer.core_block.0.{part}.{name}"], z[f"{part}/g{i}"], TOLERANCE, name)


def test_a_sandwich_block_and_its_gradient(z):
    x = Tensor(z["block/in0"], requires_grad=True)
    y, _ = official(z).core[0](x, rotation(), None)
    assert_close(y, z["block/out"], TOLERANCE)
    assert_close(grad(y, [x], z["block/cot"])[0], z["block/g0"], TOLERANCE)


def test_the_norm_and_its_gradients(z):
    norm, x = official(z).core[0].norm_1, Tensor(z["rms/in0"], requires_grad=True)
    y = norm(x)
    assert_close(y, z["rms/out"], TOLERANCE)
    for i, g in enumerate(grad(y, [x, norm.gain], z["rms/cot"])):
        assert_close(g, z[f"rms/g{i}"], TOLERANCE)


def test_the_rotation_and_its_gradient(z):
    """The official one turns q and k at once; here both are the same array."""
    x = Tensor(z["rope/in0"], requires_grad=True)
    q, k = (ops.rope(x, *rotation(), pairing="adjacent") for _ in range(2))
    both = ops.concat(q, k, axis=2)
    assert_close(both, z["rope/out"], TOLERANCE)
    assert_close(grad(both, [x], z["rope/cot"])[0], z["rope/g0"], TOLERANCE)
    cos, sin = rotation()
    assert_close(np.stack([cos, sin], -1)[:, :, None], z["buf/freqs_cis"][:, :11], TOLERANCE)


# --- generation -------------------------------------------------------------------------------------------------------


def decode(reader, tokens, prompt=5):
    """Logits (1, n, V): of the last token of the prompt, then of each token but the last; and the last state."""
    logits, state = reader.prefill(tokens[:, :prompt], reader.initial_state(1))
    found = [logits[:, -1]]
    for t in range(prompt, tokens.shape[1] - 1):
        logits, state = reader.step(tokens[:, t], state)
        found.append(logits)
    return np.stack(found, axis=1)


@pytest.mark.parametrize("kind", ["full", "warm"])
def test_greedy_generation(z, kind):
    reader = DepthDecoder(official(z), steps=4, warm_start=kind == "warm")
    tokens = z[f"gen/{kind}/seq"]
    logits = decode(reader, tokens)
    assert_close(logits, z[f"gen/{kind}/logits"], TOLERANCE)
    assert (logits.argmax(-1) == tokens[:, 5:]).all()


class OfficialSlots(Unrolling):
    """The published cache that shares memory: a dict of slots, numbered as if every model had the published shape.

    It counts the blocks that a token passes, those of the prelude first, and with `compress-sN` number idx > 1 becomes
    (idx - 2) mod N + 2, as fits two blocks in the prelude; N = 4 is then one slot for each of four core blocks.
    """

    def __init__(self, model, tokens, state, caches, compress):
        super().__init__(model, tokens, state)
        self.caches, self.compress, self.written = dict(caches), compress, set()

    def iterate(self):
        config, (nothing,) = self.model.config, self.model.initial_state(len(self.s), 1).core[0][:1]
        numbers, before = [], []
        for j in range(config.n_core):
            number = config.n_prelude + config.n_core * self.steps + j
            numbers.append((number - 2) % self.compress + 2 if number > 1 else number)
            cache = self.caches.get(numbers[-1], nothing)
            before.append(cache.without_last(self.time) if numbers[-1] in self.written else cache)
            self.written.add(numbers[-1])
        self.s, after = self.model.iterate(self.s, self.injected, self.rotation, tuple(before))
        self.caches |= dict(zip(numbers, after, strict=True))
        self.steps += 1


class OfficialReader:
    def __init__(self, model, steps, compress):
        self.model, self.steps, self.compress, self.caches = without_tape(model), steps, compress, {}

    def initial_state(self, batch):
        return self.model.initial_state(batch, 1)._replace(core=())

    def prefill(self, tokens, state):
        thought = OfficialSlots(self.model, tokens, state, self.caches, self.compress)
        for _ in range(self.steps):
            thought.iterate()
        logits, self.caches = thought.logits(), thought.caches
        return logits, thought.state()

    def step(self, tokens, state):
        logits, state = self.prefill(tokens[:, None], state)
        return logits[:, 0], state


def test_a_shared_cache_with_the_official_numbers(z):
    """The golden model has one block before two core blocks, and so none of our rules gives these numbers."""
    tokens = z["gen/share/seq"]
    logits = decode(OfficialReader(official(z), steps=4, compress=4), tokens)
    assert_close(logits, z["gen/share/logits"], TOLERANCE)
    assert (logits.argmax(-1) == tokens[:, 5:]).all()
    assert abs(logits - z["gen/full/logits"])[:, 1:].max() > 1e-3  # sharing does change something


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_for_the_published_shape_these_are_our_slots(slots):
    shape = dict(vocab_size=11, d_model=8, n_heads=2, d_mlp=7, n_prelude=2, n_core=4, n_coda=2)
    model = build("recurrent-depth", make_config("recurrent-depth", **shape), np.random.default_rng(0), "float64")
    tokens = np.random.default_rng(1).integers(0, 11, (1, 9))
    theirs = decode(OfficialReader(model, steps=6, compress=4 * slots), tokens)
    assert_close(decode(DepthDecoder(model, steps=6, slots=slots), tokens), theirs, 1e-13)


@pytest.mark.parametrize(("criterion", "key"), [("kl", "kl_values"), ("latent-diff", "latent_diff_values")])
def test_the_values_of_the_exits(z, criterion, key):
    thought = Unrolling(without_tape(official(z)), z["ids"], start=z["s0"])
    watch = ExitWatch(criterion, None, thought)
    for i in range(16):
        thought.iterate()
        # Both fall by a tenth in each iteration, and are differences of numbers of order 1.
        np.testing.assert_allclose(watch.look(), z[f"adaptive/{key}"][i], rtol=1e-9, atol=1e-13)
