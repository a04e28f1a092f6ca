"""AdamW against the equations written naively and against PyTorch."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec.optim import AdamW, clip_by_global_norm, is_matrix
from tinyrec.tape import Tensor

SHAPES = {"w": (4, 3), "b": (5,), "scale": (), "kernel": (2, 3, 2)}


def random_params(rng, shapes=SHAPES, dtype=np.float64):
    return [(name, Tensor(np.asarray(rng.normal(size=s), dtype), requires_grad=True)) for name, s in shapes.items()]


def set_grads(params, rng, scale=1.0):
    for _, tensor in params:
        tensor.grad = np.asarray(scale * rng.normal(size=tensor.shape), tensor.dtype)


def values(params):
    return {name: tensor.data.copy() for name, tensor in params}


def naive_adamw(theta, gs, lrs, betas, eps, decay):
    """Algorithm 2 of the paper, one line after the other, nothing in place."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True), start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat = m / (1 - betas[0] ** t)
        v_hat = v / (1 - betas[1] ** t)
        theta = theta - lr * (m_hat / (np.sqrt(v_hat) + eps) + decay * theta)
    return theta


@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 6),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.9999)),
    eps=st.floats(1e-12, 1e-1),
    decay=st.floats(0, 1),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_adamw_is_algorithm_2(seed, steps, betas, eps, decay, scale):
    rng = np.random.default_rng(seed)
    params = random_params(rng)
    before, gs, lrs = values(params), {name: [] for name in SHAPES}, rng.uniform(0, 0.1, steps)
    optimizer = AdamW(params, lr=123.0, betas=betas, eps=eps, weight_decay=decay)
    for lr in lrs:
        set_grads(params, rng, scale)
        for name, tensor in params:
            gs[name].append(tensor.grad.copy())
        optimizer.step(lr)
    for name, tensor in params:
        decayed = decay if name in ("w", "kernel") else 0.0
        expected = naive_adamw(before[name], gs[name], lrs, betas, eps, decayed)
        np.testing.assert_allclose(tensor.data, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_adamw_is_pytorchs(dtype, tolerance):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    params = random_params(rng, dtype=dtype)
    theirs = {name: torch.nn.Parameter(torch.tensor(tensor.data)) for name, tensor in params}
    groups = [
        {"params": [theirs["w"], theirs["kernel"]], "weight_decay": 0.3},
        {"params": [theirs["b"], theirs["scale"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.97), eps=1e-7)
    optimizer = AdamW(params, lr=0.02, betas=(0.8, 0.97), eps=1e-7, weight_decay=0.3)
    for step in range(30):
        set_grads(params, rng)
        if step % 3 == 1:
            dict(params)["b"].grad = None  # both skip a parameter that has no gradient
        for name, tensor in params:
            theirs[name].grad = None if tensor.grad is None else torch.tensor(tensor.grad)
        optimizer.step()
        reference.step()
    for name, tensor in params:
        np.testing.assert_allclose(tensor.data, theirs[name].detach().numpy(), rtol=tolerance, atol=tolerance)


def test_float32_stays_float32_whatever_the_settings_are():
    """One np.float64 among the constants would promote all of it."""
    rng = np.random.default_rng(2)
    params = random_params(rng, dtype=np.float32)
    optimizer = AdamW(params, np.float64(0.1), (np.float64(0.9), np.float64(0.95)), np.float64(1e-8), np.float64(0.1))
    set_grads(params, rng)
    clip_by_global_norm(params, np.float64(0.01))
    assert {tensor.grad.dtype for _, tensor in params} == {np.dtype(np.float32)}
    optimizer.step(np.float64(0.1))
    assert {tensor.dtype for _, tensor in params} == {np.dtype(np.float32)}
    moments = {key: array.dtype for key, array in optimizer.state().items() if not key.startswith("t.")}
    assert len(moments) == 8 and set(moments.values()) == {np.dtype(np.float32)}


def test_a_step_works_in_place_and_allocates_nothing_large():
    rng = np.random.default_rng(3)
    params = random_params(rng, {"w": (300, 400), "v": (200, 100), "b": (400,)}, np.float32)
    set_grads(params, rng)
    arrays, grads = [t.data for _, t in params], [t.grad for _, t in params]
    copies = [g.copy() for g in grads]
    optimizer = AdamW(params, 0.1)
    optimizer.step()  # makes the scratch buffer
    tracemalloc.start()
    optimizer.step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000  # bytes; w alone has 480,000
    assert all(t.data is a for (_, t), a in zip(params, arrays, strict=True))
    assert all(np.array_equal(g, copy) for g, copy in zip(grads, copies, strict=True))


def test_transposed_parameters_and_gradients():
    rng = np.random.default_rng(4)
    w, g = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    results = []
    for w_order, g_order in ("CC", "CF", "FC", "FF"):
        tensor = Tensor(np.array(w, order=w_order), requires_grad=True)
        tensor.grad = np.array(g, order=g_order)
        AdamW([("w", tensor)], 0.1).step()
        results.append(tensor.data)
    assert all(np.array_equal(result, results[0]) for result in results[1:])


def test_parameters_of_two_dtypes():
    rng = np.random.default_rng(5)
    params = [*random_params(rng, {"a": (2, 3)}, np.float32), *random_params(rng, {"b": (4, 5)}, np.float64)]
    set_grads(params, rng)
    AdamW(params, 0.1).step()
    assert [t.dtype for _, t in params] == [np.float32, np.float64]


def test_a_parameter_without_gradient_is_left_alone_and_starts_fresh_when_it_gets_one():
    rng = np.random.default_rng(6)
    params = random_params(rng)
    optimizer = AdamW(params, 0.1, weight_decay=0.5)
    w = dict(params)["w"]
    before = w.data.copy()
    for _ in range(20):
        set_grads(params, rng)
        w.grad = None
        optimizer.step()
    assert np.array_equal(w.data, before)
    w.grad = g = np.full(w.shape, 1e-3)
    optimizer.step()
    np.testing.assert_allclose(w.data, naive_adamw(before, [g], [0.1], (0.9, 0.95), 1e-8, 0.5), rtol=1e-12)


def test_what_decays_is_the_callers_choice():
    rng = np.random.default_rng(7)
    for decays, decayed in [(is_matrix, {"w", "kernel"}), (lambda name, _: name.startswith("s"), {"scale"})]:
        params = random_params(rng)
        before = values(params)
        for _, tensor in params:
            tensor.grad = np.zeros(tensor.shape)  # without a gradient's pull only the decay moves it
        AdamW(params, 0.1, weight_decay=0.5, decays=decays).step()
        for name, tensor in params:
            np.testing.assert_allclose(tensor.data, before[name] * (0.95 if name in decayed else 1.0), rtol=1e-15)


def test_a_parameter_may_have_a_rate_of_its_own():
    both = [random_params(np.random.default_rng(7)) for _ in range(2)]
    for params in both:
        for name, tensor in params:
            tensor.grad = np.random.default_rng(len(name)).standard_normal(tensor.shape)
    AdamW(both[0], 0.1, weight_decay=0.5, scale=lambda name: {"w": 3.0, "scale": 0.0}.get(name, 1.0)).step()
    for (name, tensor), alone in zip(both[0], both[1], strict=True):
        AdamW([alone], {"w": 0.1 * 3.0, "scale": 0.0}.get(name, 0.1), weight_decay=0.5).step()
        assert (tensor.data == alone[1].data).all(), name


def test_zero_grad_forgets():
    params = random_params(np.random.default_rng(8))
    optimizer = AdamW([*params, ("frozen", Tensor(np.ones(3)))], 0.1)
    set_grads(params, np.random.default_rng(9))
    optimizer.zero_grad()
    assert [tensor.grad for _, tensor in params] == [None] * len(params)


def test_state_goes_on_bit_for_bit():
    def run(steps, params, optimizer, rng):
        for _ in range(steps):
            set_grads(params, rng)
            optimizer.step()

    rng = np.random.default_rng(10)
    params = random_params(rng, dtype=np.float32)
    optimizer = AdamW(params, 0.1)
    run(3, params, optimizer, rng)
    saved, parameters_then, rng_then = optimizer.state(), values(params), rng.bit_generator.state
    run(4, params, optimizer, rng)  # `saved` must not see this

    again = [(name, Tensor(parameters_then[name], requires_grad=True)) for name, _ in params]
    other = AdamW(again, 0.1)
    other.load_state(saved)
    assert all(np.array_equal(array, saved[key]) for key, array in other.state().items())
    rng.bit_generator.state = rng_then
    run(4, again, other, rng)
    for (_, a), (_, b) in zip(params, again, strict=True):
        assert a.data.tobytes() == b.data.tobytes()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("m.w"), r"m\.w is not in both"),
        (lambda state: state.update({"m.x": np.zeros(3)}), r"m\.x is not in both"),
        (lambda state: state.update({"v.w": np.ones((3, 4))}), r"v\.w is float64 \(3, 4\), expected float64 \(4, 3\)"),
        (lambda state: state.update({"v.w": np.ones((4, 3), np.float32)}), r"v\.w is float32"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, complaint):
    params = random_params(np.random.default_rng(11))
    optimizer = AdamW(params, 0.1)
    state = {key: np.asarray(array + 1, array.dtype) for key, array in optimizer.state().items()}
    change(state)
    with pytest.raises(ValueError, match=complaint):
        optimizer.load_state(state)
    assert not any(array.any() for array in optimizer.state().values())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lr": -1.0}, "lr must be 0 or more"),
        ({"lr": math.nan}, "lr must be 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": 0.0}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"params": []}, "no parameters"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        AdamW(**{"params": random_params(np.random.default_rng(0)), "lr": 0.1} | settings)


def test_bad_lists_and_gradients_are_refused():
    w, x = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.ones((2, 3)), requires_grad=True)
    with pytest.raises(ValueError, match="two parameters have the name 'w'"):
        AdamW([("w", w), ("w", x)], 0.1)
    with pytest.raises(ValueError, match="under two names"):
        AdamW([("w", w), ("head", w)], 0.1)
    optimizer = AdamW([("w", w)], 0.1)
    w.grad = np.ones((2, 1))  # would broadcast
    with pytest.raises(ValueError, match=r"gradient of w has shape \(2, 1\), the parameter has \(2, 3\)"):
        optimizer.step()
    with pytest.raises(ValueError, match="lr"):
        optimizer.step(math.inf)
