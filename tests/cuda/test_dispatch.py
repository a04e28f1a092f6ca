"""Every recurrence that has a kernel, run through it: NumPy arrays stand in for those of a GPU."""

import numpy as np
import pytest

from tinyrec.check import assert_close
from tinyrec.cuda.launch import host_build, kernels
from tinyrec.cuda.switch import use_host_kernels
from tinyrec.inspect import cases
from tinyrec.inspect.cases import call_of
from tinyrec.tape import Tensor
from tinyrec.walk import grad, is_float

STEMS = ("scan", "rglru", "wkv", "selective_scan", "lstm", "qrnn", "ttt_linear")
CASES = [
    pytest.param(stem, case, id=f"{case.op.__name__}-{i}")
    for stem in STEMS
    for name, found in cases().items()
    if name.startswith(f"tinyrec.recurrences.{stem}.")
    for i, case in enumerate(found)
    if case.op.__name__ != "times_previous"  # has no kernel of its own
]


def outputs_and_gradients(fn, case):
    """The outputs, and the gradients for all of them together and for each alone; cotangents that are views."""
    leaves = [Tensor(a, True) if is_float(a) and i not in case.constants else a for i, a in enumerate(case.args)]
    xs = [x for x in leaves if type(x) is Tensor]

    def read():
        ys = fn(*leaves)
        return ys if isinstance(ys, tuple) else (ys,)

    found = [y.data for y in read()]
    for which in (None, *range(len(found))):
        total = 0.0
        for k, y in enumerate(read()):
            if which in (None, k):
                total = total + (y * np.random.default_rng([5, k]).standard_normal(y.shape[::-1]).T).sum()
        found += grad(total, xs)
    return found


@pytest.mark.parametrize(("stem", "case"), CASES)
def test_the_kernel_gives_what_the_numpy_form_gives(cpp, stem, case):
    expected = outputs_and_gradients(call_of(case), case)
    with use_host_kernels(), host_build("check") as reports:
        found = outputs_and_gradients(call_of(case), case)
    steps = case.args[0].shape[1]
    one_step = stem in ("rglru", "wkv", "selective_scan") and steps == 1  # a launch would cost more than the step
    assert len(reports) > 0 or one_step
    assert {report.kernel for report in reports} <= set(kernels(stem))
    assert [finding for report in reports for finding in report.findings] == []
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        assert_close(x, y, 1e-11)


@pytest.mark.parametrize("stem", STEMS)
def test_what_the_forward_kept_decides_in_the_backward(cpp, stem):
    """A gradient may be asked for where the switch is the other way again."""
    case = next(param.values[1] for param in CASES if param.values[0] == stem)
    leaves = [Tensor(a, True) if is_float(a) and i not in case.constants else a for i, a in enumerate(case.args)]
    xs = [x for x in leaves if type(x) is Tensor]
    y = call_of(case)(*leaves)[0]
    expected = grad(y, xs, np.ones(y.shape))
    with use_host_kernels(), host_build("check") as reports:
        y = call_of(case)(*leaves)[0]
    assert len(reports) == 1
    for a, b in zip(grad(y, xs, np.ones(y.shape)), expected, strict=True):
        assert_close(a, b, 1e-11)
