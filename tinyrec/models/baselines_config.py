"""The choices of the baselines: sizes, and what their papers leave open."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BaselineConfig:
    """Sizes and switches; the defaults are a tiny model. `mixer` decides which of the others are read."""

    vocab_size: int = 256
    d_model: int = 64  # D; also the width of the recurrence
    n_layers: int = 3  # L
    mixer: str = "lstm"  # "lstm", "qrnn" or "aft"
    mlp_expansion: int = 3  # M, width of the gated MLP over D
    forget_bias: float = 1.0  # lstm: start of the forget gate's bias; 1 lets a fresh cell remember (PyTorch: none)
    pooling: str = "fo"  # qrnn: "f", "fo" (an output gate) or "ifo" (an input gate of its own too)
    kind: str = "local"  # aft: "full" (any bias), "local" (biases in a window) or "simple" (none)
    window: int = 32  # aft local: s, tokens with a bias of their own, the current one among them
    max_length: int = 1024  # aft full and local: places that have biases, so the longest sequence
    rank: int = 32  # aft full: the biases (T, T) are a product of two such thin matrices; paper: 128

    def __post_init__(self) -> None:
        for name in "vocab_size d_model n_layers mlp_expansion window max_length rank".split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        choices = {"mixer": ("lstm", "qrnn", "aft"), "pooling": ("f", "fo", "ifo"), "kind": ("full", "local", "simple")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    @property
    def longest(self) -> int | None:
        """Tokens that the model can read, or None where there is no limit."""
        return self.max_length if self.mixer == "aft" and self.kind != "simple" else None


PRESETS: dict[str, dict] = {"tiny": {}, "small": {"d_model": 128, "n_layers": 4}}
