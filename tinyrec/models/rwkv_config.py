"""The choices of RWKV-4: sizes, the switches of the published training codes, and the presets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RWKVConfig:
    """Sizes and switches; the defaults are a tiny model. [P] is the paper, [v4] and [neo] the two training codes."""

    vocab_size: int = 256
    d_model: int = 64  # C
    n_layers: int = 3  # L
    ffn_expansion: int = 4  # F, the width of channel mixing, over C
    pre_ffn: bool = False  # [v4, neo] option 'ffnPre': layer 0 has a second channel mixing in place of time mixing
    embedding_init: str = "small"  # [P] U(-1e-4, 1e-4); "normal": N(0, 0.02^2), "unit": N(0, 1), to see what it is for
    ln0: bool = True  # the LayerNorm behind the embedding that makes the small start work
    l2wrap: float = 1e-4  # [v4, neo] the gradient's pull on each token's largest logit, over B T; 0: none
    layerwise_lr: bool = True  # [neo] time_decay learns at twice, time_first at three times the rate

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "ffn_expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.embedding_init not in ("small", "normal", "unit"):
            raise ValueError(f"embedding_init must be 'small', 'normal' or 'unit', got {self.embedding_init!r}")
        if not 0.0 <= self.l2wrap < float("inf"):
            raise ValueError(f"l2wrap must be 0 or more and finite, got {self.l2wrap}")


def _pile(d_model: int, n_layers: int) -> dict:
    return {"vocab_size": 50277, "d_model": d_model, "n_layers": n_layers}


PRESETS: dict[str, dict] = {
    "tiny": {},
    "small": {"d_model": 128, "n_layers": 4},
    "pile-169m": _pile(768, 12),
    "pile-430m": _pile(1024, 24),
    "pile-1b5": _pile(2048, 24),
    "pile-3b": _pile(2560, 32),
    "pile-7b": _pile(4096, 32),
    "pile-14b": _pile(5120, 40),
}
