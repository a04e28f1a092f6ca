"""Loss and gradients with the batch split over threads or processes: the same as without, whatever happens there."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tinyrec.check import assert_close
from tinyrec.models import build, make_config
from tinyrec.nn import parameters
from tinyrec.ops import cross_entropy, embedding, where
from tinyrec.parallel import WorkerError, loss_and_grads, sharing
from tinyrec.tape import NonFiniteError, Tensor, nan_check, op

SIZES = dict(vocab_size=11, d_model=8, d_rnn=12, n_heads=2, gate_blocks=3, window=3)


def make(name="griffin", dtype="float64"):
    return build(name, make_config(name, **SIZES), np.random.default_rng(0), dtype)


def batch(rows=5, time=7):
    """tokens, targets with a few that are not scored, unevenly over the rows."""
    tokens, targets = np.random.default_rng(1).integers(0, 11, (2, rows, time))
    targets[0] = -1
    targets[1, 2:] = -1
    return tokens, targets


def gradients(model):
    return {name: tensor.grad for name, tensor in parameters(model)}


def plain(model, tokens, targets):
    loss = cross_entropy(model(tokens), targets)
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("name", ["hawk", "griffin", "transformer"])
def test_equals_the_plain_backward_for_any_number_of_threads(name, threads):
    tokens, targets = batch()
    expected_loss, expected = plain(make(name), tokens, targets)
    model = make(name)
    loss = loss_and_grads(model, tokens, targets, threads)
    assert type(loss) is float and loss == pytest.approx(expected_loss, rel=1e-13)
    for key, g in gradients(model).items():
        assert_close(g, expected[key], 1e-12, key)


def test_every_target_weighs_the_same_wherever_it_stands():
    """The mean is over the scored targets of the whole batch, not a mean of the threads' means."""
    tokens, targets = batch(2, 7)
    targets[0, :-1], targets[1] = -1, 3  # one target in the first row, seven in the second
    targets[0, -1] = 5
    whole = loss_and_grads(make(), tokens, targets, threads=2)
    rows = [loss_and_grads(make(), tokens[n : n + 1], targets[n : n + 1]) for n in range(2)]
    assert whole == pytest.approx((rows[0] + 7 * rows[1]) / 8, rel=1e-13)
    assert whole != pytest.approx((rows[0] + rows[1]) / 2, rel=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_are_added_and_scaled_and_the_loss_is_not(threads):
    tokens, targets = batch()
    _, once = plain(make(), tokens, targets)
    model = make()
    first = loss_and_grads(model, tokens, targets, threads, scale=0.25)
    kept = gradients(model)
    copies = {key: g.copy() for key, g in kept.items()}
    second = loss_and_grads(model, tokens, targets, threads, scale=0.5)
    assert first == second
    for key, g in gradients(model).items():
        assert_close(g, 0.75 * once[key], 1e-12, key)
        assert (kept[key] == copies[key]).all()  # whoever holds the old gradient still has it


@pytest.mark.parametrize("threads", [1, 2])
def test_float32_stays(threads):
    model = make(dtype="float32")
    loss_and_grads(model, *batch(), threads=threads, scale=0.5)
    assert {g.dtype for g in gradients(model).values()} == {np.dtype("float32")}


def test_one_answer_every_time():
    results = []
    for _ in range(3):
        model = make(dtype="float32")
        loss = loss_and_grads(model, *batch(), threads=3)
        results.append((loss, [g.tobytes() for g in gradients(model).values()]))
    assert results[0] == results[1] == results[2]


class Bigram:
    """Logits are rows of a table; it notes the threads it runs in and what BLAS may use there."""

    def __init__(self):
        self.table = Tensor(np.random.default_rng(2).standard_normal((11, 11)), requires_grad=True)
        self.seen = []
        self.barrier = None

    def __call__(self, tokens):
        if self.barrier:
            self.barrier.wait(timeout=20)
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        self.seen.append((threading.get_ident(), len(tokens), max(blas, default=1)))
        if (tokens == 10).any():
            raise ValueError("token 10 is not liked")
        return embedding(self.table, tokens)


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_shards_run_side_by_side_with_one_blas_thread_each_and_blas_is_restored():
    tokens = np.arange(20).reshape(5, 4) % 10
    model = Bigram()
    model.barrier = threading.Barrier(2)  # passes only if two threads are in the model at once
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        loss_and_grads(model, tokens, tokens, threads=2)
        assert blas_threads() == before
    assert len({ident for ident, _, _ in model.seen}) == 2
    assert sorted(rows for _, rows, _ in model.seen) == [2, 3]
    assert {blas for _, _, blas in model.seen} == {1}


def test_one_thread_stays_in_the_caller_with_all_of_blas():
    tokens = np.arange(20).reshape(5, 4) % 10
    model = Bigram()
    with threadpool_limits(2, user_api="blas"):
        loss_and_grads(model, tokens, tokens, threads=1)
        assert model.seen == [(threading.get_ident(), 5, max(blas_threads(), default=1))]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_thread_reaches_the_caller_and_blas_is_restored(threads):
    tokens = np.zeros((4, 3), int)
    tokens[3, 1] = 10
    model = Bigram()
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with pytest.raises(ValueError, match="token 10 is not liked"):
            loss_and_grads(model, tokens, tokens, threads=threads)
        assert blas_threads() == before
    assert model.table.grad is None


@pytest.mark.parametrize("threads", [1, 2])
def test_nan_check_reaches_the_threads(threads):
    tokens = np.zeros((4, 3), int)
    model = Bigram()
    model.table.data[0, 0] = np.nan
    assert np.isnan(loss_and_grads(model, tokens, tokens, threads=threads))  # nobody checks
    with nan_check(), pytest.raises(NonFiniteError, match="op 'embedding'"):
        loss_and_grads(model, tokens, tokens, threads=threads)


def test_nothing_to_score_is_refused():
    tokens, _ = batch()
    with pytest.raises(ValueError, match="no target is scored: every entry of targets is -1"):
        loss_and_grads(make(), tokens, np.full(tokens.shape, -1), threads=2)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_floating_point_modes_hold_in_every_thread(threads):
    @op
    def overflows(x):
        return np.exp(x + 1000.0), ()

    @overflows.vjp
    def overflows_vjp(g):
        return g * 0.0

    class Overflowing:
        def __init__(self):
            self.w = Tensor(np.zeros(5), requires_grad=True)

        def __call__(self, tokens):
            return where(tokens[..., None] < 0, overflows(self.w), self.w)

    tokens = np.ones((4, 3), int)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        loss_and_grads(Overflowing(), tokens, tokens, threads=threads)
    with np.errstate(over="ignore"):
        assert loss_and_grads(Overflowing(), tokens, tokens, threads=threads) == pytest.approx(np.log(5.0))


# --- processes --------------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere `sharing` uses threads")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def pids(run):
    """The worker processes behind what `sharing` gives."""
    return [process.pid for process in run.args[2]]


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
@pytest.mark.parametrize("name", ["griffin", "rwkv"])  # the second has a penalty, too
def test_processes_give_what_threads_give(name, workers):
    sizes = SIZES if name == "griffin" else {}
    ours, theirs = (build(name, make_config(name, **sizes), np.random.default_rng(0), "float64") for _ in range(2))
    tokens, targets = batch()
    with sharing(ours, workers) as run:
        for scale in (1.0, 0.25):  # twice: the second is added
            expected = loss_and_grads(theirs, tokens, targets, workers, scale)
            assert run(tokens, targets, scale=scale) == pytest.approx(expected, rel=1e-13)
            for _, tensor in (*parameters(ours), *parameters(theirs)):
                tensor.data *= 0.9  # in place, as an optimizer does
    for key, g in gradients(ours).items():  # not to the bit: how sums are grouped depends on where arrays lie
        assert_close(g, gradients(theirs)[key], 1e-12, key)


def test_inputs_are_split_as_the_batch_is():
    model, other = (
        build("recurrent-depth", make_config("recurrent-depth"), np.random.default_rng(0)) for _ in range(2)
    )
    tokens, targets = batch()
    inputs = model.draw(np.random.default_rng(3), *tokens.shape)
    whole = loss_and_grads(other, tokens, targets, 1, **inputs)
    with sharing(model, 2) as run:
        assert run(tokens, targets, **inputs) == pytest.approx(whole, rel=1e-6)
    for key, g in gradients(model).items():
        assert_close(g, gradients(other)[key], 1e-5, key)


@linux
def test_afterwards_the_processes_are_gone_and_the_arrays_ordinary():
    model = make()
    before = {key: (tensor.data, tensor.data.copy()) for key, tensor in parameters(model)}
    with sharing(model, 3) as run:
        workers = pids(run)
        assert len(workers) == 2 and all(map(alive, workers))
        assert not any(tensor.data is before[key][0] for key, tensor in parameters(model))
    assert not any(map(alive, workers))
    for key, tensor in parameters(model):
        assert tensor.data.flags.owndata and (tensor.data == before[key][1]).all()


@linux
def test_an_error_in_a_process_is_raised_here_and_the_next_batch_is_well():
    model, (tokens, targets) = make(), batch(4)
    wrong = tokens.copy()
    wrong[3, 0] = 99  # in the second half only
    with sharing(model, 2) as run:
        for _ in range(2):
            with pytest.raises(IndexError, match=r"embedding\(.*tokens span \[.*99\]"):
                run(wrong, targets)
            assert math.isfinite(run(tokens, targets))
        with pytest.raises(IndexError):
            run(wrong[::-1], targets)  # in the half that is done here
        assert run(tokens, targets) == pytest.approx(loss_and_grads(make(), tokens, targets, 2), rel=1e-13)


@linux
def test_ctrl_c_does_not_reach_a_worker_and_a_killed_one_is_missed(request):
    # Python's own handler, also where the tests were started with the signal ignored, as in the background of a shell.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    model, (tokens, targets) = make(), batch(4)
    with sharing(model, 2) as run:
        (pid,) = pids(run)
        for wait in (0.0, 0.1):  # while it starts, and while it waits for work
            os.kill(pid, signal.SIGINT)
            time.sleep(wait)
            assert math.isfinite(run(tokens, targets))
        os.kill(pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(WorkerError, match=rf"worker process {pid} (has died|is gone)"):
                run(tokens, targets)


@linux
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, numpy as np\n"
        "from tinyrec.models import build, make_config\n"
        "from tinyrec.parallel import sharing\n"
        "model = build('hawk', make_config('hawk'), np.random.default_rng(0))\n"
        "with sharing(model, 3) as run:\n"
        "    print(*(process.pid for process in run.args[2]), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    workers = list(map(int, done.stdout.split()))
    assert len(workers) == 2, done.stderr
    until = time.monotonic() + 10.0
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))
