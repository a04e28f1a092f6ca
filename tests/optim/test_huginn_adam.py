"""HuginnAdam against its formulas written naively, and its first steps worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tinyrec.optim import HuginnAdam
from tinyrec.tape import Tensor

SHAPES = {"w": (4, 3), "b": (5,), "scale": (), "kernel": (2, 3, 2)}
MATRICES = {"w", "kernel"}
SWITCHES = ("running_init", "update_clipping", "atan2")
EVERY_WAY = [dict(zip(SWITCHES, on, strict=True)) for on in itertools.product([False, True], repeat=3)]
ALL_ON, ALL_OFF = EVERY_WAY[-1], EVERY_WAY[0]


def random_params(rng, dtype=np.float64):
    return [(name, Tensor(np.asarray(rng.normal(size=s), dtype), requires_grad=True)) for name, s in SHAPES.items()]


def one(values, dtype=np.float64):
    return Tensor(np.asarray(values, dtype), requires_grad=True)


def set_grads(params, rng, scale=1.0):
    """A third of the entries has no gradient, the same ones each time; and some more, each time others."""
    for _, tensor in params:
        g = scale * rng.normal(size=tensor.shape) * (rng.random(tensor.shape) < 0.8)
        tensor.grad = np.asarray(g * (np.arange(g.size).reshape(g.shape) % 3 != 1), tensor.dtype)


# --- the formulas -----------------------------------------------------------------------------------------------------


def naive(theta, gs, lrs, *, peak, betas, eps, decay, running_init, update_clipping, atan2):
    """(theta, the RMS of each step): one line after the other, nothing in place."""
    m, v, all_rms = np.zeros_like(theta), np.zeros_like(theta), []
    if running_init:
        m, v = gs[0], gs[0] ** 2
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True), start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        if update_clipping:
            v = np.maximum(v, eps**2)
        rms = math.sqrt(np.mean(g**2 / np.maximum(v, eps**2)))
        all_rms.append(rms)
        alpha = lr / max(1.0, rms) if update_clipping else lr
        root = np.sqrt(v) / math.sqrt(1 - betas[1] ** t)
        direction = np.vectorize(math.atan2)(m, root) if atan2 else m / (root + eps)
        theta = (1 - lr / peak * decay) * theta - alpha / (1 - betas[0] ** t) * direction
    return theta, all_rms


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("switches", EVERY_WAY, ids=str)
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.95), 1e-6), ((0.6, 0.8), 0.3)])
def test_it_is_its_formulas(switches, skip_first, betas, eps):
    rng = np.random.default_rng(0)
    params = random_params(rng)
    kernel = dict(params)["kernel"]
    kernel.data = np.asfortranarray(kernel.data)
    before, gs = {name: tensor.data.copy() for name, tensor in params}, {name: [] for name in SHAPES}
    peak, lrs = 0.05, rng.uniform(0.0, 0.05, 12)
    optimizer = HuginnAdam(params, peak, betas, eps, weight_decay=0.1, skip_first=skip_first, **switches)
    for step, lr in enumerate(lrs):
        set_grads(params, rng, scale=100.0 if step == 7 else 1.0)
        for name, tensor in params:
            gs[name].append(tensor.grad.copy())
        optimizer.step(lr)
        assert all(np.array_equal(tensor.grad, gs[name][-1]) for name, tensor in params)
    all_rms = []
    for name, tensor in params:
        expected, rms = naive(
            before[name], gs[name][skip_first:], lrs[skip_first:], peak=peak, betas=betas, eps=eps,
            decay=0.1 if name in MATRICES else 0.0, **switches,
        )  # fmt: skip
        np.testing.assert_allclose(tensor.data, expected, rtol=1e-12, atol=1e-13)
        all_rms += rms
    assert min(all_rms) < 0.9 and max(all_rms) > 1.5  # both branches of the clipping were taken


@pytest.mark.parametrize(
    ("running_init", "update_clipping", "atan2", "length"),
    [
        (True, True, True, 2.1998797739545943),  # atan(sqrt(0.05)) / 0.1, and RMS = 1
        (True, False, True, 2.1998797739545943),
        (True, True, False, 2.23606797749979),  # sqrt(0.05) / 0.1
        (False, False, False, 1.0),  # Adam's
        (False, False, True, 0.9966865249116204),  # atan(0.1) / 0.1
        (False, True, False, 0.22360679774997896),  # Adam's over RMS = sqrt(20)
    ],
)
@pytest.mark.parametrize("size", [1e-3, 0.5, 1e3])
def test_the_first_step_by_hand(running_init, update_clipping, atan2, length, size):
    theta = one([3.0, 3.0])
    theta.grad = np.array([size, -size])  # its size does not matter
    on = dict(running_init=running_init, update_clipping=update_clipping, atan2=atan2)
    HuginnAdam([("b", theta)], 0.01, eps=1e-12, skip_first=False, **on).step()
    np.testing.assert_allclose(theta.data, [3.0 - 0.01 * length, 3.0 + 0.01 * length], rtol=1e-9)


@pytest.mark.parametrize("switches", [ALL_ON, ALL_ON | {"update_clipping": False}], ids=["clipped", "not"])
@pytest.mark.parametrize(("second", "factor"), [(3.0, math.sqrt(1.4) / 3.0), (0.5, 1.0)])
def test_the_second_step_by_hand(second, factor, switches):
    """The gradients 1 and then 3: v = 0.95 + 0.05 * 9 = 1.4, RMS = 3 / sqrt(1.4). Or 1 and then 0.5: RMS < 1."""
    theta = one([0.0])
    optimizer = HuginnAdam([("b", theta)], 1.0, skip_first=False, **switches)
    theta.grad = np.array([1.0])
    optimizer.step()
    theta.data[:] = 0.0
    theta.grad = np.array([second])
    optimizer.step()
    root = math.sqrt(0.95 + 0.05 * second**2) / math.sqrt(1 - 0.95**2)
    length = math.atan2(0.9 + 0.1 * second, root) / (1 - 0.9**2)
    expected = length * factor if switches["update_clipping"] else length
    assert -theta.data[0] == pytest.approx(expected, rel=1e-12)


def test_the_second_moment_stays_above_eps_squared():
    theta = one([0.0, 0.0, 0.0])
    optimizer = HuginnAdam([("b", theta)], 0.1, skip_first=False)
    theta.grad = np.array([0.0, 1e-7, 1e-3])
    optimizer.step()
    np.testing.assert_allclose(optimizer.state()["v.b"], [1e-12, 1e-12, 1e-6], rtol=1e-12)


def test_a_leap_shortens_the_step_of_its_own_tensor_only():
    def run(leap):
        params = [("a", one(np.zeros(4))), ("b", one(np.zeros(4)))]
        optimizer = HuginnAdam(params, 0.1, skip_first=False)
        for factor in (1.0, 1.0, leap):
            params[0][1].grad, params[1][1].grad = np.array([1.0, 1.0, 1.0, factor]), np.ones(4)
            optimizer.step()
        return params[0][1].data, params[1][1].data

    (calm, other), (leapt, same) = run(1.0), run(50.0)
    assert (leapt[:3] > calm[:3]).all() and np.array_equal(other, same)  # all entries of a moved down, but less


def test_the_angle_of_a_gradient_does_not_depend_on_its_scale():
    """Powers of two, so that not a bit differs; an eps would show at 2^-60."""
    results = []
    for power in (0, -60, 60):
        rng = np.random.default_rng(1)
        params = random_params(rng)
        optimizer = HuginnAdam(params, 0.1, update_clipping=False)
        for _ in range(4):
            set_grads(params, rng, 2.0**power)
            optimizer.step()
        results.append([tensor.data for _, tensor in params])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


# --- no gradient ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("switches", EVERY_WAY, ids=str)
@pytest.mark.parametrize("eps", [1e-6, 1e-30])  # (1e-30)^2 is 0 in float32
def test_where_the_gradient_is_zero_nothing_moves(switches, dtype, eps):
    params = random_params(np.random.default_rng(2), dtype)
    before = [tensor.data.copy() for _, tensor in params]
    optimizer = HuginnAdam(params, 0.1, eps=eps, weight_decay=0.0, **switches)
    for _ in range(3):
        for _, tensor in params:
            tensor.grad = np.zeros(tensor.shape, dtype)
        optimizer.step()
    assert all(np.array_equal(tensor.data, b) for (_, tensor), b in zip(params, before, strict=True))


@pytest.mark.parametrize("switches", [ALL_ON, ALL_OFF], ids=["on", "off"])
def test_a_late_first_gradient_is_the_first_of_its_parameter(switches):
    """Neither the skipped step nor the count of the others is its own."""
    rng = np.random.default_rng(3)
    params, alone = random_params(rng), random_params(np.random.default_rng(3))[:1]
    w = params[0][1]
    optimizer, fresh = HuginnAdam(params, 0.1, **switches), HuginnAdam(alone, 0.1, skip_first=False, **switches)
    for _ in range(5):
        set_grads(params, rng)
        w.grad = None
        optimizer.step()
    assert np.array_equal(w.data, alone[0][1].data)
    set_grads(params, rng)
    alone[0][1].grad = w.grad
    optimizer.step()
    fresh.step()
    assert np.array_equal(w.data, alone[0][1].data) and optimizer.state()["t.w"] == 1


def test_the_first_step_is_skipped_as_a_whole():
    rng = np.random.default_rng(4)
    params, others = random_params(rng), random_params(np.random.default_rng(4))
    before = [tensor.data.copy() for _, tensor in params]
    skipping, not_skipping = HuginnAdam(params, 0.1), HuginnAdam(others, 0.1, skip_first=False)
    set_grads(params, rng, 100.0)
    skipping.step()
    assert all(np.array_equal(tensor.data, b) for (_, tensor), b in zip(params, before, strict=True))
    assert not any(array.any() for array in skipping.state().values())  # as if there had been no gradient
    for _ in range(3):
        set_grads(params, rng)
        for (_, a), (_, b) in zip(params, others, strict=True):
            b.grad = a.grad
        skipping.step()
        not_skipping.step()
        assert all(np.array_equal(a.data, b.data) for (_, a), (_, b) in zip(params, others, strict=True))


# --- decay ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peak", [1e-4, 0.2])
def test_the_decay_is_a_share_per_step_whatever_the_peak_is(peak):
    params = random_params(np.random.default_rng(5))
    before = {name: tensor.data.copy() for name, tensor in params}
    optimizer = HuginnAdam(
        params, peak, weight_decay=0.25, scale=lambda name: 2.0 if name == "kernel" else 1.0, skip_first=False
    )
    for lr in (None, peak / 2):
        for _, tensor in params:
            tensor.grad = np.zeros(tensor.shape)
        optimizer.step(lr)
    left = {"w": 0.75 * 0.875, "kernel": 0.5 * 0.75}  # a rate of its own means a decay of its own, as in AdamW
    for name, tensor in params:
        np.testing.assert_allclose(tensor.data, before[name] * left.get(name, 1.0), rtol=1e-14)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lr": 0.0}, "lr must be positive, got 0"),
        ({"lr": -1.0}, "lr must be 0 or more"),
        ({"weight_decay": 1.5}, "weight_decay is a share per step, expected 0 to 1, got 1.5"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"eps": 0.0}, "eps"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        HuginnAdam(**{"params": random_params(np.random.default_rng(0)), "lr": 0.1} | settings)
