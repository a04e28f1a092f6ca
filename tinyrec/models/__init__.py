"""The models by name: what `tinyrec train NAME` builds, and how a checkpoint finds its class again."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from ..nn import without_tape
from ..suggest import check_known
from . import baselines_config, griffin_config, mamba_config, recurrent_depth_config, rwkv_config, ttt_config
from .baselines import Baseline
from .baselines_config import BaselineConfig
from .griffin import Griffin
from .griffin_config import GRIFFIN, HAWK, TRANSFORMER, GriffinConfig
from .griffin_decode import Decoder as GriffinDecoder
from .mamba import Mamba
from .mamba_config import MambaConfig
from .mamba_decode import Decoder as MambaDecoder
from .recurrent_depth import RecurrentDepth
from .recurrent_depth_config import RecurrentDepthConfig
from .recurrent_depth_plain import PlainRecurrentDepth
from .rwkv import RWKV
from .rwkv_config import RWKVConfig
from .rwkv_decode import Decoder as RWKVDecoder
from .ttt import TTT
from .ttt_config import TTTConfig
from .ttt_decode import Decoder as TTTDecoder


class Entry(NamedTuple):
    """A name on the command line: a class, its config, presets (field values), and the fields that make the name."""

    family: str
    model: type
    config: type
    presets: dict[str, dict]
    fixed: dict


MODELS: dict[str, Entry] = {
    **{
        name: Entry("griffin", Griffin, GriffinConfig, griffin_config.PRESETS, {"pattern": pattern})
        for name, pattern in (("hawk", HAWK), ("griffin", GRIFFIN), ("transformer", TRANSFORMER))
    },
    "recurrent-depth": Entry("huginn", RecurrentDepth, RecurrentDepthConfig, recurrent_depth_config.PRESETS, {}),
    "rwkv": Entry("rwkv4", RWKV, RWKVConfig, rwkv_config.PRESETS, {}),
    "mamba": Entry("mamba", Mamba, MambaConfig, mamba_config.PRESETS, {}),
    **{
        f"ttt-{inner}": Entry("ttt", TTT, TTTConfig, ttt_config.PRESETS, {"inner": inner})
        for inner in ("linear", "mlp")
    },
    **{
        name: Entry("baseline", Baseline, BaselineConfig, baselines_config.PRESETS, {"mixer": name})
        for name in ("lstm", "qrnn", "aft")
    },
}

DECODERS: dict[type, type] = {
    Griffin: GriffinDecoder, Mamba: MambaDecoder, RecurrentDepth: PlainRecurrentDepth, RWKV: RWKVDecoder,
    TTT: TTTDecoder,
}  # fmt: skip


def decoder(model: Any) -> Any:
    """What reads one token after the other for `model`, fastest: something with its `step(tokens (B,), state)`."""
    return DECODERS.get(type(model), without_tape)(model)


def entry(name: str) -> Entry:
    """The model of that name. Raises ValueError, with a suggestion, for an unknown one."""
    return MODELS[check_known(name, MODELS, "model")]


def make_config(name: str, preset: str = "tiny", **overrides: Any) -> Any:
    """The config of model `name` with a preset's values and then `overrides`. Raises ValueError for unknown ones."""
    model = entry(name)
    values = {**model.presets[check_known(preset, model.presets, f"preset of {name}")], **model.fixed}
    fields = [f.name for f in dataclasses.fields(model.config)]
    for option in overrides:
        check_known(option, fields, f"option of {name}")
    return model.config(**{**values, **overrides})


def build(name: str, config: Any, rng: Any, dtype: Any = "float32") -> Any:
    """A fresh model; `rng` is a numpy Generator. It remembers its name, for checkpoints."""
    model = entry(name).model(config, rng, dtype)
    model.name = name
    return model
