"""Names and layouts of the two published RWKV-4 codes; their weights, ours, and back.

RWKV4: BlinkDL/RWKV-LM (the keys of RWKV-4-Pile-*.pth), RWKV4_HF: transformers. Same tensors, other words.
Linear weights are (out, in) there and (in, out) here, token shift's mixes (1, 1, C) there and (C,) here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.rwkv_config import RWKVConfig
from .rules import Family, Rule, check_only, same, transposed

ONLY_HF = {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": False}  # other values: another function


def _sizes(vocab: Any, width: Any, layers: Any, ffn: Any, attention: Any) -> dict[str, int]:
    """Our fields; ffn and attention are widths that may be left out (None or 0)."""
    width, ffn, attention = int(width), int(ffn or 4 * int(width)), int(attention or width)
    if attention != width or ffn % width:
        raise ValueError(
            f"expected time mixing as wide as the model ({width}) and channel mixing a multiple of it, "
            f"got {attention} and {ffn}"
        )
    return {"vocab_size": int(vocab), "d_model": width, "n_layers": int(layers), "ffn_expansion": ffn // width}


def _config(cfg: Mapping[str, Any]) -> tuple[str, RWKVConfig]:
    sizes = _sizes(cfg["vocab_size"], cfg["n_embd"], cfg["n_layer"], cfg.get("dim_ffn"), cfg.get("dim_att"))
    return "rwkv", RWKVConfig(**sizes, pre_ffn=bool(cfg.get("pre_ffn", 0)))  # type: ignore[arg-type]


def _config_hf(cfg: Mapping[str, Any]) -> tuple[str, RWKVConfig]:
    check_only(cfg, ONLY_HF)
    sizes = _sizes(
        cfg["vocab_size"], cfg["hidden_size"], cfg["num_hidden_layers"],
        cfg.get("intermediate_size"), cfg.get("attention_hidden_size"),
    )  # fmt: skip
    return "rwkv", RWKVConfig(**sizes)  # type: ignore[arg-type]


def _rules(config: RWKVConfig) -> list[Rule]:
    rules = [same("emb.weight", "embedding"), transposed("head.weight", "head.w"), *_norm("ln_out", "ln_out")]
    if config.ln0:
        rules += _norm("blocks.0.ln0", "ln0")
    for i in range(config.n_layers):
        b = f"blocks.{i}"
        rules += _norm(f"{b}.ln1", f"{b}.ln1") + _norm(f"{b}.ln2", f"{b}.ln2")
        if i == 0 and config.pre_ffn:
            rules += _channel_mixing(f"{b}.ffnPre", f"{b}.pre_ffn")
        else:
            rules += _time_mixing(f"{b}.att", f"{b}.time_mixing")
        rules += _channel_mixing(f"{b}.ffn", f"{b}.channel_mixing")
    return rules


def _norm(official: str, ours: str) -> list[Rule]:
    return [same(f"{official}.weight", f"{ours}.gain"), same(f"{official}.bias", f"{ours}.bias")]


def _time_mixing(official: str, ours: str) -> list[Rule]:
    rules = [same(f"{official}.{name}", f"{ours}.{name}") for name in ("time_decay", "time_first")]
    rules += [_mix(f"{official}.time_mix_{x}", f"{ours}.mix_{x}") for x in "kvr"]
    matrices = ("key", "value", "receptance", "output")
    return rules + [transposed(f"{official}.{x}.weight", f"{ours}.{x}.w") for x in matrices]


def _channel_mixing(official: str, ours: str) -> list[Rule]:
    rules = [_mix(f"{official}.time_mix_{x}", f"{ours}.mix_{x}") for x in "kr"]
    return rules + [transposed(f"{official}.{x}.weight", f"{ours}.{x}.w") for x in ("key", "receptance", "value")]


def _mix(official: str, ours: str) -> Rule:
    return Rule(official, (ours,), lambda mu: mu.reshape(1, 1, -1), lambda mu: (mu.reshape(-1),))


HF_WORDS = [
    ("emb.", "embeddings."), (".ln0.", ".pre_ln."), (".att.", ".attention."), (".ffn.", ".feed_forward."),
    ("time_mix_k", "time_mix_key"), ("time_mix_v", "time_mix_value"), ("time_mix_r", "time_mix_receptance"),
]  # fmt: skip


def _hf_name(official: str) -> str:
    for word, theirs in HF_WORDS:
        official = official.replace(word, theirs)
    return official if official.startswith("head.") else f"rwkv.{official}"


def _rules_hf(config: RWKVConfig) -> list[Rule]:
    if config.pre_ffn:
        raise ValueError("transformers' RWKV has no channel mixing in place of the first time mixing (pre_ffn)")
    return [rule._replace(official=_hf_name(rule.official)) for rule in _rules(config)]


RWKV4 = Family(_config, _rules)
RWKV4_HF = Family(_config_hf, _rules_hf)
