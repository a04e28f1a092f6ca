"""Weights from and to the official implementations: one map of names per family, used in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import to_cpu
from ..models import build, entry
from ..nn import parameters
from ..suggest import check_known
from .griffin import GRIFFIN, RECURRENTGEMMA_HF
from .mamba import MAMBA, MAMBA_HF
from .recurrent_depth import HUGINN
from .rules import Family
from .rwkv import RWKV4, RWKV4_HF
from .ttt import TTT

FAMILIES: dict[str, Family] = {
    "griffin": GRIFFIN, "recurrentgemma-hf": RECURRENTGEMMA_HF,
    "rwkv4": RWKV4, "rwkv4-hf": RWKV4_HF,
    "mamba": MAMBA, "mamba-hf": MAMBA_HF,
    "huginn": HUGINN,
    "ttt": TTT,
}  # fmt: skip


def from_official(family: str, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """A model with the official weights `arrays` (their names, layouts and shapes) and the official config fields.

    Raises ValueError for an unknown family, and one that lists every unknown, missing or misshapen tensor.
    """
    reader = FAMILIES[check_known(family, FAMILIES, "family")]
    name, ours = reader.config(config)
    dtype = np.result_type(*arrays.values()) if arrays else "float32"
    model = build(name, ours, np.random.default_rng(0), dtype)
    tensors, rules = dict(parameters(model)), reader.rules(ours)
    known = {rule.official for rule in rules} | reader.tied.keys() | set(reader.ignored)
    complaints = [f"unknown {n}" for n in arrays if n not in known]
    complaints += [
        f"{copy} is not equal to {original}, to which it is tied"
        for copy, original in reader.tied.items()
        if copy in arrays and original in arrays and not np.array_equal(arrays[copy], arrays[original])
    ]
    for rule in rules:
        if rule.official not in arrays:
            complaints.append(f"missing {rule.official}")
            continue
        expected = rule.to_official(*(tensors[n].data for n in rule.ours)).shape
        given = arrays[rule.official]
        if given.shape != expected:
            complaints.append(f"{rule.official} has shape {given.shape}, expected {expected}")
            continue
        for n, part in zip(rule.ours, rule.to_ours(given), strict=True):
            tensors[n].data[...] = part
    if complaints:
        raise ValueError(f"these weights do not fit a {family} model of that config: {'; '.join(complaints)}")
    return model


def to_official(model: Any, what: str = "data", family: str | None = None) -> dict[str, np.ndarray]:
    """The model's parameters (what="data") or their gradients (what="grad"; zeros where none) under official names.

    family: which names; by default those of the paper's own code. A tensor that repeats another one there is written
    with the data; the gradient of the original is that of both.
    """
    if what not in ("data", "grad"):
        raise ValueError(f"what must be 'data' or 'grad', got {what!r}")
    reader = FAMILIES[check_known(family or entry(model.name).family, FAMILIES, "family")]
    arrays = {}
    for name, tensor in parameters(model):
        array = tensor.data if what == "data" else tensor.grad
        arrays[name] = to_cpu(tensor.data) * 0 if array is None else to_cpu(array)
    official = {
        rule.official: np.ascontiguousarray(rule.to_official(*(arrays[n] for n in rule.ours)))
        for rule in reader.rules(model.config)
    }
    return official | {copy: official[original].copy() for copy, original in reader.tied.items() if what == "data"}
