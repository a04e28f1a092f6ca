"""Names and layouts of the published TTT code (test-time-training/ttt-lm-pytorch); its weights, ours, and back.

Linear weights are (out, in) there and (in, out) here, a convolution (C, 1, W) there and (W, C) here. The inner models
have one layout, but for an axis of 1 that biases have there. The head is the embedding: their lm_head.weight may be
given, must then equal the embedding, and is written for data, not for gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.ttt_config import TTTConfig
from .rules import Family, Rule, check_only, same, transposed

# What their configs can ask for and this model is not: field by field the one value that is offered.
ONLY = {"hidden_act": "silu", "tie_word_embeddings": True}
BACKBONE = ("pre_conv", "share_qk", "use_gate")  # all three make backbone "mamba", none of them "transformer"


def _config(cfg: Mapping[str, Any]) -> tuple[str, TTTConfig]:
    check_only(cfg, ONLY)
    asked = [field for field in BACKBONE if cfg.get(field, False)]
    if asked and len(asked) < len(BACKBONE):
        raise ValueError(f"{', '.join(BACKBONE)} are offered together only, this config has {' and '.join(asked)}")
    inner = cfg.get("ttt_layer_type", "linear")
    return f"ttt-{inner}", TTTConfig(
        vocab_size=int(cfg["vocab_size"]),
        d_model=int(cfg["hidden_size"]),
        n_layers=int(cfg["num_hidden_layers"]),
        n_heads=int(cfg["num_attention_heads"]),
        inner=inner,
        backbone="mamba" if asked else "transformer",
        mini_batch=int(cfg.get("mini_batch_size", 16)),
        d_mlp=int(cfg["intermediate_size"]),
        conv_width=int(cfg.get("conv_kernel", 4)),
        rope_base=float(cfg.get("rope_theta", 10000.0)),
        base_lr=float(cfg.get("ttt_base_lr", 1.0)),
        norm_eps=float(cfg.get("rms_norm_eps", 1e-6)),
    )


def _rules(config: TTTConfig) -> list[Rule]:
    rules = [same("model.embed_tokens.weight", "embedding"), same("model.norm.weight", "final_norm.gain")]
    for i in range(config.n_layers):
        block, ours = f"model.layers.{i}", f"blocks.{i}"
        rules += [same(f"{block}.seq_norm.weight", f"{ours}.mixer_norm.gain")]
        rules += [same(f"{block}.ffn_norm.weight", f"{ours}.mlp_norm.gain")]
        rules += [transposed(f"{block}.mlp.{x}_proj.weight", f"{ours}.mlp.{x}.w") for x in ("gate", "up", "down")]
        if config.backbone == "mamba":
            rules += [same(f"{block}.conv.norm.weight", f"{ours}.conv_norm.gain")]
            rules += _conv(f"{block}.conv.conv", f"{ours}.conv")
        rules += _mixer(f"{block}.seq_modeling_block", f"{ours}.mixer", config)
    return rules


def _mixer(block: str, ours: str, config: TTTConfig) -> list[Rule]:
    products = {"q": "q", "v": "v", "o": "out"}
    products |= {"g": "gate"} if config.backbone == "mamba" else {"k": "k"}
    rules = [transposed(f"{block}.{theirs}_proj.weight", f"{ours}.{x}.w") for theirs, x in products.items()]
    if config.backbone == "mamba":
        rules += [*_conv(f"{block}.conv_q", f"{ours}.conv_q"), *_conv(f"{block}.conv_k", f"{ours}.conv_k")]
    rules += [
        Rule(f"{block}.learnable_ttt_lr_weight", (f"{ours}.lam.w",), lambda w: w.T[:, None], lambda w: (w[:, 0].T,)),
        _bias(f"{block}.learnable_ttt_lr_bias", f"{ours}.lam.b"),
        same(f"{block}.learnable_token_idx", f"{ours}.delta"),
        same(f"{block}.ttt_norm_weight", f"{ours}.inner.gain"),
        same(f"{block}.ttt_norm_bias", f"{ours}.inner.bias"),
        same(f"{block}.post_norm.weight", f"{ours}.norm.gain"),
        same(f"{block}.post_norm.bias", f"{ours}.norm.bias"),
    ]
    for theirs, x in (("1", ""),) if config.inner == "linear" else (("1", "1"), ("2", "2")):
        rules += [same(f"{block}.W{theirs}", f"{ours}.inner.w{x}"), _bias(f"{block}.b{theirs}", f"{ours}.inner.b{x}")]
    return rules


def _conv(official: str, ours: str) -> list[Rule]:
    taps = Rule(f"{official}.weight", (f"{ours}.w",), lambda w: w.T[:, None], lambda w: (w[:, 0].T,))
    return [taps, same(f"{official}.bias", f"{ours}.bias")]


def _bias(official: str, ours: str) -> Rule:
    """(H, 1, n) or (H, 1) there, (H, n) or (H,) here."""
    return Rule(official, (ours,), lambda x: x[:, None], lambda x: (x[:, 0],))


TTT = Family(_config, _rules, tied={"lm_head.weight": "model.embed_tokens.weight"})
