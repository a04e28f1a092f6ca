"""What TTT layers are in special cases: linear attention, the delta rule, softmax attention, a map of single tokens.

The first of these have no LayerNorm, bias or residual, which the ops have built in: there the inner loop is written
down anew, with gradients that the tape finds. T, d, K are tokens, width and tokens a mini-batch.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec import Tensor, grad
from tinyrec.check import assert_close
from tinyrec.ops import attention, matmul
from tinyrec.recurrences import ttt_linear as linear_module
from tinyrec.recurrences import ttt_mlp as mlp_module

SEEDS = st.integers(0, 2**32 - 1)
TIMES, WIDTHS = st.integers(1, 17), st.integers(1, 6)
EPS = 1e-6

# --- a linear inner model, f(x) = x W ---------------------------------------------------------------------------------


def inner_loop(q, k, v, eta, K, W):
    """Outputs q_i W_i (T, d), where W_i has taken the steps of tokens 0 to i."""
    out = np.empty_like(v)
    for t in range(len(q)):
        if t % K == 0:
            start = Tensor(W, requires_grad=True)  # all gradients of a mini-batch are taken here
        off = matmul(k[t : t + 1], start) - v[t : t + 1]
        (gradient,) = grad(0.5 * (off * off).sum(), [start])
        W = W - eta * gradient
        out[t] = q[t] @ W
    return out


def draw_stream(seed, T, d):
    """q, k, v (T, d) and W (d, d); keys of length about 1, so that steps below 1 do not blow up."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, T, d))
    return q, k / np.sqrt(d), v, rng.standard_normal((d, d))


@given(seed=SEEDS, T=TIMES, d=WIDTHS)
def test_one_batch_from_zero_is_linear_attention(seed, T, d):
    q, k, v, W = draw_stream(seed, T, d)
    assert_close(inner_loop(q, k, v, 1.0, T, 0 * W), np.tril(q @ k.T) @ v, 1e-12)


@given(seed=SEEDS, T=TIMES, d=WIDTHS)
def test_one_batch_from_elsewhere_attends_to_the_errors_of_the_first_weights(seed, T, d):
    q, k, v, W = draw_stream(seed, T, d)
    assert_close(inner_loop(q, k, v, 1.0, T, W), q @ W + np.tril(q @ k.T) @ (v - k @ W), 1e-12)


@given(seed=SEEDS, T=TIMES, d=WIDTHS, eta=st.floats(0.01, 1.0))
def test_single_tokens_are_the_delta_rule(seed, T, d, eta):
    q, k, v, first = draw_stream(seed, T, d)
    W, expected = first.copy(), []
    for t in range(T):
        W += eta * np.outer(k[t], v[t] - k[t] @ W)  # what the key recalls is replaced by what it should
        expected.append(q[t] @ W)
    assert_close(inner_loop(q, k, v, eta, 1, first), expected, 1e-12)


@given(seed=SEEDS, T=TIMES, d=WIDTHS, eta=st.floats(0.01, 1.0))
def test_the_delta_rule_has_a_closed_form(seed, T, d, eta):
    q, k, v, W = draw_stream(seed, T, d)
    U = np.linalg.solve(np.eye(T) + eta * np.tril(k @ k.T, -1), v - k @ W)
    assert_close(inner_loop(q, k, v, eta, 1, W), q @ W + eta * np.tril(q @ k.T) @ U, 1e-10)


@given(seed=SEEDS, T=TIMES, d=WIDTHS, eta=st.floats(0.01, 0.2), K=st.integers(1, 17))
def test_both_are_ends_of_one_formula(seed, T, d, eta, K):
    """The error u_i knows of the steps of earlier mini-batches: none at K = T, all before i at K = 1."""
    q, k, v, W = draw_stream(seed, T, d)
    batch = np.arange(T) // K
    earlier = batch[:, None] > batch
    U = np.linalg.solve(np.eye(T) + eta * earlier * (k @ k.T), v - k @ W)
    assert_close(inner_loop(q, k, v, eta, K, W), q @ W + eta * np.tril(q @ k.T) @ U, 1e-10)


def test_the_two_ends_are_not_the_same():
    q, k, v, W = draw_stream(0, 6, 4)
    one, all_of_them = (inner_loop(q, k, v, 0.5, K, W) for K in (1, 6))
    np.testing.assert_allclose(one[0], all_of_them[0], rtol=1e-12)
    assert np.abs(one - all_of_them)[1:].max(axis=1).min() > 0.01


# --- an inner model without weights -----------------------------------------------------------------------------------


@given(seed=SEEDS, B=st.integers(1, 2), T=TIMES, H=st.integers(1, 3), d=WIDTHS)
def test_nadaraya_watson_is_softmax_attention(seed, B, T, H, d):
    """The learner that keeps all its data answers a mean of the v so far, weighted by a kernel, e^(q k / sqrt d)."""
    q, k, v = np.random.default_rng(seed).standard_normal((3, B, T, H, d))
    expected = np.empty_like(v)
    for b, t, h in np.ndindex(B, T, H):
        kernel = np.exp(k[b, : t + 1, h] @ q[b, t, h] / np.sqrt(d))
        expected[b, t, h] = kernel @ v[b, : t + 1, h] / kernel.sum()
    assert_close(attention(q, k, v), expected, 1e-12)


# --- the layers as they are, with LayerNorm, bias and residual --------------------------------------------------------

MODULES = {"ttt_linear": linear_module, "ttt_mlp": mlp_module}
BOTH = pytest.mark.parametrize("name", MODULES)
SIZES = {"B": st.integers(1, 2), "T": TIMES, "H": st.integers(1, 2), "d": st.integers(3, 6), "K": st.integers(1, 6)}


def draw(name, seed, B, T, H, d, K):
    """q, k, v, lam, tau, gain, bias, and the state at the start of a mini-batch: weights, and sums of 0."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, B, T, H, d))
    lam, tau = rng.uniform(0.1, 1.0, (B, T, H)) / d, 1 / np.arange(1, K + 1) + 0.1 * rng.random(K)
    gain, bias = 1 + 0.3 * rng.standard_normal((H, d)), 0.3 * rng.standard_normal((H, d))
    shapes = [(d, d), (d,)] if name == "ttt_linear" else [(d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    weights = [rng.standard_normal((B, H, *shape)) / np.sqrt(d) for shape in shapes]
    return [q, k, v, lam, tau, gain, bias], [*weights, *(0 * w for w in weights)]


def rows(x, *weights):
    """What LayerNorm gets, (..., T, d), for rows x (..., T, d) of the inner model."""
    if len(weights) == 2:
        return x @ weights[0] + weights[1][..., None, :]
    hidden = x @ weights[0] + weights[1][..., None, :]
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return hidden @ weights[2] + weights[3][..., None, :]


def normalised(z):
    centred = z - z.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS)


def inner_model(x, gain, bias, *weights):
    """f of x (B, T, H, d)."""
    return x + gain * normalised(rows(x.swapaxes(1, 2), *weights)).swapaxes(1, 2) + bias


@BOTH
@settings(max_examples=40)
@given(seed=SEEDS, at=st.integers(0, 5), **{size: SIZES[size] for size in SIZES})
def test_dual_primal_and_one_token_at_a_time_are_one(name, seed, at, B, T, H, d, K):
    """From anywhere in a mini-batch, to anywhere in another."""
    inputs, state = draw(name, seed, B, T, H, d, K)
    dual, at = getattr(MODULES[name], name), at % K
    if at:  # some of the mini-batch has been read, and has left sums
        rng, half = np.random.default_rng([seed, 1]), len(state) // 2
        state[half:] = [0.1 * rng.standard_normal(x.shape) for x in state[half:]]
    expected = dual(*inputs, *state, at=at)
    for form in (MODULES[name].primal, MODULES[name].naive):
        for got, wanted in zip(form(*inputs, *state, at=at), expected, strict=True):
            assert_close(got, wanted, 1e-9)
    z = []
    for t in range(T):
        token = [x[:, t : t + 1] for x in inputs[:4]]
        out, *state = dual(*token, *inputs[4:], *state, at=(at + t) % K)
        z.append(out)
    for got, wanted in zip([np.concatenate(z, axis=1), *state], expected, strict=True):
        assert_close(got, wanted, 1e-9)


@BOTH
@given(seed=SEEDS, B=SIZES["B"], H=SIZES["H"], d=SIZES["d"])
def test_a_step_moves_along_the_sphere_that_layernorm_projects_to(name, seed, B, H, d):
    """The gradient G in LayerNorm's input has no part along (1, ..., 1) and, but for EPS, none along h: those change
    nothing. With e the gradient in h and s^2 = variance + EPS, sum_c G_c h_c = d mean(e h) EPS / s^3.

    G is what one token of rate 1 adds to the sum of the last bias.
    """
    inputs, state = draw(name, seed, B, 1, H, d, 2)
    q, k, v, lam, tau, gain, bias = inputs
    G = getattr(MODULES[name], name)(q, k, v, np.ones_like(lam), *inputs[4:], *state)[-1]
    z = rows(k.swapaxes(1, 2), *state[: len(state) // 2])[:, :, 0]  # (B, H, d)
    h, s = normalised(z), np.sqrt(z.var(axis=-1) + EPS)
    e = gain * (gain * h + bias + k[:, 0] - v[:, 0])
    size = np.abs(G).max()
    assert np.abs(G.sum(axis=-1)).max() <= 1e-12 * max(1.0, size)
    along = (G * h).sum(axis=-1)
    expected = d * (e * h).mean(axis=-1) * EPS / s**3
    np.testing.assert_allclose(along, expected, rtol=1e-6, atol=1e-12 * max(1.0, size))


@BOTH
@given(seed=SEEDS, **SIZES)
def test_without_a_rate_each_token_is_mapped_by_itself(name, seed, B, T, H, d, K):
    inputs, state = draw(name, seed, B, T, H, d, K)
    inputs[3] = 0 * inputs[3]
    z, *after = getattr(MODULES[name], name)(*inputs, *state)
    q, _, _, _, _, gain, bias = inputs
    assert_close(z, inner_model(q, gain, bias, *state[: len(state) // 2]), 1e-11)
    for got, wanted in zip(after, state, strict=True):
        np.testing.assert_array_equal(got, wanted)


@BOTH
@given(seed=SEEDS, **SIZES)
def test_without_a_gain_the_weights_never_move(name, seed, B, T, H, d, K):
    inputs, state = draw(name, seed, B, T, H, d, K)
    inputs[5] = 0 * inputs[5]
    z, *after = getattr(MODULES[name], name)(*inputs, *state)
    assert_close(z, inputs[0] + inputs[6], 1e-14)
    for got, wanted in zip(after, state, strict=True):
        np.testing.assert_array_equal(got, wanted)


@BOTH
@pytest.mark.parametrize("seed", range(5))
def test_a_small_step_lowers_the_loss_by_the_square_of_its_gradient(name, seed):
    """Rates differ, so the loss that a mini-batch descends is sum_j lam_j l_j. The first order of the drop is
    tau |gradient|^2, tau that of the last place."""
    K, lr = 6, 1e-4
    inputs, state = draw(name, seed, 2, K, 2, 5, K)
    q, k, v, lam, tau, gain, bias = inputs
    inputs[3] = lam = lr * lam
    n = len(state) // 2
    before, after = state[:n], getattr(MODULES[name], name)(*inputs, *state)[1 : 1 + n]

    def loss(weights):  # (B, H), of each head by itself
        off = inner_model(k, gain, bias, *weights) - v
        return (lam * 0.5 * (off**2).sum(axis=-1)).sum(axis=1)

    drop = loss(before) - loss(after)
    moved = sum(((x - y) ** 2).sum(axis=tuple(range(2, x.ndim))) for x, y in zip(before, after, strict=True))
    assert (drop > 0).all()
    np.testing.assert_allclose(drop, moved / tau[-1], rtol=0.02)
