"""benchmarks/gpu.py: it launches what it says it measures, and counts the bytes of its arrays."""

from __future__ import annotations

import pytest

from benchmarks import gpu

SMALL = (2, 2 * gpu.MINI_BATCH, gpu.HEAD)


@pytest.mark.parametrize("stem", gpu.STEMS)
def test_a_kernel_is_measured_forward_and_back(cupy, stem):
    called = []
    rows = gpu.measure(stem, SMALL, lambda call: called.append(call()) or 0.5)
    assert [(row.stem, row.way, row.seconds) for row in rows] == [(stem, "forward", 0.5), (stem, "backward", 0.5)]
    (outs, _), grads = called
    assert {type(x) for x in gpu.arrays(outs, grads)} == {cupy.ndarray}
    one = 4 * SMALL[0] * SMALL[1] * SMALL[2]  # bytes of an array (B, T, C)
    assert all(3 * one < row.bytes < 40 * one for row in rows)


def test_the_bytes_of_a_scan(cupy):
    forward, backward = gpu.measure("scan", SMALL, lambda call: 1.0)
    whole, state = 4 * SMALL[0] * SMALL[1] * SMALL[2], 4 * SMALL[0] * SMALL[2]
    assert forward.bytes == 3 * whole + 2 * state  # a, b; h; and the first and the last state
    assert backward.bytes == 5 * whole + 3 * state  # a, h, dh; da, db; h_init, dh_last; dh_init


def test_the_rate_of_a_copy(cupy):
    assert gpu.copy_rate(cupy, SMALL, lambda call: call() or 0.5) == 2 * 4 * 4 * SMALL[0] * SMALL[1] * SMALL[2] / 0.5
