"""The official names of the Griffin family and ours.

GRIFFIN: google-deepmind/recurrentgemma, torch names and GriffinConfig fields. RECURRENTGEMMA_HF: transformers.
Linear weights are (out, in) there and (in, out) here; einsum-type weights (gates, ffw_up) are (in, out) in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..models.griffin_config import GriffinConfig
from .rules import Family, Rule, same, transposed


def _kinds(names: Iterable[Any]) -> tuple[str, ...]:
    """RECURRENT / ATTENTION, as text or as the official enum's value, in our words."""
    return tuple("recurrent" if "recurrent" in str(name).lower() else "local" for name in names)


def _model_name(kinds: tuple[str, ...]) -> str:
    return "hawk" if set(kinds) == {"recurrent"} else "transformer" if "recurrent" not in kinds else "griffin"


def _config(cfg: Mapping[str, Any]) -> tuple[str, GriffinConfig]:
    width, heads, kinds = int(cfg["width"]), int(cfg["num_heads"]), _kinds(cfg["block_types"])
    return _model_name(kinds), GriffinConfig(
        vocab_size=int(cfg["vocab_size"]),
        d_model=width,
        n_layers=len(kinds),
        pattern=kinds,
        d_rnn=int(cfg.get("lru_width") or width),
        n_heads=heads,
        gate_blocks=heads,
        mlp_expansion=int(cfg["mlp_expanded_width"]) // width,
        window=int(cfg["attention_window_size"]),
        embed_scale=bool(cfg["embeddings_scale_by_sqrt_dim"]),
        logit_cap=float(cfg["logits_soft_cap"] or 0.0),
    )


def _config_hf(cfg: Mapping[str, Any]) -> tuple[str, GriffinConfig]:
    width, heads, pattern = int(cfg["hidden_size"]), int(cfg["num_attention_heads"]), _kinds(cfg["block_types"])
    layers = int(cfg["num_hidden_layers"])
    kinds = tuple(pattern[i % len(pattern)] for i in range(layers))
    return _model_name(kinds), GriffinConfig(
        vocab_size=int(cfg["vocab_size"]),
        d_model=width,
        n_layers=layers,
        pattern=kinds,
        d_rnn=int(cfg.get("lru_width") or width),
        n_heads=heads,
        gate_blocks=heads,
        mlp_expansion=int(cfg["intermediate_size"]) // 2 // width,  # theirs is the sum of both branches
        window=int(cfg["attention_window_size"]) - 1,  # theirs counts the token itself
        embed_scale=bool(cfg.get("embeddings_scale_by_sqrt_dim", True)),
        logit_cap=float(cfg["logits_soft_cap"] or 0.0),
        conv_width=int(cfg.get("conv1d_width", 4)),
        rope_fraction=float(cfg.get("partial_rotary_factor", 0.5)),
    )


def _rules(config: GriffinConfig) -> list[Rule]:
    rules = [same("embedder.input_embedding", "embedding"), same("final_norm.scale", "final_norm.gain")]
    f = config.mlp_expansion * config.d_model
    for i, kind in enumerate(config.kinds):
        b = f"blocks.{i}"
        rules += [same(f"{b}.temporal_pre_norm.scale", f"{b}.mixer_norm.gain")]
        rules += [same(f"{b}.channel_pre_norm.scale", f"{b}.mlp_norm.gain")]
        if kind == "recurrent":
            r = f"{b}.recurrent_block"
            rules += _linear(f"{r}.linear_x", f"{b}.mixer.branch") + _linear(f"{r}.linear_y", f"{b}.mixer.gate")
            rules += _linear(f"{r}.linear_out", f"{b}.mixer.out")
            rules += [same(f"{r}.conv_1d.w", f"{b}.mixer.conv_w"), same(f"{r}.conv_1d.b", f"{b}.mixer.conv_b")]
            rules += [same(f"{r}.rg_lru.a_param", f"{b}.mixer.lam")]
            for theirs, ours in (("input_gate", "x"), ("a_gate", "a")):
                rules += [same(f"{r}.rg_lru.{theirs}.w", f"{b}.mixer.w_{ours}")]
                rules += [_block_bias(f"{r}.rg_lru.{theirs}.b", f"{b}.mixer.b_{ours}", config.gate_blocks)]
        else:
            a = f"{b}.attention_block"
            rules += [transposed(f"{a}.proj_{x}.weight", f"{b}.mixer.{x}.w") for x in "qkv"]
            rules += _linear(f"{a}.proj_final", f"{b}.mixer.out")
        up = (f"{b}.mlp.gate", f"{b}.mlp.up")  # the official layer stacks the two branches
        rules += [Rule(f"{b}.mlp_block.ffw_up.w", (f"{up[0]}.w", f"{up[1]}.w"), _stacked, tuple)]
        rules += [
            Rule(
                f"{b}.mlp_block.ffw_up.b",
                (f"{up[0]}.b", f"{up[1]}.b"),
                lambda gate, up: np.stack([gate, up]).reshape(2, 1, 1, f),
                lambda x: (x[0, 0, 0], x[1, 0, 0]),
            )
        ]
        rules += _linear(f"{b}.mlp_block.ffw_down", f"{b}.mlp.down")
    return rules


def _rules_hf(config: GriffinConfig) -> list[Rule]:
    rules = [same("model.embed_tokens.weight", "embedding"), same("model.final_norm.weight", "final_norm.gain")]
    for i, kind in enumerate(config.kinds):
        b, t, m = f"blocks.{i}", f"model.layers.{i}.temporal_block", f"model.layers.{i}.mlp_block"
        rules += [same(f"model.layers.{i}.temporal_pre_norm.weight", f"{b}.mixer_norm.gain")]
        rules += [same(f"model.layers.{i}.channel_pre_norm.weight", f"{b}.mlp_norm.gain")]
        if kind == "recurrent":
            for theirs, ours in (("linear_x", "branch"), ("linear_y", "gate"), ("linear_out", "out")):
                rules += _linear(f"{t}.{theirs}", f"{b}.mixer.{ours}")
            rules += [
                Rule(
                    f"{t}.conv_1d.weight",  # (E, 1, W) there, (W, E) here, taps in the same order
                    (f"{b}.mixer.conv_w",),
                    lambda w: w.T[:, None],
                    lambda w: (w[:, 0].T,),
                ),
                same(f"{t}.conv_1d.bias", f"{b}.mixer.conv_b"),
                same(f"{t}.rg_lru.recurrent_param", f"{b}.mixer.lam"),
            ]
            for theirs, ours in (("input_gate", "x"), ("recurrent_gate", "a")):
                rules += [same(f"{t}.rg_lru.{theirs}_weight", f"{b}.mixer.w_{ours}")]
                rules += [_block_bias(f"{t}.rg_lru.{theirs}_bias", f"{b}.mixer.b_{ours}", config.gate_blocks)]
        else:
            rules += [transposed(f"{t}.{x}_proj.weight", f"{b}.mixer.{x}.w") for x in "qkv"]
            rules += _linear(f"{t}.o_proj", f"{b}.mixer.out")
        for part in ("gate", "up", "down"):
            rules += _linear(f"{m}.{part}_proj", f"{b}.mlp.{part}")
    return rules


def _linear(official: str, ours: str) -> list[Rule]:
    return [transposed(f"{official}.weight", f"{ours}.w"), same(f"{official}.bias", f"{ours}.b")]


def _block_bias(official: str, ours: str, blocks: int) -> Rule:
    """The bias of a gate: (blocks, E / blocks) there, (E,) here."""
    return Rule(official, (ours,), lambda b: b.reshape(blocks, -1), lambda b: (b.reshape(-1),))


def _stacked(*xs: np.ndarray) -> np.ndarray:
    return np.stack(xs)


GRIFFIN = Family(_config, _rules)
RECURRENTGEMMA_HF = Family(_config_hf, _rules_hf)
