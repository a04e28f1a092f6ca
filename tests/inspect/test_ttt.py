"""Watching a TTT: losses, weights and rates against the layer's formulas in NumPy, one token and one head at a time."""

from __future__ import annotations

import numpy as np
import pytest

from tinyrec.inspect import eta, inner_losses, weight_path
from tinyrec.models import build, make_config
from tinyrec.models.ttt_layer import Mixer
from tinyrec.nn import parameters, without_tape

B, H, D, K, N, V = 2, 3, 4, 4, 5, 11
TOKENS = np.random.default_rng(1).integers(0, V, (B, N * K + 3))  # 3 tokens begin another mini-batch
WHOLE = TOKENS[:, : N * K]
SIZES = dict(vocab_size=V, d_model=H * D, n_heads=H, n_layers=2, mini_batch=K)
CASES = [(f"ttt-{inner}", backbone) for inner in ("linear", "mlp") for backbone in ("mamba", "transformer")]


def model_of(name="ttt-linear", backbone="mamba", **options):
    """In float64, with every parameter away from its start, where biases, delta and many more are 0."""
    rng = np.random.default_rng(0)
    model = build(name, make_config(name, **SIZES, backbone=backbone, **options), rng, np.float64)
    for _, tensor in parameters(model):
        tensor.data += 0.2 * rng.standard_normal(tensor.shape)
    return model


# --- the layer in NumPy -----------------------------------------------------------------------------------------------


def layer_inputs(model, tokens, layer, monkeypatch):
    """u (B, T, C), what the mixer of a layer reads: the model runs as in training, all tokens at once."""
    seen, call = [], Mixer.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Mixer, "__call__", lambda self, u, *rest: seen.append(u.data) or call(self, u, *rest))
        model(tokens)
    return seen[layer]


def convolved(x, conv):
    """x (T, C): y_t = bias + sum_m w_m x_{t - W + 1 + m}."""
    padded = np.concatenate([np.zeros((len(conv.w) - 1, x.shape[1])), x])
    return np.array([(padded[t : t + len(conv.w)] * conv.w).sum(0) + conv.bias for t in range(len(x))])


def turned(x, place, base):
    """RoPE of x (d,): the pair 2m, 2m + 1 turns by place base^(-2m/d)."""
    angle = place * base ** (-np.arange(0, len(x), 2) / len(x))
    y = np.empty_like(x)
    y[::2] = x[::2] * np.cos(angle) - x[1::2] * np.sin(angle)
    y[1::2] = x[::2] * np.sin(angle) + x[1::2] * np.cos(angle)
    return y


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def loss(k, v, gain, bias, weights):
    """|f(k) - v|^2 / 2 over d for one token (d,)."""
    w, b, *second = weights
    z = k @ w + b
    if second:
        z = gelu(z) @ second[0] + second[1]
    y = k + gain * (z - z.mean()) / np.sqrt(z.var() + 1e-6) + bias
    return 0.5 * ((y - v) ** 2).mean()


def slope(k, v, gain, bias, weights, step=1e-6):
    """The gradient of |f(k) - v|^2 / 2 by every number of the weights, by central differences."""
    found = [np.empty_like(w) for w in weights]
    for n, w in enumerate(weights):
        for at in np.ndindex(w.shape):
            moved = []
            for sign in (1, -1):
                other = [x.copy() for x in weights]
                other[n][at] += sign * step
                moved.append(loss(k, v, gain, bias, other) * len(k))
            found[n][at] = (moved[0] - moved[1]) / (2 * step)
    return found


def learn(mixer, config, u, head):
    """One head reads u (T, C), token by token: three kinds of losses (3, N, K), weights (N + 1, P), lam (N, K), tau."""
    base, at = config.rope_base, slice(head * D, head * D + D)
    p = u @ mixer.q.w
    k = u @ mixer.k.w if mixer.k is not None else convolved(p, mixer.conv_k)
    v, inner = (u @ mixer.v.w)[:, at], mixer.inner
    k = np.array([turned(k[t, at], t % K, base) for t in range(len(u))])
    lam = config.inner_lr / D / (1 + np.exp(-(u @ mixer.lam.w + mixer.lam.b)[:, head]))
    tau = np.maximum(1 / np.arange(1, K + 1) + mixer.delta, 0)
    norm, path = (inner.gain[head], inner.bias[head]), [[w[head] for w in inner.weights()]]
    found = []
    for start in range(0, len(u), K):
        weights, sums = path[-1], [0.0] * len(path[-1])
        for t in range(start, start + K):
            sums = [s + lam[t] * g for s, g in zip(sums, slope(k[t], v[t], *norm, weights), strict=True)]
        path.append([w - tau[-1] * s for w, s in zip(weights, sums, strict=True)])
        tokens = range(start, start + K)
        found.append([[loss(k[t], v[t], *norm, w) for t in tokens] for w in (path[0], weights, path[-1])])
    flat = np.array([np.concatenate([w.ravel() for w in weights]) for weights in path])
    return np.array(found).swapaxes(0, 1), flat, lam.reshape(-1, K), tau


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_equal_the_formulas_in_numpy(name, backbone, layer, monkeypatch):
    model = model_of(name, backbone, base_lr=1.0)
    plain, u = without_tape(model), layer_inputs(model, WHOLE, layer, monkeypatch)
    losses, path = inner_losses(model, TOKENS, layer), weight_path(model, TOKENS, layer)
    rates = eta(model, TOKENS, layer)
    assert losses.before.shape == (B, H, N, K) and rates.shape == (B, H, N, K, K)
    for b, h in ((0, 0), (1, 2)):
        expected, weights, lam, tau = learn(plain.blocks[layer].mixer, model.config, u[b], h)
        np.testing.assert_allclose([kind[b, h] for kind in losses], expected, rtol=1e-7)
        np.testing.assert_allclose(path.weights[b, h], weights, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(rates[b, h], np.tril(tau[:, None] * lam[:, None]), rtol=1e-11)


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_the_first_mini_batch_begins_at_the_first_weights_and_each_goes_on_from_the_last(name, backbone):
    model = model_of(name, backbone)
    found = inner_losses(model, TOKENS, 1)
    np.testing.assert_array_equal(found.before[:, :, 0], found.at_first[:, :, 0])
    assert (found.before[:, :, 1:] != found.at_first[:, :, 1:]).all()
    assert (found.after != found.before).all()


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_small_steps_lower_the_loss_of_every_mini_batch_of_every_head(name, backbone):
    found = inner_losses(model_of(name, backbone, base_lr=1e-3), TOKENS)
    assert (found.after.mean(-1) < found.before.mean(-1)).all()


def test_it_is_no_law_for_every_rate():
    """A fresh W is almost 0, and LayerNorm makes the gradient of what it gives large: the first step goes too far."""
    model = build("ttt-linear", make_config("ttt-linear", **SIZES, base_lr=20.0), np.random.default_rng(0), np.float64)
    found = inner_losses(model, TOKENS)
    assert (found.after[:, :, 0].mean(-1) > found.before[:, :, 0].mean(-1)).any()


def test_without_a_rate_nothing_is_learned():
    model = model_of()
    model.blocks[0].mixer.lam.b.data[...] = -1e3
    found, path = inner_losses(model, TOKENS), weight_path(model, TOKENS)
    np.testing.assert_allclose(found.after, found.at_first, rtol=1e-12)
    assert path.distance.max() < 1e-12 and path.step.max() < 1e-12 and np.isfinite(path.explained).all()


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backbone"), CASES)
@pytest.mark.parametrize("layer", [0, 1])
def test_the_path_ends_at_the_state_that_the_model_returns(name, backbone, layer):
    model = model_of(name, backbone)
    _, state = without_tape(model).prefill(WHOLE, without_tape(model).initial_state(B))
    path = weight_path(model, TOKENS, layer)
    last = np.concatenate([w.reshape(B, H, -1) for w in state.layers[layer].weights], axis=-1)
    first = np.concatenate([w.data.reshape(H, -1) for w in model.blocks[layer].mixer.inner.weights()], axis=-1)
    np.testing.assert_allclose(path.weights[:, :, -1], last, rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(path.weights[:, :, 0], np.broadcast_to(first, (B, *first.shape)))
    np.testing.assert_allclose(path.distance[:, :, -1], np.linalg.norm(last - first, axis=-1), rtol=1e-10)
    assert path.distance.shape == (B, H, N + 1) and (path.distance[:, :, 0] == 0).all()


def test_steps_and_coordinates_belong_to_the_weights():
    found = weight_path(model_of(), TOKENS)
    step = np.linalg.norm(found.weights[:, :, 1:] - found.weights[:, :, :-1], axis=-1)
    np.testing.assert_allclose(found.step, step, rtol=1e-12)
    for h in range(H):
        rows = found.weights[:, h].reshape(B * (N + 1), -1)
        variances, axes = np.linalg.eigh(np.cov(rows.T, bias=True))  # of the covariance: the same directions
        np.testing.assert_allclose(found.explained[h], variances[:-3:-1] / variances.sum(), rtol=1e-8)
        along = (found.weights[:, h] - found.weights[:, h, :1]) @ axes[:, :-3:-1]
        np.testing.assert_allclose(abs(found.coordinates[:, h]), abs(along), atol=1e-10)


def test_two_directions_hold_all_of_one_step():
    found = weight_path(model_of(), TOKENS[:1, :K])
    np.testing.assert_allclose(np.linalg.norm(found.coordinates, axis=-1), found.distance, atol=1e-12)
    np.testing.assert_allclose(found.explained[:, 0], 1.0)


# --- rates ------------------------------------------------------------------------------------------------------------


def test_every_row_of_eta_is_tau_times_lam_up_to_the_token():
    model = model_of(backbone="transformer")
    for p in (model.blocks[1].mixer.lam.w, model.blocks[1].mixer.delta):
        p.data[...] = 0.0  # lam: sigmoid of the bias only; tau: 1 / (i + 1)
    found = eta(model, TOKENS, 1)
    lam = 1.0 / D / (1.0 + np.exp(-model.blocks[1].mixer.lam.b.data))[:, None, None]  # (H, 1, 1)
    for i in range(K):
        np.testing.assert_allclose(found[..., i, : i + 1] * (i + 1), lam + np.zeros((B, H, N, i + 1)))
        assert (found[..., i, i + 1 :] == 0).all()


# --- for all three ----------------------------------------------------------------------------------------------------

TOOLS = [inner_losses, weight_path, eta]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_watched_model_is_left_as_it_was(tool):
    model = model_of()
    inner, before = model.blocks[1].mixer.inner, model(TOKENS).data
    tool(model, TOKENS, 1)
    assert model.blocks[1].mixer.inner is inner and model(TOKENS).requires_grad
    np.testing.assert_array_equal(model(TOKENS).data, before)


@pytest.mark.parametrize("tool", TOOLS)
def test_wrong_requests_are_refused(tool):
    for layer in (2, -1):
        with pytest.raises(ValueError, match=f"layer must be 0 to 1, got {layer}"):
            tool(model_of(), TOKENS, layer)
    for tokens in (TOKENS[:, : K - 1], TOKENS[0]):
        with pytest.raises(ValueError, match="with T of at least a mini-batch, 4, got"):
            tool(model_of(), tokens)
    hawk = build("hawk", make_config("hawk", vocab_size=V, d_model=8, n_heads=2), np.random.default_rng(0))
    with pytest.raises(TypeError, match="only TTT models have inner models, got a Griffin"):
        tool(hawk, TOKENS)
