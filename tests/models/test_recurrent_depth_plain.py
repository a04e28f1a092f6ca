"""The plain form of the recurrent-depth transformer reads many tokens too, and decodes by every rule as the ops do.

That a single token agrees with RecurrentDepth.step is in test_every_model.py.
"""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close
from tinyrec.generate import generate
from tinyrec.models import recurrent_depth_decode
from tinyrec.models.recurrent_depth_config import PRESETS
from tinyrec.models.recurrent_depth_decode import DepthDecoder, speculate
from tinyrec.models.recurrent_depth_exit import THRESHOLDS
from tinyrec.models.recurrent_depth_plain import FEW, PlainRecurrentDepth
from tinyrec.nn import parameters, without_tape

VARIANTS = [{}, PRESETS["bad-run-1"], PRESETS["bad-run-2"], {"n_prelude": 2, "n_coda": 0}, {"norm_gain": False}]


def draw(seed, batch, time):
    """tokens (B, T) and s_0 (B, T, h)."""
    rng = np.random.default_rng([7, seed])
    return rng.integers(0, 11, (batch, time)), 0.6 * rng.standard_normal((batch, time, 8))


@settings(max_examples=60)
@given(
    pieces=st.lists(st.integers(1, 7) | st.sampled_from([FEW, FEW + 1]), min_size=1, max_size=4),
    steps=st.integers(1, 5), slots=st.integers(1, 5), batch=st.integers(1, 3), options=st.sampled_from(VARIANTS),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_any_cut_gives_the_logits_and_the_states_of_the_model(
    tiny, arrays_in, pieces, steps, slots, batch, options, seed
):
    model, (tokens, start) = tiny("recurrent-depth", seed=seed, **options), draw(seed, batch, sum(pieces))
    ops, plain, at = without_tape(model), PlainRecurrentDepth(model), 0
    theirs, mine = ops.initial_state(batch, slots), plain.initial_state(batch, slots)
    for piece in pieces:
        part = slice(at, at + piece)
        expected, theirs = ops.prefill(tokens[:, part], theirs, steps, start[:, part])
        logits, mine = plain.prefill(tokens[:, part], mine, steps, start[:, part])
        assert_close(logits, expected, 1e-12)
        at += piece
    for a, b in zip(arrays_in(mine), arrays_in(theirs), strict=True):
        assert_close(a, b, 1e-12)
    assert mine.position == theirs.position == at


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("time", [1, 7, FEW + 1])
def test_without_a_state_it_is_the_model_too(tiny, options, time):
    model, (tokens, start) = tiny("recurrent-depth", **options), draw(1, 2, time)
    plain = PlainRecurrentDepth(model)
    assert_close(plain(tokens, steps=4, initial_state=start), model(tokens, steps=4, initial_state=start), 1e-12)


def test_either_goes_on_from_the_state_of_the_other(tiny):
    model, (tokens, _) = tiny("recurrent-depth"), draw(2, 2, 9)
    ops, plain = without_tape(model), PlainRecurrentDepth(model)
    whole = model(tokens).data
    for first, second in ((ops, plain), (plain, ops)):
        _, state = first.prefill(tokens[:, :4], first.initial_state(2))
        _, state = second.step(tokens[:, 4], state)
        _, state = first.step(tokens[:, 5], state)
        assert_close(second.prefill(tokens[:, 6:], state)[0], whole[:, 6:], 1e-12)


# --- the rules of decoding --------------------------------------------------------------------------------------------


def with_ops(model, **rules):
    """A DepthDecoder whose model runs in ops."""
    reader = DepthDecoder(model, **rules)
    assert type(reader.model) is PlainRecurrentDepth
    reader.model = without_tape(model)
    return reader


@pytest.mark.parametrize(
    "rules",
    [
        *({"exit": name} for name in THRESHOLDS),
        {"slots": 2},
        {"warm_start": True, "exit": "latent-diff", "threshold": 0.5},
        {"rng": 5},
    ],
    ids=str,
)
def test_a_decoder_writes_and_exits_as_with_ops(tiny, rules):
    model, prompt = tiny("recurrent-depth"), [1, 2, 3]
    written = []
    for make in (DepthDecoder, with_ops):
        fresh = {"rng": np.random.default_rng(rules["rng"])} if "rng" in rules else {}
        reader = make(model, steps=9, **rules | fresh)
        written.append((list(generate(model, prompt, 12, temperature=0.0, reader=reader)), reader.taken))
    assert written[0] == written[1]
    assert ("exit" in rules) == (set(written[0][1]) != {9})  # or a criterion has seen nothing


@pytest.mark.parametrize("draft_tokens", [1, 4, FEW])
def test_speculation_writes_as_with_ops(tiny, monkeypatch, draft_tokens):
    """In the same lists: the same guesses are kept."""
    model = tiny("recurrent-depth")
    call = dict(prompt=np.array([1, 2]), n=25, steps=5, draft_steps=2, draft_tokens=draft_tokens)
    made = []
    plain = lambda model: made.append(PlainRecurrentDepth(model)) or made[-1]  # noqa: E731
    monkeypatch.setattr(recurrent_depth_decode, "PlainRecurrentDepth", plain)
    mine = list(speculate(model, **call))
    assert len(made) == 1  # it is the plain form that writes
    monkeypatch.setattr(recurrent_depth_decode, "PlainRecurrentDepth", without_tape)
    assert mine == list(speculate(model, **call))
    assert len(list(chain(*mine))) == 25 and max(map(len, mine)) > 1


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 300.0])  # e^300 is beyond float32
@pytest.mark.parametrize("time", [1, 5, FEW + 1])
def test_float32_is_kept_and_nothing_warns_far_from_zero(tiny, arrays_in, scale, time):
    model, (tokens, _) = tiny("recurrent-depth", "float32"), draw(4, 2, time)
    for name, tensor in parameters(model):
        if name.endswith(("norm_1.gain", "norm_3.gain")):  # so scores, gates and what they multiply are as large
            tensor.data *= scale
    ops, plain = without_tape(model), PlainRecurrentDepth(model)
    for batch in (1, 2):
        expected, _ = ops.prefill(tokens[:batch], ops.initial_state(batch))
        logits, state = plain.prefill(tokens[:batch], plain.initial_state(batch))
        assert {x.dtype for x in (logits, *arrays_in(state))} == {np.dtype("float32")}
        assert_close(logits, expected, 1e-5 if scale == 1.0 else 1e-2)  # scores of some 1e5 have an error of 1e-2


@pytest.mark.parametrize("bad", [-1, 11])
def test_a_token_that_there_is_not_is_refused(tiny, bad):
    plain = PlainRecurrentDepth(tiny("recurrent-depth"))
    with pytest.raises(IndexError, match=r"the table has rows 0 to 10"):
        plain.step(np.array([bad]), plain.initial_state(1))


def test_tokens_must_have_two_axes(tiny):
    plain = PlainRecurrentDepth(tiny("recurrent-depth"))
    with pytest.raises(ValueError, match=r"expected tokens \(B, T\)"):
        plain.prefill(np.array([1, 2]), plain.initial_state(1))
