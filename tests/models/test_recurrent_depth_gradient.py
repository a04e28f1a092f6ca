"""The truncated gradient of the recurrent-depth transformer: what it is, what it is not, and what it costs."""

import tracemalloc

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.models import build, make_config
from tinyrec.models.recurrent_depth import Unrolling
from tinyrec.nn import parameters
from tinyrec.ops import cross_entropy
from tinyrec.parallel import loss_and_grads
from tinyrec.tape import Tensor, no_grad
from tinyrec.walk import grad

TOKENS, TARGETS = np.random.default_rng([4, 0]).integers(0, 11, (2, 3, 7))
START = 0.6 * np.random.default_rng([4, 1]).standard_normal((3, 7, 8))


def gradients(model, steps, grad_steps, start=START, tokens=TOKENS):
    """The loss, and the gradient of every parameter by name."""
    names, tensors = zip(*parameters(model), strict=True)
    logits = model(tokens, steps=steps, grad_steps=grad_steps, initial_state=start)
    loss = cross_entropy(logits, TARGETS)
    return loss.data, dict(zip(names, grad(loss, tensors), strict=True))


def assert_equal(ours, theirs):
    assert ours[0] == theirs[0] and ours[1].keys() == theirs[1].keys()
    for name, g in theirs[1].items():
        assert np.array_equal(ours[1][name], g), name


def state_after(model, n):
    """s_n, a constant."""
    thought = Unrolling(model, TOKENS, start=START)
    with no_grad():
        for _ in range(n):
            thought.iterate()
    return np.array(getattr(thought.s, "data", thought.s))


VARIANTS = [{}, {"block": "pre-norm"}, {"injection": "add", "norm_gain": False}, {"recompute": True}]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 2), (5, 3), (4, 0)])
def test_truncated_is_the_whole_gradient_from_the_constant_s_n(tiny, options, n, k):
    """Not close but equal: the same operations on the same numbers."""
    model = tiny("recurrent-depth", **options)
    truncated = gradients(model, n + k, k)
    assert_equal(truncated, gradients(model, k, None, state_after(model, n)))
    assert_equal(truncated, gradients(model, k, k, state_after(model, n)))


@pytest.mark.parametrize("k", [4, 5, 100])
def test_as_many_recorded_iterations_as_there_are_give_the_whole_gradient(tiny, k):
    model = tiny("recurrent-depth")
    assert_equal(gradients(model, 4, k), gradients(model, 4, None))


def test_silent_iterations_change_the_gradient_and_not_the_loss(tiny):
    model = tiny("recurrent-depth")
    whole, truncated = gradients(model, 6, None), gradients(model, 6, 2)
    assert whole[0] == truncated[0]
    flat = [np.concatenate([g.ravel() for g in gs.values()]) for _, gs in (whole, truncated)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert 0.5 < cosine < 0.999  # another vector, but a descent direction


def slope(model, tensor, steps, u):
    """d loss / dt of tensor + t u at t = 0, from central differences of fourth order."""
    kept, losses = tensor.data.copy(), {}
    for step in (-2, -1, 1, 2):
        tensor.data[...] = kept + 1e-4 * step * u
        with no_grad():
            losses[step] = cross_entropy(model(TOKENS, steps=steps, initial_state=START), TARGETS).item()
    tensor.data[...] = kept
    return (8.0 * (losses[1] - losses[-1]) - (losses[2] - losses[-2])) / 12e-4


def test_finite_differences_agree_with_the_whole_gradient_only(tiny):
    """Coda and last norm come after all iterations, so their gradient is whole however few are recorded."""
    model = tiny("recurrent-depth")
    rng = np.random.default_rng(5)
    (_, whole), (_, truncated) = gradients(model, 5, 5), gradients(model, 5, 2)
    for name, tensor in parameters(model):
        u = rng.standard_normal(tensor.shape)
        u /= np.linalg.norm(u)
        numeric, size = slope(model, tensor, 5, u), np.linalg.norm(whole[name]) / tensor.size**0.5
        # The step's own error is 1e-16, the losses' rounding 1e-15 / 1e-4.
        assert abs((whole[name] * u).sum() - numeric) < 1e-7 * size, name
        after = name.startswith(("coda", "norm"))
        assert (abs((truncated[name] * u).sum() - numeric) < 1e-7 * size) == after, name
        assert np.array_equal(truncated[name], whole[name]) == after, name


def test_what_is_read_gets_its_gradient_through_the_recorded_iterations_only(tiny):
    """By hand, with one copy of e for each iteration: the last k of their gradients, added, are that of e."""
    n, k, model = 3, 2, tiny("recurrent-depth", n_prelude=2)
    thought = Unrolling(model, TOKENS, start=START)
    copies = [Tensor(thought.e.data, requires_grad=True) for _ in range(n + k)]
    s = START
    for i, e in enumerate(copies):
        if i == n:
            s = s.detach()
        s, _ = model.iterate(s, model.inject(e), thought.rotation, None)
    y, _ = model.finish(model.norm(s), thought.rotation, None)
    of_each = grad(cross_entropy(model.head(y), TARGETS), copies)
    assert [bool(g.any()) for g in of_each] == [False] * n + [True] * k
    names, tensors = zip(*((f"prelude.{name}", p) for name, p in parameters(model.prelude)), strict=True)
    _, truncated = gradients(model, n + k, k)
    for name, g in zip(names, grad(thought.e, tensors, sum(of_each)), strict=True):
        assert_close(g, truncated[name], 1e-12, name)  # the k products with A_e are added in another order


# --- the same gradients, computed otherwise ---------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(0, 1), (3, 2), (0, 5)])
def test_recomputing_gives_the_same_gradients(tiny, n, k):
    kept, again = (gradients(tiny("recurrent-depth", recompute=flag), n + k, k) for flag in (False, True))
    assert kept[0] == again[0]
    for name, g in kept[1].items():
        assert_close(again[1][name], g, 1e-13, name)  # sums over iterations, in another order


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("threads", [2, 3])
def test_a_batch_shared_among_threads_gives_the_same_gradients(tiny, threads, recompute):
    model = tiny("recurrent-depth", recompute=recompute)
    inputs = model.draw(np.random.default_rng(6), 3, 7, steps=5)  # the start is split as the batch is
    found = []
    for n in (1, threads):
        for _, tensor in parameters(model):
            tensor.grad = None
        loss = loss_and_grads(model, TOKENS, TARGETS, threads=n, **inputs)
        found.append((loss, {name: tensor.grad for name, tensor in parameters(model)}))
    plain = gradients(model, 5, 2, inputs["initial_state"])
    for loss, of_parameters in found:
        assert loss == pytest.approx(plain[0], rel=1e-14)
        for name, g in of_parameters.items():
            assert_close(g, plain[1][name], 1e-12, name)


# --- memory -----------------------------------------------------------------------------------------------------------


def peak(n, k, recompute=False):
    """Bytes that one forward and backward takes at its peak, in a model that is there already."""
    sizes = dict(vocab_size=16, d_model=32, n_heads=2, d_mlp=64, recompute=recompute)
    model = build("recurrent-depth", make_config("recurrent-depth", **sizes), np.random.default_rng(0))
    tokens = np.random.default_rng(1).integers(0, 16, (4, 16))
    tensors = [tensor for _, tensor in parameters(model)]
    tracemalloc.start()
    grad(cross_entropy(model(tokens, steps=n + k, grad_steps=k), tokens), tensors)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_memory_does_not_grow_with_the_silent_iterations():
    peak(4, 4)  # what is made at the first call and kept
    assert peak(124, 4) == pytest.approx(peak(4, 4), rel=0.005)  # one iteration takes 16 % of it


def test_memory_grows_by_the_same_amount_with_each_recorded_iteration():
    peak(0, 4)
    most = {k: peak(0, k) for k in (4, 8, 16, 32)}
    grown = [(most[2 * k] - most[k]) / k for k in (4, 8, 16)]
    assert min(grown) > 0.95 * max(grown)  # not all peak at the same place in an iteration; 3 % were seen
    recomputed = {k: peak(0, k, recompute=True) for k in (8, 32)}
    one_state = 4 * 16 * 32 * 4
    # Of an iteration that is computed again only its input is kept, and a node of the tape, some 2 kB.
    assert one_state < (recomputed[32] - recomputed[8]) / 24 < 1.5 * one_state < 0.1 * grown[0]
    assert recomputed[32] < 0.3 * most[32]
