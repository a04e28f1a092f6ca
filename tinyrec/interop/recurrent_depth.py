"""The names of the published recurrent-depth transformer (Huginn-0125, seal-rg/recurrent-pretraining), and ours.

Linear weights are (out, in) there and (in, out) here. Wqkv is our q, k and v stacked, qk_bias (2, 1, H, K) the biases
of q and k, mlp.fc our gate and up stacked, and the adapter (h, 2h) reads the state with its first h columns and the
embedded input with the others. The head is the embedding, which may be given again; the table of rotations, freqs_cis,
is worked out here and may be given too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..models.recurrent_depth_config import RecurrentDepthConfig
from .rules import Family, Rule, check_only, same, transposed

# What their config can ask for and this model is not: field by field the one value that is offered.
ONLY = {
    "bias": False, "tie_embeddings": True, "tie_word_embeddings": True, "injection_type": "linear",
    "block_class_name": "SandwichBlock", "mlp_class_name": "GatedMLP", "nonlin_name": "SiLU", "test_time_noise": 0.0,
}  # fmt: skip
# What a model of ours must be for these names to be its own: the paper's two bad runs have none.
MAIN_RUN = {"block": "sandwich", "norm_gain": True, "injection": "adapter", "scaled_embedding": True}


def _config(cfg: Mapping[str, Any]) -> tuple[str, RecurrentDepthConfig]:
    check_only(cfg, ONLY)
    heads = int(cfg["n_heads"])
    if int(cfg.get("num_key_value_heads") or heads) != heads:
        raise ValueError(f"expected as many key heads as query heads ({heads}), got {cfg['num_key_value_heads']}")
    return "recurrent-depth", RecurrentDepthConfig(
        vocab_size=int(cfg.get("padded_vocab_size") or cfg["vocab_size"]),
        d_model=int(cfg["n_embd"]),
        n_heads=heads,
        d_mlp=int(cfg["intermediate_size"]),
        n_prelude=int(cfg["n_layers_in_prelude"]),
        n_core=int(cfg["n_layers_in_recurrent_block"]),
        n_coda=int(cfg["n_layers_in_coda"]),
        mean_steps=int(cfg["mean_recurrence"]),
        grad_steps=int(cfg["mean_backprop_depth"]),
        qk_bias=bool(cfg["qk_bias"]),
        rope_base=float(cfg["rope_base"]),
        eps=float(cfg["norm_eps"]),
    )


def _rules(config: RecurrentDepthConfig) -> list[Rule]:
    for field, value in MAIN_RUN.items():
        if getattr(config, field) != value:
            raise ValueError(f"the published names are for {field} = {value!r}, this is {getattr(config, field)!r}")
    rules = [same("transformer.wte.weight", "embedding"), same("transformer.ln_f.weight", "norm.gain")]
    rules += [_stacked("transformer.adapter.weight", ("adapter_s", "adapter_e"), axis=1)]
    groups = (("prelude", config.n_prelude), ("core", config.n_core), ("coda", config.n_coda))
    for name, blocks in groups:
        for i in range(blocks):
            theirs, ours = f"transformer.{'core_block' if name == 'core' else name}.{i}", f"{name}.{i}"
            rules += [same(f"{theirs}.norm_{n}.weight", f"{ours}.norm_{n}.gain") for n in (1, 2, 3, 4)]
            a = f"{ours}.attention"
            rules += [_stacked(f"{theirs}.attn.Wqkv.weight", (f"{a}.q.w", f"{a}.k.w", f"{a}.v.w"), axis=0)]
            if config.qk_bias:
                rules += [_heads(f"{theirs}.attn.qk_bias", (f"{a}.q.b", f"{a}.k.b"), config)]
            rules += [transposed(f"{theirs}.attn.proj.weight", f"{a}.out.w")]
            rules += [_stacked(f"{theirs}.mlp.fc.weight", (f"{ours}.mlp.gate.w", f"{ours}.mlp.up.w"), axis=0)]
            rules += [transposed(f"{theirs}.mlp.proj.weight", f"{ours}.mlp.down.w")]
    return rules


def _stacked(official: str, ours: tuple[str, ...], axis: int) -> Rule:
    """Several of our (in, out) matrices, transposed and put one behind the other along `axis` of theirs."""

    def to_ours(w: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(part.T for part in np.split(w, len(ours), axis=axis))

    return Rule(official, ours, lambda *ws: np.concatenate([w.T for w in ws], axis=axis), to_ours)


def _heads(official: str, ours: tuple[str, ...], config: RecurrentDepthConfig) -> Rule:
    shape = (2, 1, config.n_heads, config.head_width)
    return Rule(official, ours, lambda *bs: np.stack(bs).reshape(shape), lambda b: tuple(b.reshape(2, -1)))


HUGINN = Family(_config, _rules, {"lm_head.weight": "transformer.wte.weight"}, ignored=("freqs_cis",))
