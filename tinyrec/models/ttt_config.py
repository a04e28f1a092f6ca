"""The choices of TTT: sizes, the inner model, the backbone, and the presets of the paper."""

from __future__ import annotations

from dataclasses import dataclass

CHOICES = {"inner": ("linear", "mlp"), "backbone": ("transformer", "mamba")}


@dataclass(frozen=True)
class TTTConfig:
    """Sizes and switches; the defaults are a tiny model. 0 stands for what the comment says."""

    vocab_size: int = 256
    d_model: int = 64  # C, width of the residual stream
    n_layers: int = 3  # L
    n_heads: int = 4  # H, each with an inner model of its own, d = C / H wide
    inner: str = "linear"  # the inner model, x w + b; "mlp": gelu(x w1 + b1) w2 + b2, 4 d wide inside
    backbone: str = "mamba"  # convolutions, q and k of one product, a gate; "transformer": none of these
    mini_batch: int = 16  # K, tokens whose gradients are taken at the same weights
    d_mlp: int = 0  # F, width of the SwiGLU; 0: 8/3 C, rounded up to a multiple of 16
    conv_width: int = 4  # W, of the convolutions of backbone "mamba"
    rope_base: float = 10000.0
    base_lr: float = 0.0  # highest learning rate of the inner model; 0: 1.0 for "linear", 0.1 for "mlp"
    inner_warmup: float = 0.0  # share of base_lr in the first training step; 0: 1.0 for "linear", 0.1 for "mlp"
    checkpoint: int = 0  # keep weights before so many mini-batches and read again in the backward; 0: keep all it needs
    norm_eps: float = 1e-6  # of every RMSNorm

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "mini_batch", "conv_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {getattr(self, name)!r}")
        # RoPE turns pairs. And the LayerNorm of two numbers is +-1, whatever they are: nothing could be learned.
        if self.d_model % self.n_heads or self.head_width % 2 or self.head_width < 4:
            raise ValueError(f"d_model {self.d_model} must be n_heads {self.n_heads} heads of an even width from 4 up")
        for name, stands_for in {"d_mlp": "8/3 d_model", "checkpoint": "keeping all"}.items():
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 (for {stands_for}) or more, got {getattr(self, name)}")
        for name in ("base_lr", "inner_warmup"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 (as in the paper) or more and finite, got {getattr(self, name)}")
        for name in ("rope_base", "norm_eps"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")

    @property
    def head_width(self) -> int:
        """d."""
        return self.d_model // self.n_heads

    @property
    def mlp_width(self) -> int:
        """F."""
        return self.d_mlp or -(-8 * self.d_model // 48) * 16

    @property
    def inner_lr(self) -> float:
        """What sigmoid(...) / d is multiplied with: the highest learning rate of the inner model."""
        return self.base_lr or (1.0 if self.inner == "linear" else 0.1)

    @property
    def first_share(self) -> float:
        """What the inner learning rate is multiplied with in the first step of training."""
        return self.inner_warmup or (1.0 if self.inner == "linear" else 0.1)


def _paper(d_model: int, n_layers: int, n_heads: int, d_mlp: int) -> dict:
    sizes = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_mlp": d_mlp}
    return {"vocab_size": 32000, **sizes}


PRESETS: dict[str, dict] = {
    "tiny": {},
    "small": {"d_model": 128, "n_layers": 4},
    "ttt-125m": _paper(768, 12, 12, 2048),
    "ttt-350m": _paper(1024, 24, 16, 2736),
    "ttt-760m": _paper(1536, 24, 16, 4096),
    "ttt-1.3b": _paper(2048, 24, 32, 5504),
}
