"""Names and layouts of the published Mamba-1 codes; their weights, ours, and back.

MAMBA: state-spaces/mamba (pytorch_model.bin of mamba-130m to 2.8b), MAMBA_HF: transformers. The same tensors; only the
embedding has another name. Linear weights are (out, in) there and (in, out) here; in_proj is our in_proj and
gate_proj stacked, the convolution (D, 1, K) there and (K, D) here. The head is the embedding: their lm_head.weight may
be given, must then equal the embedding, and is written for data, not for gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..models.mamba_config import MambaConfig
from .rules import Family, Rule, check_only, same, transposed

# What their configs can ask for and this model is not: field by field the one value that is offered.
ONLY = {"rms_norm": True, "tie_embeddings": True, "attn_layer_idx": [], "d_intermediate": 0}
ONLY_SSM = {"layer": "Mamba1", "conv_bias": True, "bias": False}
ONLY_HF = {"hidden_act": "silu", "tie_word_embeddings": True, "use_conv_bias": True, "use_bias": False}


def _config(cfg: Mapping[str, Any]) -> tuple[str, MambaConfig]:
    ssm, multiple = cfg.get("ssm_cfg") or {}, int(cfg.get("pad_vocab_size_multiple", 8))
    check_only(cfg, ONLY)
    check_only(ssm, ONLY_SSM)
    rank = ssm.get("dt_rank", "auto")
    return "mamba", MambaConfig(
        vocab_size=-(-int(cfg["vocab_size"]) // multiple) * multiple,  # the embedding has rows that no word uses
        d_model=int(cfg["d_model"]),
        n_layers=int(cfg["n_layer"]),
        d_state=int(ssm.get("d_state", 16)),
        expand=int(ssm.get("expand", 2)),
        conv_width=int(ssm.get("d_conv", 4)),
        dt_rank=0 if rank == "auto" else int(rank),
    )


def _config_hf(cfg: Mapping[str, Any]) -> tuple[str, MambaConfig]:
    check_only(cfg, ONLY_HF)
    rank = cfg.get("time_step_rank", "auto")
    return "mamba", MambaConfig(
        vocab_size=int(cfg["vocab_size"]),
        d_model=int(cfg["hidden_size"]),
        n_layers=int(cfg["num_hidden_layers"]),
        d_state=int(cfg.get("state_size", 16)),
        expand=int(cfg.get("expand", 2)),
        conv_width=int(cfg.get("conv_kernel", 4)),
        dt_rank=0 if rank == "auto" else int(rank),
        norm_eps=float(cfg.get("layer_norm_epsilon", 1e-5)),
    )


def _rules(embedding: str, config: MambaConfig) -> list[Rule]:
    rules = [same(embedding, "embedding"), same("backbone.norm_f.weight", "final_norm.gain")]
    for i in range(config.n_layers):
        b, m, ours = f"backbone.layers.{i}", f"backbone.layers.{i}.mixer", f"blocks.{i}.mixer"
        rules += [same(f"{b}.norm.weight", f"blocks.{i}.norm.gain")]
        rules += [same(f"{m}.A_log", f"{ours}.a_log"), same(f"{m}.D", f"{ours}.d")]
        rules += [
            Rule(
                f"{m}.in_proj.weight",
                (f"{ours}.in_proj.w", f"{ours}.gate_proj.w"),
                lambda x, z: np.concatenate([x.T, z.T]),
                lambda w: tuple(half.T for half in np.split(w, 2)),
            ),
            Rule(f"{m}.conv1d.weight", (f"{ours}.conv_w",), lambda w: w.T[:, None], lambda w: (w[:, 0].T,)),
            same(f"{m}.conv1d.bias", f"{ours}.conv_b"),
            same(f"{m}.dt_proj.bias", f"{ours}.dt_proj.b"),
        ]
        rules += [transposed(f"{m}.{x}.weight", f"{ours}.{x}.w") for x in ("x_proj", "dt_proj", "out_proj")]
    return rules


def _family(config: Callable, embedding: str) -> Family:
    return Family(config, lambda ours: _rules(embedding, ours), tied={"lm_head.weight": embedding})


MAMBA = _family(_config, "backbone.embedding.weight")
MAMBA_HF = _family(_config_hf, "backbone.embeddings.weight")
