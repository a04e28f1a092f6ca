"""TTT: the paper's formulas in plain NumPy, states in the middle of a mini-batch, identities, the inner warm-up.

What holds for every model alike is in test_every_model.py.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec import checkpoint
from tinyrec.check import assert_close, gradcheck
from tinyrec.cli.models import load_state
from tinyrec.generate import state_bytes
from tinyrec.models import build, make_config, ttt_layer
from tinyrec.models.ttt import TTT, TTTState
from tinyrec.models.ttt_layer import BlockState
from tinyrec.nn import parameters, without_tape
from tinyrec.ops import concat, cross_entropy
from tinyrec.optim import optimizer_for
from tinyrec.tape import array_of, no_grad
from tinyrec.train import Options, open_source, start, train
from tinyrec.walk import grad

# Sizes are pairwise distinct; the last has other constants too.
OPTIONS = [
    ("ttt-linear", {"backbone": "mamba"}),
    ("ttt-linear", {"backbone": "transformer"}),
    ("ttt-mlp", {"backbone": "mamba"}),
    ("ttt-mlp", {"backbone": "transformer"}),
    ("ttt-linear", {"d_model": 24, "n_heads": 3, "mini_batch": 4, "conv_width": 2, "d_mlp": 0, "n_layers": 1}
        | {"base_lr": 3.0, "rope_base": 50.0, "norm_eps": 1e-3}),
]  # fmt: skip
OPTIONS = [pytest.param(name, options, id=f"{name} {options}") for name, options in OPTIONS]


def draw_tokens(seed, batch, time, vocab=11):
    return np.random.default_rng([2, seed]).integers(0, vocab, (batch, time))


def draw_state(model, seed, batch, at):
    """A state in which no zeros hide, with `at` tokens of its mini-batch read."""
    rng = np.random.default_rng([3, seed])
    noise = lambda x: None if x is None else 0.5 * rng.standard_normal(x.shape)  # noqa: E731
    layers = without_tape(model).initial_state(batch).layers
    return TTTState(
        at,
        tuple(
            BlockState(noise(old.before), noise(old.qk), tuple(map(noise, old.weights)), tuple(map(noise, old.sums)))
            for old in layers
        ),
    )


def arrays_of(state):
    """All arrays of a state in a row."""
    layers = [(x.before, x.qk, *x.weights, *x.sums) for x in state.layers]
    return [array_of(x) for layer in layers for x in layer if x is not None]


# --- the whole model, one token, one sequence and one head after the other --------------------------------------------


def gelu(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x):
    t, c = np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)), np.sqrt(2.0 / np.pi)
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3 * 0.044715 * x * x)


def silu(x):
    return x / (1.0 + np.exp(-x))


def rmsnorm(x, gain, eps):
    return x / np.sqrt((x * x).mean() + eps) * gain


def layernorm(x, gain, bias):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * gain + bias


def turned(x, place, base):
    """RoPE on adjacent pairs."""
    angle = place * base ** (-np.arange(0, len(x), 2) / len(x))
    return ((x[0::2] + 1j * x[1::2]) * np.exp(1j * angle)).view(float)


def loss_gradient(z, target, gain, bias):
    """d |LN(z) - target|^2 / 2 / dz, by the Jacobian of the LayerNorm written out as a matrix."""
    d, s = len(z), np.sqrt(z.var() + 1e-6)
    h = (z - z.mean()) / s
    jacobian = (np.eye(d) - 1.0 / d - np.outer(h, h) / d) / s * gain[:, None]  # dy_i / dz_j
    return (gain * h + bias - target) @ jacobian


def convolved(window, w, bias):
    return sum(w[j] * window[j] for j in range(len(w))) + bias


def read_token(q, k, v, lam, tau, gain, bias, weights, sums):
    """One head: the output, and what the token adds to the sums."""
    if len(weights) == 2:
        w, b = weights
        g = loss_gradient(k @ w + b, v - k, gain, bias)
        gradients = [np.outer(k, g), g]
        f = lambda x, w, b: x + layernorm(x @ w + b, gain, bias)  # noqa: E731
    else:
        w1, b1, w2, b2 = weights
        z1 = k @ w1 + b1
        g2 = loss_gradient(gelu(z1) @ w2 + b2, v - k, gain, bias)
        g1 = (w2 @ g2) * gelu_slope(z1)
        gradients = [np.outer(k, g1), g1, np.outer(gelu(z1), g2), g2]
        f = lambda x, w1, b1, w2, b2: x + layernorm(gelu(x @ w1 + b1) @ w2 + b2, gain, bias)  # noqa: E731
    for total, gradient in zip(sums, gradients, strict=True):
        total += lam * gradient
    moved = [w - tau * total for w, total in zip(weights, sums, strict=True)]
    return f(q, *moved), moved


def plain(model, tokens, state):
    """Logits (B, T, V) and the last state's arrays."""
    p, c = {name: tensor.data for name, tensor in parameters(model)}, model.config
    d, mini, mamba = c.head_width, c.mini_batch, c.backbone == "mamba"
    logits = np.zeros((*tokens.shape, c.vocab_size))
    copy = lambda x: None if x is None else np.array(x)  # noqa: E731
    layers = [(copy(x.before), copy(x.qk), list(map(copy, x.weights)), list(map(copy, x.sums))) for x in state.layers]
    for row, t in np.ndindex(*tokens.shape):
        x, place = p["embedding"][tokens[row, t]], (state.at + t) % mini
        for i, (before, qk, weights, sums) in enumerate(layers):
            s = {name.removeprefix(f"blocks.{i}."): w for name, w in p.items()}
            m = {name.removeprefix("mixer."): w for name, w in s.items()}
            if mamba:
                window = np.concatenate([before[row], [rmsnorm(x, s["conv_norm.gain"], c.norm_eps)]])
                before[row] = window[1:]
                x = x + convolved(window, s["conv.w"], s["conv.bias"])
            u = rmsnorm(x, s["mixer_norm.gain"], c.norm_eps)
            if mamba:
                window = np.concatenate([qk[row], [u @ m["q.w"]]])
                qk[row] = window[1:]
                q, k = (convolved(window, m[f"conv_{n}.w"], m[f"conv_{n}.bias"]) for n in "qk")
            else:
                q, k = u @ m["q.w"], u @ m["k.w"]
            v, z = u @ m["v.w"], []
            tau = max(1.0 / (place + 1) + m["delta"][place], 0.0)
            for h in range(c.n_heads):
                one = slice(h * d, (h + 1) * d)
                lam = c.inner_lr / d / (1.0 + np.exp(-(u @ m["lam.w"][:, h] + m["lam.b"][h])))
                out, moved = read_token(
                    turned(q[one], place, c.rope_base), turned(k[one], place, c.rope_base), v[one], lam, tau,
                    m["inner.gain"][h], m["inner.bias"][h], [w[row, h] for w in weights], [g[row, h] for g in sums],
                )  # fmt: skip
                z.append(out)
                if place == mini - 1:
                    for w, g, new in zip(weights, sums, moved, strict=True):
                        w[row, h], g[row, h] = new, 0.0
            o = layernorm(np.concatenate(z), m["norm.gain"], m["norm.bias"])
            if mamba:
                o = gelu(u @ m["gate.w"]) * o
            x = x + o @ m["out.w"]
            a = rmsnorm(x, s["mlp_norm.gain"], c.norm_eps)
            x = x + (silu(a @ s["mlp.gate.w"]) * (a @ s["mlp.up.w"])) @ s["mlp.down.w"]
        logits[row, t] = rmsnorm(x, p["final_norm.gain"], c.norm_eps) @ p["embedding"].T
    arrays = [x for before, qk, weights, sums in layers for x in (before, qk, *weights, *sums) if x is not None]
    return logits, arrays


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("at", [0, 2])
def test_equals_the_formulas_in_plain_numpy(tiny, name, options, at):
    model, tokens = tiny(name, **options), draw_tokens(0, 2, 7)
    state = draw_state(model, 0, 2, at) if at else without_tape(model).initial_state(2)
    expected, arrays = plain(model, tokens, state)
    with no_grad():
        logits, after = model.prefill(tokens, state)
    assert_close(logits, expected, 1e-11)
    assert after.at == (at + 7) % model.config.mini_batch
    for ours, theirs in zip(arrays_of(after), arrays, strict=True):
        assert_close(ours, theirs, 1e-11)
    if not at:
        with no_grad():
            assert_close(model(tokens), expected, 1e-11)


# --- gradients and states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("time", [1, 2, 5])  # 2 of 3 or 4 are read before: inside, to and beyond the end
def test_the_state_has_gradients_on_both_sides(tiny, name, options, time):
    """From logits and last state to the first state: what training on chunks of a long text needs."""
    model, tokens = tiny(name, **options), draw_tokens(2, 2, time)
    state = draw_state(model, 1, 2, 2)
    half, mamba = len(state.layers[0].weights), model.config.backbone == "mamba"

    def run(*arrays):
        given = iter(arrays)
        take = lambda n: tuple(itertools.islice(given, n))  # noqa: E731
        layers = [(*(take(2) if mamba else (None, None)), take(half), take(half)) for _ in model.blocks]
        logits, after = model.prefill(tokens, TTTState(2, tuple(BlockState(*layer) for layer in layers)))
        last = [(x.before, x.qk, *x.weights, *x.sums) for x in after.layers]
        return logits, *(x for layer in last for x in layer if x is not None)

    gradcheck(run, *arrays_of(state), eps=1e-4, tol=1e-7)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@settings(max_examples=15)
@given(pieces=st.lists(st.integers(1, 7), min_size=2, max_size=5), seed=st.integers(0, 9))
def test_any_cut_gives_the_states_and_gradients_of_the_whole(tiny, name, options, pieces, seed):
    model, total = tiny(name, seed=seed, **options), sum(pieces)
    tokens, targets = draw_tokens(seed, 2, total), draw_tokens(seed + 50, 2, total)
    tensors = [tensor for _, tensor in parameters(model)]
    logits, last = model.prefill(tokens, model.initial_state(2))
    whole = grad(cross_entropy(logits, targets), tensors)
    state, read = model.initial_state(2), []
    for begin, end in itertools.pairwise([0, *itertools.accumulate(pieces)]):
        logits, state = model.prefill(tokens[:, begin:end], state)
        read.append(logits)
    assert state.at == last.at == total % model.config.mini_batch
    for ours, theirs in zip(arrays_of(state), arrays_of(last), strict=True):
        assert_close(ours, theirs, 1e-9)
    for ours, theirs in zip(grad(cross_entropy(concat(*read, axis=1), targets), tensors), whole, strict=True):
        assert_close(ours, theirs, 1e-9)


@pytest.mark.parametrize(("name", "numbers"), [("ttt-linear", 12 * (6 + 1)), ("ttt-mlp", 12 * (8 * 6 + 5))])
@pytest.mark.parametrize("backbone", ["transformer", "mamba"])
def test_a_state_never_grows_and_is_as_large_as_said(tiny, name, numbers, backbone):
    """C (d + 1) or C (8 d + 5) weights, the same again for the sums; and two windows of W - 1 inputs."""
    model = without_tape(tiny(name, "float32", backbone=backbone))
    state = model.initial_state(3)
    size = 4 * 3 * 2 * (2 * numbers + (2 * 2 * 12 if backbone == "mamba" else 0))
    shapes = [x.shape for x in arrays_of(state)]
    for time in (1, 2, 50):
        assert state_bytes(state) == size
        assert [x.shape for x in arrays_of(state)] == shapes
        _, state = model.prefill(draw_tokens(3, 3, time), state)
        assert {x.dtype for x in arrays_of(state)} == {np.dtype("float32")}


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_a_token_changes_nothing_before_it_and_all_after_it(tiny, name, options):
    model, tokens = tiny(name, **options), draw_tokens(4, 1, 12)
    for t in range(12):
        other = tokens.copy()
        other[0, t] = (other[0, t] + 1) % 11
        with no_grad():
            changed = (model(tokens).data != model(other).data).any(axis=(0, 2))
        assert changed.tolist() == [s >= t for s in range(12)]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_rows_of_a_batch_do_not_meet(tiny, name, options):
    model, tokens = tiny(name, **options), draw_tokens(5, 3, 6)
    with no_grad():
        together = model(tokens).data
        for row in range(3):
            assert_close(together[row], model(tokens[row : row + 1]).data[0], 1e-11)


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_heads_can_change_places(tiny, name, options):
    """Nothing but the matrices around them knows which head is which."""
    model, tokens = tiny(name, **options), draw_tokens(6, 2, 8)
    h, d = model.config.n_heads, model.config.head_width
    with no_grad():
        before = model(tokens).data
    heads = np.roll(np.arange(h), 1)
    channels = (heads[:, None] * d + np.arange(d)).reshape(-1)
    for key, tensor in parameters(model):
        _, _, inside = key.rpartition(".mixer.")
        if inside == key or inside == "delta":
            continue
        if inside.startswith("inner."):
            tensor.data = tensor.data[heads]
        elif inside == "out.w":
            tensor.data = tensor.data[channels]
        else:
            tensor.data = tensor.data[..., heads if inside.startswith("lam.") else channels]
    with no_grad():
        assert_close(model(tokens), before, 1e-11)


@pytest.mark.parametrize("name", ["ttt-linear", "ttt-mlp"])
@pytest.mark.parametrize("how", ["lam", "tau", "call"])
def test_an_inner_model_that_does_not_learn_looks_at_one_token_only(tiny, name, how):
    """lam = 0, or tau = 0, or inner_rate = 0: f stays as it starts, and without convolutions nothing else remembers."""
    model, tokens = tiny(name, backbone="transformer"), draw_tokens(7, 2, 9)
    rate = 0.0 if how == "call" else 1.0
    for block in model.blocks:
        if how == "lam":
            block.mixer.lam.b.data[:] = -1000.0
        if how == "tau":
            block.mixer.delta.data[:] = -2.0
    start, other = model.initial_state(2), tokens.copy()
    other[:, :3] = (other[:, :3] + 1) % 11
    with no_grad():
        logits, after = model.prefill(tokens, start, rate)
        assert_close(model.prefill(other, start, rate)[0].data[:, 3:], logits.data[:, 3:], 1e-13)
        assert (model.prefill(other, start, rate)[0].data[:, :3] != logits.data[:, :3]).any(axis=2).all()
    for old, new in zip(start.layers, after.layers, strict=True):
        for a, b in zip(old.weights, new.weights, strict=True):
            assert_close(b, a, 1e-15)


def test_delta_learns_only_where_tau_is_positive(tiny):
    model, tokens = tiny("ttt-linear"), draw_tokens(8, 2, 9)
    for block in model.blocks:
        block.mixer.delta.data[:] = (0.1, -0.6, 0.2)
    assert_close(model.blocks[0].mixer.tau(), np.array([1.1, 0.0, 1.0 / 3.0 + 0.2]), 1e-15)
    deltas = [block.mixer.delta for block in model.blocks]
    for gradient in grad(cross_entropy(model(tokens), draw_tokens(9, 2, 9)), deltas):
        assert (gradient != 0.0).tolist() == [True, False, True]


def test_a_turn_by_the_place_in_the_mini_batch_is_all_that_positions_do(tiny):
    """With f that does not learn, the same token says the same a whole mini-batch later, and something else before."""
    model = without_tape(tiny("ttt-linear", backbone="transformer"))
    logits, _ = model.prefill(np.full((1, 6), 4), model.initial_state(1), 0.0)
    assert_close(logits[:, 3:], logits[:, :3], 1e-13)
    assert (logits[0, 1:3] != logits[0, 0]).any(axis=1).all()


# --- training ---------------------------------------------------------------------------------------------------------


def test_weight_decay_spares_biases_and_gains_and_not_the_weights_that_f_starts_from():
    for name, matrices in (("ttt-linear", {"w"}), ("ttt-mlp", {"w1", "w2"})):
        model = build(name, make_config(name, d_model=8, n_heads=2, n_layers=1), np.random.default_rng(0))
        tensors = dict(parameters(model))
        for tensor in tensors.values():
            tensor.data += 1.0
            tensor.grad = np.zeros_like(tensor.data)  # so that decay is all that moves
        before = {key: tensor.data.copy() for key, tensor in tensors.items()}
        optimizer_for(model, lr=0.1, weight_decay=0.5).step()
        moved = {key for key, x in before.items() if (tensors[key].data != x).any()}
        products = {f"mixer.{x}.w" for x in ("q", "v", "out", "gate", "conv_q", "conv_k", "lam")}
        products |= {"conv.w", "mlp.gate.w", "mlp.up.w", "mlp.down.w"} | {f"mixer.inner.{x}" for x in matrices}
        assert moved == {"embedding"} | {f"blocks.0.{x}" for x in products}


@pytest.mark.parametrize(("name", "first"), [("ttt-linear", 1.0), ("ttt-mlp", 0.1)])
def test_the_inner_rate_rises_over_the_warm_up(tiny, name, first):
    model = tiny(name)
    rates = [model.warm_up(step, 4)["inner_rate"] for step in (0, 1, 2, 4, 5, 1000)]
    assert rates == pytest.approx([first, 0.75 * first + 0.25, 0.5 * first + 0.5, 1.0, 1.0, 1.0])
    assert model.warm_up(0, 0) == {"inner_rate": 1.0}
    assert tiny(name, inner_warmup=0.25).warm_up(0, 4)["inner_rate"] == 0.25


def test_the_inner_rate_is_a_factor_of_base_lr(tiny):
    whole, half = tiny("ttt-mlp", base_lr=0.5), tiny("ttt-mlp", base_lr=0.25)
    tokens = draw_tokens(10, 2, 7)
    with no_grad():
        assert_close(whole(tokens, inner_rate=0.5), half(tokens), 1e-13)
        assert (whole(tokens).data != half(tokens).data).any()


def training(state, options, monkeypatch, steps):
    """(loss, validation loss or None, the inner rates that were asked for) of each step."""
    rates, prefill = [], TTT.prefill

    def watched(self, tokens, state, inner_rate=1.0):
        rates.append(inner_rate)
        return prefill(self, tokens, state, inner_rate)

    found = []
    with monkeypatch.context() as patch:
        patch.setattr(TTT, "prefill", watched)
        for record in itertools.islice(train(state, open_source(options), options), steps):
            found.append((record["loss"], record.get("valid_loss"), rates.copy()))
            rates.clear()
    return found


def test_training_warms_up_validation_does_not_and_a_cut_run_goes_on_alike(tmp_path, monkeypatch):
    options = Options(task="copy:items=2,vocab=4", steps=5, batch=3, context=8, warmup=4, valid_every=3, threads=1)
    size = dict(vocab_size=open_source(options).vocab_size, d_model=8, n_heads=2, n_layers=1, mini_batch=3)
    fresh = lambda: start("ttt-mlp", make_config("ttt-mlp", **size), options)  # noqa: E731
    whole = training(fresh(), options, monkeypatch, 5)
    assert [rates[0] for _, _, rates in whole] == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0])
    assert all(set(rates[1:]) == ({1.0} if valid else set()) for _, valid, rates in whole)
    state = fresh()
    first = training(state, options, monkeypatch, 2)
    checkpoint.save_run(tmp_path / "x", state.model, state.optimizer, state.step, state.data_rng)
    rest = training(load_state(checkpoint.load_run(tmp_path / "x"), options), options, monkeypatch, 3)
    assert first + rest == whole


def test_checkpoint_reaches_the_recurrence(tiny, monkeypatch):
    """It changes what is kept, and no number: so look at what the op is asked for."""
    asked, read = [], ttt_layer.ttt_linear

    def watched(*arrays, **static):
        asked.append(static["checkpoint"])
        return read(*arrays, **static)

    monkeypatch.setattr(ttt_layer, "ttt_linear", watched)
    model = tiny("ttt-linear", checkpoint=2)
    model(draw_tokens(9, 2, 7))
    assert asked == [2] * model.config.n_layers
