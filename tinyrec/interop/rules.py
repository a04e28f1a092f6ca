"""How one official tensor is made of ours and back; a family is a config reader and a list of such rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np


class Rule(NamedTuple):
    """official: name there; ours: names here; two functions, each the inverse of the other."""

    official: str
    ours: tuple[str, ...]
    to_official: Callable[..., np.ndarray]
    to_ours: Callable[[np.ndarray], tuple[np.ndarray, ...]]


class Family(NamedTuple):
    """config: their fields -> (our model name, our config); rules: our config -> the list of Rules.

    tied: official names of tensors that repeat another one, {copy: original}. They may be left out.
    ignored: official names of tensors that hold nothing learned, and are worked out here.
    """

    config: Callable[[Mapping[str, Any]], tuple[str, Any]]
    rules: Callable[[Any], list[Rule]]
    tied: Mapping[str, str] = MappingProxyType({})
    ignored: tuple[str, ...] = ()


def check_only(cfg: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raise ValueError if a field of their config, where it is given, is not the one value that is offered here."""
    for field, value in only.items():
        if cfg.get(field, value) != value:
            raise ValueError(f"the only {field} offered is {value!r}, this config has {cfg[field]!r}")


def same(official: str, ours: str) -> Rule:
    """The array as it is."""
    return Rule(official, (ours,), lambda x: x, lambda x: (x,))


def transposed(official: str, ours: str) -> Rule:
    """A Linear weight: (out, in) there, (in, out) here."""
    return Rule(official, (ours,), lambda x: x.T, lambda x: (x.T,))
