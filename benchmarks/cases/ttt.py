"""TTT: its inner loop alone, a training step and decoding, at the sizes of train_step and decode.

ttt_linear/K: forward and backward of the inner loop of TTT-Linear over (B, T, H, d) = (8, 512, 4, 16), one thread, by
the tokens K in a mini-batch; ttt_linear/d and ttt_mlp/d: over (8, 256, 4, d), K = 16. "torch" is written operation for
operation as the official code; "torch-hoisted" takes all that it can out of the loop and uses PyTorch's fused
LayerNorm and gelu, the best eager form we found. Decoding is with the transformer backbone, and behind a context of any
length it should take tinyrec the same time.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.cases import Case
from benchmarks.cases.decode import TOKENS_PER_CALL, tinyrec_writing
from benchmarks.cases.train_step import LEARNING_RATE, VOCAB, B, D, T, tinyrec_model, tinyrec_training

if TYPE_CHECKING:
    from benchmarks.torch_ttt import TTTModel

HEADS, LAYERS, MLP = 4, 4, 344  # MLP: 8/3 D, rounded to a multiple of 8
MINI_BATCH = 16
BASE_RATE = {"linear": 1.0, "mlp": 0.1}
FORMS = {"torch": "official", "torch-hoisted": "hoisted"}


def shapes(kind: str, d: int) -> list[tuple[int, ...]]:
    """Of the inner weights of a head."""
    return [(d, d), (d,)] if kind == "linear" else [(d, 4 * d), (4 * d,), (4 * d, d), (d,)]


def tinyrec_inner(kind: str, length: int, d: int, mini_batch: int) -> Callable[[], object]:
    import numpy as np

    from tinyrec import Tensor, grad
    from tinyrec.recurrences.ttt_linear import ttt_linear
    from tinyrec.recurrences.ttt_mlp import ttt_mlp

    rng = np.random.default_rng(0)
    q, k, v, dz = (rng.standard_normal((B, length, HEADS, d), np.float32) for _ in range(4))
    lam = rng.uniform(0.2, 0.8, (B, length, HEADS)).astype(np.float32) * np.float32(BASE_RATE[kind] / d)
    tau = 1 / np.arange(1, mini_batch + 1, dtype=np.float32)
    gain, bias = np.ones((HEADS, d), np.float32), np.zeros((HEADS, d), np.float32)
    weights = [0.1 * rng.standard_normal((B, HEADS, *shape), np.float32) for shape in shapes(kind, d)]
    sums = [np.zeros_like(w) for w in weights]
    leaves = [Tensor(x, True) for x in (q, k, v, lam, tau, gain, bias, *weights)]
    loop = {"linear": ttt_linear, "mlp": ttt_mlp}[kind]
    return lambda: grad(loop(*leaves, *sums)[0], leaves, g=dz)


def torch_inner(form: str, kind: str, length: int, d: int, mini_batch: int) -> Callable[[], object]:
    import torch

    from benchmarks.torch_ttt_inner import LOOPS, step_sizes

    tokens = (B, HEADS, length // mini_batch, mini_batch)
    q, k, v, dz = (torch.randn(*tokens, d) for _ in range(4))
    lam = torch.empty(tokens).uniform_(0.2, 0.8) * BASE_RATE[kind] / d
    tau = 1 / torch.arange(1.0, mini_batch + 1)
    gain, bias = torch.ones(HEADS, 1, d), torch.zeros(HEADS, 1, d)
    rows = [shape if len(shape) == 2 else (1, *shape) for shape in shapes(kind, d)]
    weights = [0.1 * torch.randn(B, HEADS, *shape) for shape in rows]
    leaves = [x.requires_grad_() for x in (q, k, v, lam, tau, gain, bias, *weights)]

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        z, *_ = LOOPS[kind, form](q, k, v, step_sizes(lam, tau), gain, bias, *weights)
        z.backward(dz)

    return call


def tinyrec_ttt(kind: str, backbone: str) -> object:
    sizes = {"n_layers": LAYERS, "n_heads": HEADS, "d_mlp": MLP, "mini_batch": MINI_BATCH}
    return tinyrec_model(f"ttt-{kind}", backbone=backbone, **sizes)


def torch_model(form: str, kind: str, backbone: str) -> "TTTModel":
    from benchmarks.torch_ttt import TTTModel
    from benchmarks.torch_ttt_layer import Config

    return TTTModel(Config(VOCAB, D, MLP, LAYERS, HEADS, kind, backbone, MINI_BATCH, BASE_RATE[kind], inner=form))


def torch_train(form: str, kind: str, backbone: str) -> Callable[[], object]:
    import torch

    from benchmarks.torch_training import train_step

    model = torch_model(form, kind, backbone)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    tokens = torch.randint(0, VOCAB, (B, T + 1))
    return lambda: train_step(model, optimizer, tokens[:, :-1], tokens[:, 1:])


def torch_decode(kind: str, backbone: str, context: int) -> Callable[[], object]:
    import torch

    model = torch_model("official", kind, backbone)
    with torch.no_grad():
        logits, cache = model(torch.randint(0, VOCAB, (1, context)), model.empty_cache(1))
    token = logits[:, -1:].argmax(-1)  # (1, 1)

    @torch.no_grad()
    def call() -> None:
        nonlocal token, cache
        for _ in range(TOKENS_PER_CALL):
            logits, cache = model(token, cache)
            token = logits.argmax(-1)

    return call


def inner_case(name: str, *sizes: object) -> Case:
    sides = {"tinyrec": partial(tinyrec_inner, *sizes)}
    return Case(name, sides | {side: partial(torch_inner, form, *sizes) for side, form in FORMS.items()}, threads=1)


CASES = [inner_case(f"ttt_linear/K{size}", "linear", 512, 16, size) for size in (1, 4, 8, 16, 32, 64, 128)]
CASES += [inner_case(f"ttt_linear/d{d}", "linear", 256, d, MINI_BATCH) for d in (16, 32, 64)]
CASES += [inner_case(f"ttt_mlp/d{d}", "mlp", 256, d, MINI_BATCH) for d in (16, 32)]
CASES += [
    Case(
        f"train_step/ttt-{kind}-{backbone}",
        {"tinyrec": partial(tinyrec_training, partial(tinyrec_ttt, kind, backbone))}
        | {side: partial(torch_train, form, kind, backbone) for side, form in FORMS.items()},
    )
    for kind in BASE_RATE
    for backbone in ("transformer", "mamba")
]
CASES += [
    Case(
        f"decode/ttt-linear@{context}",
        {"tinyrec": partial(tinyrec_writing, partial(tinyrec_ttt, "linear", "transformer"), context)}
        | ({"torch": partial(torch_decode, "linear", "transformer", context)} if context in (256, 4096) else {}),
        per_call=TOKENS_PER_CALL,
        unit="token",
    )
    for context in (256, 1024, 4096, 16384)
]
