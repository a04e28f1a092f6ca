"""The choices of Mamba-1: sizes, and the presets of the published checkpoints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MambaConfig:
    """Sizes; the defaults are a tiny model. In the paper's letters D is d_inner, N is d_state, Delta is dt."""

    vocab_size: int = 256
    d_model: int = 64  # M, width of the residual stream
    n_layers: int = 4  # L; a Mamba layer has no MLP, so two of them stand for one block of a transformer
    d_state: int = 16  # N, numbers of state per channel
    expand: int = 2  # D = expand * M, channels of the recurrence
    conv_width: int = 4  # K
    dt_rank: int = 0  # R, width of dt before it is spread over the channels; 0: ceil(M / 16)
    norm_eps: float = 1e-5  # of every RMSNorm

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "d_state", "expand", "conv_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dt_rank < 0:
            raise ValueError(f"dt_rank must be 0 (for d_model / 16, rounded up) or more, got {self.dt_rank}")
        if not 0.0 < self.norm_eps < float("inf"):
            raise ValueError(f"norm_eps must be positive and finite, got {self.norm_eps}")

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        """R."""
        return self.dt_rank or -(-self.d_model // 16)


def _pile(d_model: int, n_layers: int) -> dict:
    return {"vocab_size": 50280, "d_model": d_model, "n_layers": n_layers}


PRESETS: dict[str, dict] = {
    "tiny": {},
    "small": {"d_model": 128, "n_layers": 8},
    "mamba-130m": _pile(768, 24),
    "mamba-370m": _pile(1024, 48),
    "mamba-790m": _pile(1536, 48),
    "mamba-1.4b": _pile(2048, 48),
    "mamba-2.8b": _pile(2560, 64),
}
