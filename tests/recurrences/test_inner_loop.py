"""What holds for TTT-Linear and TTT-MLP alike: three forms, any cut, checkpoints, memory, extremes, refusals."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.check import assert_close, gradcheck
from tinyrec.ops import concat, getitem
from tinyrec.recurrences import inner_loop, ttt_linear, ttt_mlp
from tinyrec.tape import SecondOrderError, Tensor
from tinyrec.walk import grad

MODULES = {"linear": ttt_linear, "mlp": ttt_mlp}
OPS = {"linear": ttt_linear.ttt_linear, "mlp": ttt_mlp.ttt_mlp}
KINDS = pytest.mark.parametrize("kind", OPS)


def parts(args):
    """Of the arguments: those with a time axis, those without, the state."""
    return args[:4], args[4:7], args[7:]


# --- the forms --------------------------------------------------------------------------------------------------------


@KINDS
@settings(max_examples=40)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(3, 6), st.integers(1, 5)),
    at=st.integers(0, 4),
    use=st.sampled_from([(0,), (1, 2), (3, 4), None]),
    checkpoint=st.integers(0, 3),
    group=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_fused_equals_naive(assert_same, ttt_arguments, kind, sizes, at, use, checkpoint, group, seed):
    args, at = ttt_arguments(kind, seed, *sizes), at % sizes[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inner_loop, "GROUP", group)
        fused = partial(OPS[kind], at=at, checkpoint=checkpoint)
        assert_same(fused, partial(MODULES[kind].naive, at=at), *args, use=use, tol=1e-9)


@KINDS
@pytest.mark.parametrize("sizes", [(2, 75, 3, 8, 8), (1, 40, 2, 7, 3), (3, 11, 1, 5, 16)])
def test_three_forms_agree_over_many_mini_batches(assert_same, ttt_arguments, kind, sizes):
    args, module = ttt_arguments(kind, 1, *sizes), MODULES[kind]
    for at in (0, sizes[-1] - 1):
        assert_same(OPS[kind], module.primal, *args, at=at, tol=1e-8)
    assert_same(module.naive, module.primal, *args, at=1, tol=1e-8)


@KINDS
def test_gradients_agree_with_finite_differences(ttt_arguments, kind):
    for sizes, at in (((2, 7, 3, 8, 4), 2), ((1, 5, 2, 9, 7), 3), ((3, 1, 2, 8, 1), 0)):
        for checkpoint in (0, 1):
            read = partial(OPS[kind], at=at, checkpoint=checkpoint)
            assert gradcheck(read, *ttt_arguments(kind, 2, *sizes)).first < 1e-7


@KINDS
@settings(max_examples=25)
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6), at=st.integers(0, 3), seed=st.integers(0, 9))
def test_cut_anywhere_and_chained(assert_same, ttt_arguments, kind, pieces, at, seed):
    def chained(*args):
        over_time, fixed, state = parts(args)
        start, place, zs = 0, at, []
        for n in pieces:
            piece = (getitem(x, index=(slice(None), slice(start, start + n))) for x in over_time)
            z, *state = OPS[kind](*piece, *fixed, *state, at=place)
            zs.append(z)
            start, place = start + n, (place + n) % 4
        return concat(*zs, axis=1), *state

    args = ttt_arguments(kind, seed, 2, sum(pieces), 3, 5, 4)
    for use in ((0,), (1, 2), None):
        assert_same(chained, partial(OPS[kind], at=at), *args, use=use, tol=1e-9)


@KINDS
def test_a_token_changes_nothing_before_it_and_all_after_it(ttt_arguments, kind):
    args = ttt_arguments(kind, 3, 1, 9, 2, 5, 4)
    z = OPS[kind](*args, at=1)[0]
    for t in range(9):
        for i in (1, 2, 3):  # k, v, lam
            other = [x.copy() for x in args]
            other[i][:, t] *= 1.5
            changed = (OPS[kind](*other, at=1)[0] != z).any(axis=(0, 2, 3))
            assert changed.tolist() == [s >= t for s in range(9)]


# --- checkpoints and memory -------------------------------------------------------------------------------------------


@KINDS
def test_reading_again_gives_the_same_bits(outputs_and_gradients, monkeypatch, ttt_arguments, kind):
    monkeypatch.setattr(inner_loop, "GROUP", 2)
    args = ttt_arguments(kind, 4, 2, 31, 3, 5, 4)
    kept, again = (outputs_and_gradients(partial(OPS[kind], at=3, checkpoint=n), *args) for n in (0, 2))
    for x, y in zip(kept, again, strict=True):
        assert (x == y).all()


def held(op, args, **static):
    """Bytes that the tape holds after the forward, and the highest number of bytes in forward and backward."""
    leaves = [Tensor(x, requires_grad=True) for x in args]
    g = np.ones(args[0].shape, args[0].dtype)
    tracemalloc.start()
    z, *_ = op(*leaves, **static)
    after = tracemalloc.get_traced_memory()[0]
    grad(z, leaves, g)
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return after, highest


@KINDS
def test_checkpoints_save_memory(ttt_arguments, kind):
    args = ttt_arguments(kind, 5, 2, 512, 2, 16, 16, "float32")
    (everything, highest), (states, lowest) = (held(OPS[kind], args, checkpoint=n) for n in (0, 4))
    one = args[0].nbytes
    assert states < 3.5 * one  # z and one state, of about one array like q, in four mini-batches
    assert everything > 3 * states and lowest < 0.8 * highest


# --- extremes and float32 ---------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("rate", [0.0, 1e-6, 1e3])
def test_extreme_sizes_and_rates_stay_finite_without_warnings(
    outputs_and_gradients, ttt_arguments, kind, dtype, scale, rate
):
    args = ttt_arguments(kind, 6, 2, 13, 2, 5, 4, dtype)
    for i in (0, 1, 2):
        args[i] *= scale
    args[3][:] = rate
    results = outputs_and_gradients(partial(OPS[kind], at=1), *args)
    assert all(np.isfinite(x).all() and x.dtype == dtype for x in results)


@KINDS
def test_rows_that_are_constant_have_finite_gradients(outputs_and_gradients, ttt_arguments, kind):
    """k w + b = const: LayerNorm divides by sqrt(eps)."""
    args = ttt_arguments(kind, 7, 2, 9, 2, 5, 4)
    for x in args[7:]:
        x[:] = 0.0
    assert all(np.isfinite(x).all() for x in outputs_and_gradients(partial(OPS[kind], at=1), *args))


@KINDS
def test_float32_is_close_to_float64(outputs_and_gradients, ttt_arguments, kind):
    args = ttt_arguments(kind, 8, 2, 40, 3, 16, 8)
    exact = outputs_and_gradients(partial(OPS[kind], at=3), *args)
    close = outputs_and_gradients(partial(OPS[kind], at=3), *(x.astype("float32") for x in args))
    for x, y in zip(close, exact, strict=True):
        assert x.dtype == np.float32
        assert_close(x, y, 2e-4)  # five mini-batches of rounding, each divided by a deviation; 3e-5 is the worst seen


# --- manners ----------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("checkpoint", [0, 1])
@pytest.mark.parametrize("sizes", [(1, 4, 3, 5, 4), (3, 1, 2, 4, 2), (2, 11, 3, 5, 4)])
def test_inputs_and_cotangents_are_not_modified(ttt_arguments, kind, sizes, checkpoint):
    args, others = (ttt_arguments(kind, seed, *sizes) for seed in (9, 10))
    gs = (others[0], *others[7:])
    before = [x.copy() for x in (*args, *gs)]
    outs, saved = OPS[kind].op.forward(*args, at=1, checkpoint=checkpoint)
    outputs = [y.copy() for y in outs]
    gradients = OPS[kind].op.backward(gs, *saved)
    again = OPS[kind].op.backward(gs, *saved)
    for x, old in zip((*args, *gs, *outs), (*before, *outputs), strict=True):
        assert (x == old).all()
    for x, y in zip(gradients, again, strict=True):  # so what was saved is as it was
        assert (x == y).all() and not any(np.shares_memory(x, other) for other in (*args, *gs))


@KINDS
def test_a_second_derivative_is_refused_and_the_naive_form_named(ttt_arguments, kind):
    leaves = [Tensor(x, requires_grad=True) for x in ttt_arguments(kind, 11, 1, 3, 2, 4, 2)]
    z, *_ = OPS[kind](*leaves)
    with pytest.raises(SecondOrderError, match=rf"use its naive twin tinyrec\.recurrences\.ttt_{kind}\.naive"):
        grad(z.sum(), leaves, create_graph=True)


@KINDS
@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (1, lambda x: x[:, 1:], "q, k and v of one shape"),
        (0, lambda x: x[0], "q, k and v of one shape"),
        (3, lambda x: x[..., None], r"expected lam \(2, 5, 3\), tau \(K,\), gain and bias \(3, 4\)"),
        (5, lambda x: x[0], r"gain and bias \(3, 4\)"),
        (7, lambda x: x[..., 1:], r"expected matrices \(2, 3, n, m\) and biases \(2, 3, m\) that lead from 4 feat"),
        (8, lambda x: x[..., 1:], "that lead from 4 features to 4"),
        (-1, lambda x: x[0], "and sums of the same shapes"),
    ],
)
def test_wrong_shapes_are_refused(ttt_arguments, kind, number, change, message):
    args = ttt_arguments(kind, 12, 2, 5, 3, 4, 2)
    args[number] = change(args[number])
    with pytest.raises(ValueError, match=rf"^ttt_{kind}\(q \(.*\): .*{message}"):
        OPS[kind](*args)


@KINDS
def test_wrong_places_are_refused(ttt_arguments, kind):
    args = ttt_arguments(kind, 13, 2, 5, 3, 4, 2)
    with pytest.raises(ValueError, match="at, the tokens read of a mini-batch of 2, must be 0 to 1, got 2"):
        OPS[kind](*args, at=2)
    with pytest.raises(ValueError, match="checkpoint must be 0 or a number of mini-batches, got -1"):
        OPS[kind](*args, checkpoint=-1)
    empty = [x[:, :0] if i < 4 else x for i, x in enumerate(args)]
    with pytest.raises(ValueError, match="T >= 1"):
        OPS[kind](*empty)


def test_segments_cover_every_token_once():
    for time in range(1, 30):
        for size in (1, 4, 7):
            for at in range(size):
                for most in (1, 2, 100):
                    cuts = list(inner_loop.segments(time, size, at, most))
                    read = [t for cut, _ in cuts for t in range(cut.start, cut.stop)]
                    assert read == list(range(time))
                    for cut, place in cuts:
                        assert (at + cut.start) % size == place.start
                        mini_batches, rest = divmod(cut.stop - cut.start, place.stop - place.start)
                        assert rest == 0 and mini_batches <= most
                        assert mini_batches == 1 or (place.start, place.stop) == (0, size)


