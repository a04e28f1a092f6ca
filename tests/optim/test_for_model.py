"""The optimizer of a model: the exceptions that it names, and the choice by name."""

from __future__ import annotations

import numpy as np
import pytest

from tinyrec.nn import parameters
from tinyrec.optim import OPTIMIZERS, AdamW, HuginnAdam, optimizer_for
from tinyrec.tape import Tensor


class Model:
    no_decay, lr_scales = ("a_log",), {"rate": 2.0}

    def __init__(self):
        self.layer = {"a_log": Tensor(np.ones((2, 3)), True), "w": Tensor(np.ones((2, 3)), True)}
        self.rate = Tensor(np.ones(3), True)
        for _, tensor in parameters(self):
            tensor.grad = np.zeros(tensor.shape)
        self.rate.grad[:] = 1.0


def test_a_model_names_its_own_rates_and_what_must_not_decay():
    model = Model()
    optimizer_for(model, 0.1, 0.5).step()
    assert (model.layer["a_log"].data == 1.0).all() and (model.layer["w"].data == 0.95).all()
    np.testing.assert_allclose(model.rate.data, 0.8, rtol=1e-7)


def test_huginns_optimizer_keeps_to_them_too():
    model = Model()
    optimizer = optimizer_for(model, 0.1, 0.5, "huginn")
    optimizer.step()  # which is skipped
    optimizer.step()
    assert (model.layer["a_log"].data == 1.0).all() and (model.layer["w"].data == 0.5).all()
    np.testing.assert_allclose(model.rate.data, 1 - 0.2 * np.arctan(np.sqrt(0.05)) / 0.1, rtol=1e-12)


def test_an_optimizer_has_a_name():
    assert {kind: type(optimizer_for(Model(), 0.1, 0.5, kind)) for kind in OPTIMIZERS} == {
        "adamw": AdamW,
        "huginn": HuginnAdam,
    }
    with pytest.raises(ValueError, match="unknown optimizer 'sgd', expected one of adamw, huginn"):
        optimizer_for(Model(), 0.1, 0.5, "sgd")
