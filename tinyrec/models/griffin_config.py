"""The choices of the Griffin family: sizes, the points where paper and released code differ, and the presets."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("recurrent", "local", "global")


@dataclass(frozen=True)
class GriffinConfig:
    """Sizes and switches; the defaults are a tiny model. [P] is the paper, [C] the released code (recurrentgemma)."""

    vocab_size: int = 256
    d_model: int = 64  # D
    n_layers: int = 3  # L
    pattern: tuple[str, ...] = ("recurrent",)  # cycled over the layers; Griffin: recurrent, recurrent, local
    d_rnn: int = 96  # E; [P] about 4 D / 3, RecurrentGemma: D
    n_heads: int = 4  # query heads, each D / n_heads wide, sharing one key/value head; [P] 128 wide, RecurrentGemma 256
    gate_blocks: int = 4  # diagonal blocks of the two RG-LRU gates; [P] 16, [C] one per head
    mlp_expansion: int = 3  # M, width of the gated MLP over D
    window: int = 32  # W: past tokens that local attention sees besides itself; [P] 1024, RecurrentGemma 2048
    conv_width: int = 4
    embed_scale: bool = False  # embeddings times sqrt(D) rounded to bfloat16: [P] not mentioned, RecurrentGemma yes
    logit_cap: float = 0.0  # cap * tanh(logits / cap), 0 for none: [P] none, RecurrentGemma 30
    decay_init: str = "code"  # [C] a = sqrt(U), U in (0.9^2, 0.999^2); "paper": a^8 uniform in (0.9, 0.999), longer
    gate_init: str = "torch"  # gates and MLP inputs: "torch" N(0, 1 / fan-in); "jax" also divides by the leading axis
    reset: bool = True  # [C] at a document start the state is dropped and the input unscaled (m = 1); [P] not mentioned
    rope_fraction: float = 0.5  # [C] the first half of every head is rotated; [P] says only "RoPE"
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        sizes = "vocab_size d_model n_layers d_rnn n_heads gate_blocks mlp_expansion conv_width".split()
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        wrong = [kind for kind in self.pattern if kind not in KINDS]
        if wrong or not self.pattern:
            raise ValueError(f"pattern must list kinds out of {', '.join(KINDS)}, got {self.pattern}")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} must be a multiple of n_heads {self.n_heads}")
        if self.d_rnn % self.gate_blocks:
            raise ValueError(f"d_rnn {self.d_rnn} must be a multiple of gate_blocks {self.gate_blocks}")
        if not 0 <= self.rope_fraction <= 1 or self.rotated % 2:
            head = f"a head of {self.head_width}"
            raise ValueError(f"rope_fraction {self.rope_fraction} must rotate an even part of {head}")
        if self.window < 0 or self.logit_cap < 0:
            raise ValueError(f"window and logit_cap must not be negative, got {self.window} and {self.logit_cap}")
        for name, known in (("decay_init", ("code", "paper")), ("gate_init", ("torch", "jax"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {getattr(self, name)!r}")

    @property
    def kinds(self) -> list[str]:
        """The kind of mixer of each layer."""
        return [self.pattern[i % len(self.pattern)] for i in range(self.n_layers)]

    @property
    def head_width(self) -> int:
        return self.d_model // self.n_heads

    @property
    def rotated(self) -> int:
        """Features of each head that RoPE turns."""
        return round(self.head_width * self.rope_fraction)


HAWK = ("recurrent",)
GRIFFIN = ("recurrent", "recurrent", "local")
TRANSFORMER = ("global",)

# The two readings of the same model, apart from sizes (paper: table 2; recurrentgemma-2b: the released checkpoint).
_PAPER = {"gate_blocks": 16, "decay_init": "paper", "reset": False, "rope_fraction": 1.0}  # what the text says
_RECURRENTGEMMA = {"embed_scale": True, "logit_cap": 30.0}  # what was released
_BIG = {"vocab_size": 256000, "window": 1024}

PRESETS: dict[str, dict] = {
    "tiny": {},
    "small": {"d_model": 128, "n_layers": 4, "d_rnn": 172, "window": 64},
    "paper": _PAPER,  # tiny, with the choices of the text
    "paper-100m": {**_PAPER, **_BIG, "d_model": 768, "d_rnn": 1024, "n_layers": 12, "n_heads": 6},
    "paper-1b": {**_PAPER, **_BIG, "d_model": 2048, "d_rnn": 2560, "n_layers": 24, "n_heads": 16},
    "paper-7b": {**_PAPER, **_BIG, "d_model": 4096, "d_rnn": 5632, "n_layers": 32, "n_heads": 32},
    "recurrentgemma": {**_RECURRENTGEMMA, "d_rnn": 64},  # tiny, with the choices of the release; there E = D
    "recurrentgemma-2b": {
        **_RECURRENTGEMMA, "vocab_size": 256000, "window": 2048, "d_model": 2560, "d_rnn": 2560, "n_layers": 26,
        "n_heads": 10, "gate_blocks": 10,
    },
}  # fmt: skip
