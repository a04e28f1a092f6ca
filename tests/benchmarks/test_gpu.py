"""The GPU benchmark, without a GPU: its inputs, its bytes, and that PyTorch's forms compute what our ops compute."""

from importlib import import_module

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.gpu_forms import FORMS
from tinyrec.check import assert_close
from tinyrec.cuda.launch import HERE

SMALL = (2, 2 * gpu.MINI_BATCH, 2 * gpu.HEAD)


def forward(stem):
    args, static = gpu.inputs(stem, *SMALL)
    return args, getattr(import_module(f"tinyrec.recurrences.{stem}"), stem).op.forward(*args, **static)[0]


def test_every_kernel_is_measured():
    assert set(gpu.STEMS) == set(FORMS) == {path.stem for path in HERE.glob("*.cu")}


@pytest.mark.parametrize("stem", gpu.STEMS)
def test_all_is_float32(stem):
    args, outs = forward(stem)
    assert all(x.dtype == np.float32 for x in gpu.arrays(args, outs))


@pytest.mark.parametrize("stem", gpu.STEMS)
def test_the_form_of_pytorch_computes_the_same(stem):
    torch = pytest.importorskip("torch")
    args, (y, *_) = forward(stem)
    with torch.no_grad():
        form = FORMS[stem]([torch.from_numpy(x) for x in args])()[0].numpy()
    if stem == "lstm":  # with weights of its own
        assert form.shape == y.shape
        return
    if stem == "scan":
        form = form.swapaxes(0, 1)
    if stem == "ttt_linear":
        form = form.reshape(form.shape[0], form.shape[1], -1, gpu.HEAD).swapaxes(1, 2)
    assert_close(form, y, 1e-5)


@pytest.mark.parametrize(("given", "words"), [(["wkw"], "is called 'wkw'"), (["--size", "8", "7", "64"], "8 7 64")])
def test_a_mistake_is_one_sentence(given, words):
    with pytest.raises(SystemExit, match=words):
        gpu.main(given)
