"""Measuring itself: workers run alone, in a clean environment, and tell time, memory and what they lack."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.__main__ import chosen
from benchmarks.cases import Case, all_cases
from benchmarks.cases.scan import B, D, T
from benchmarks.harness import compare, paired_ratios, run_worker, worker_environment
from benchmarks.worker import time_calls

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def test_worker_environment_is_clean_and_sets_threads(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "1048576")
    environment = worker_environment(3)
    assert not {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & set(environment)
    assert environment["OPENBLAS_NUM_THREADS"] == environment["OMP_NUM_THREADS"] == "3"


def test_ratios_pair_rounds():
    assert paired_ratios([2.0, 9.0, 4.0], [1.0, 3.0, 8.0]) == [2.0, 3.0, 0.5]


@LINUX
def test_a_worker_measures_time_and_memory():
    seen = run_worker(all_cases()["scan/forward"], "floor", threads=1, calls=3)
    assert len(seen["seconds"]) >= 3
    assert 1e-4 < min(seen["seconds"]) < 10
    three_arrays = 3 * B * T * D * 4 / 2**20
    assert three_arrays <= seen["memory_mb"] < three_arrays + 16


MEMORY = """
import numpy as np
from benchmarks.worker import memory_mb, reset_peak_memory

np.ones(40 * 2**20, np.uint8)  # 40 MiB, freed at once
reset_peak_memory()
before = memory_mb("VmHWM")
held = np.ones(20 * 2**20, np.uint8)
assert 18 < memory_mb("VmHWM") - before < 30
del held
assert memory_mb("VmHWM") - memory_mb("VmRSS") > 15
"""


@LINUX
def test_peak_memory_forgets_what_was_freed_before_the_reset():
    """In a process of its own: another test may have told the C library to keep what is freed."""
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_slow_calls_stop_early_but_not_before_the_third_and_fast_ones_go_on():
    assert len(time_calls(lambda: time.sleep(0.2), calls=4, seconds=60)) == 4
    assert len(time_calls(lambda: time.sleep(0.01), calls=4, seconds=0)) == 3
    assert sum(time_calls(lambda: time.sleep(0.05), calls=4, seconds=60)) >= 0.5


def test_sides_take_turns_and_a_missing_side_is_not_measured(monkeypatch):
    order = []

    def fake(case, side, threads, seconds):
        order.append(side)
        if side == "floor":
            return {"missing": "not there", "version": "none"}
        slow = {"tinyrec": 3.0, "torch": 2.0}[side] * len(order)
        return {"seconds": [slow, slow, 99.0], "memory_mb": 7.0, "foreign_cores": 0.0, "version": "1"}

    monkeypatch.setattr("benchmarks.harness.run_worker", fake)
    case = Case("fake", dict.fromkeys(["tinyrec", "torch", "floor"], lambda: lambda: None))
    tinyrec, torch, floor = compare(case, rounds=2)
    assert order[:5] == ["tinyrec", "torch", "floor", "torch", "tinyrec"]
    assert tinyrec.rounds == [3.0, 15.0]
    assert torch.rounds == [4.0, 8.0]
    assert torch.ratios == [3 / 4, 15 / 8]
    tinyrec, torch, _ = compare(case, rounds=1, ours="torch")
    assert tinyrec.ratios == [torch.rounds[0] / tinyrec.rounds[0]] and torch.ratios == [1.0]
    assert floor.missing == "not there"
    assert floor.rounds == []


def test_a_disturbed_run_is_repeated_and_the_quietest_kept(monkeypatch):
    foreign = iter([0.9, 0.3, 0.5])

    def fake(case, side, threads, seconds):
        cores = next(foreign)
        return {"seconds": [cores], "memory_mb": None, "foreign_cores": cores, "version": "1"}

    monkeypatch.setattr("benchmarks.harness.run_worker", fake)
    (only,) = compare(Case("fake", {"torch": lambda: lambda: None}), rounds=1)
    assert only.rounds == [0.3]
    assert only.ratios == []


def test_a_failing_worker_says_why():
    with pytest.raises(RuntimeError, match="nowhere"):
        run_worker(all_cases()["scan/forward"], "nowhere", threads=1)


def test_cases_are_chosen_by_name_or_group():
    assert [case.name for case in chosen(["train_step/hawk"])] == ["train_step/hawk"]
    assert {case.name for case in chosen(["lstm", "qrnn"])} == {"lstm", "qrnn/f", "qrnn/ifo"}
    assert chosen([]) == list(all_cases().values())
    with pytest.raises(SystemExit, match="decoed"):
        chosen(["decoed"])
