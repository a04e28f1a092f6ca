"""The choices of the recurrent-depth transformer: sizes, the switches of the paper's three large runs, the presets."""

from __future__ import annotations

from dataclasses import dataclass

CHOICES = {
    "block": ("sandwich", "pre-norm"),
    "injection": ("adapter", "add"),
    "weight_init": ("normal", "orthogonal"),
    "state_init": ("like-init", "normal", "embed", "zero", "unit"),
    "sampler": ("lognormal-poisson", "poisson", "uniform", "fixed"),
}


@dataclass(frozen=True)
class RecurrentDepthConfig:
    """Sizes and switches; the defaults are a tiny model of the main run. [P] is the paper's model, Huginn-0125."""

    vocab_size: int = 256  # [P] 65536
    d_model: int = 64  # h; [P] 5280
    n_heads: int = 4  # [P] 55, each 96 wide
    d_mlp: int = 216  # m, width of the gated MLP; [P] 17920, which is 3.39 h
    n_prelude: int = 1  # l_P, blocks before the core; [P] 2
    n_core: int = 1  # l_R, blocks that are iterated; [P] 4
    n_coda: int = 1  # l_C, blocks after the core; [P] 2
    mean_steps: int = 8  # r-bar: how often the core runs, about, in training, and by default afterwards; [P] 32
    grad_steps: int = 4  # k: only the last k iterations are recorded for the backward; [P] 8
    sampler: str = "lognormal-poisson"  # of r in training, see draw_steps; the others are for comparison
    block: str = "sandwich"  # "pre-norm": bad run 2
    norm_gain: bool = True  # False: bad run 1
    injection: str = "adapter"  # A [s; e]; "add", s + e: bad run 1
    scaled_embedding: bool = True  # embeddings times gamma = sqrt(h); False, gamma = 1: bad run 1
    qk_bias: bool = True  # False: bad run 1
    weight_init: str = "normal"  # truncated at 3 deviations; "orthogonal": bad run 1
    state_init: str = "like-init"  # s_0 is as large as an embedding; others: see draw_state
    rope_base: float = 50000.0
    eps: float = 1e-6  # inside of the root of every RMSNorm
    recompute: bool = False  # run each recorded iteration again in the backward and keep only its input

    def __post_init__(self) -> None:
        for name in "vocab_size d_model n_heads d_mlp n_core mean_steps grad_steps".split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_prelude < 0 or self.n_coda < 0:
            raise ValueError(f"n_prelude and n_coda must be 0 or more, got {self.n_prelude} and {self.n_coda}")
        if self.d_model % self.n_heads or self.head_width % 2:
            raise ValueError(f"d_model {self.d_model} must be n_heads {self.n_heads} heads of an even width")
        if not self.eps > 0.0 or not self.rope_base > 0.0:
            raise ValueError(f"eps and rope_base must be positive, got {self.eps} and {self.rope_base}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {getattr(self, name)!r}")

    @property
    def head_width(self) -> int:
        return self.d_model // self.n_heads

    @property
    def n_layers(self) -> int:
        """Blocks that have weights of their own."""
        return self.n_prelude + self.n_core + self.n_coda

    @property
    def depth(self) -> int:
        """l: blocks that a token passes at mean_steps iterations, 132 in the paper; the output layers start by it."""
        return self.n_prelude + self.mean_steps * self.n_core + self.n_coda

    @property
    def matrices(self) -> int:
        """How many numbers all matrices hold, which is nearly all parameters."""
        h, each = self.d_model, 4 * self.d_model**2 + 3 * self.d_model * self.d_mlp
        return self.vocab_size * h + self.n_layers * each + (2 * h**2 if self.injection == "adapter" else 0)

    @property
    def gamma(self) -> float:
        """What embeddings are multiplied with: a constant, not a parameter."""
        return self.d_model**0.5 if self.scaled_embedding else 1.0

    @property
    def std(self) -> float:
        """sigma = sqrt(2 / (5 h)): of all matrices at the start, but for those that write into the stream."""
        return (2.0 / (5.0 * self.d_model)) ** 0.5

    @property
    def out_std(self) -> float:
        """sigma / sqrt(2 l): of those that write into the stream (Takase et al. 2023)."""
        return self.std / (2.0 * self.depth) ** 0.5


_BAD_RUN_1 = {
    "norm_gain": False, "injection": "add", "scaled_embedding": False, "qk_bias": False, "weight_init": "orthogonal",
}  # fmt: skip

PRESETS: dict[str, dict] = {
    "tiny": {},
    "small": {"d_model": 128, "d_mlp": 432, "n_core": 2, "grad_steps": 8},
    "main": {},  # the run that worked, at tiny size, like the next two
    "bad-run-1": _BAD_RUN_1,  # its tokens became all alike
    "bad-run-2": {"block": "pre-norm"},  # it learned to ignore the state
    "fixed-depth": {"mean_steps": 1, "grad_steps": 1, "sampler": "fixed"},  # the paper's baseline: no recurrence
    "parity": {"d_model": 48, "d_mlp": 128},
    "huginn-0125": {
        "vocab_size": 65536, "d_model": 5280, "n_heads": 55, "d_mlp": 17920, "n_prelude": 2, "n_core": 4, "n_coda": 2,
        "mean_steps": 32, "grad_steps": 8,
    },
}  # fmt: skip
