"""Mamba at the sizes of train_step and decode: one training step, and one token at a time at batch 1.

"torch" is the S6 recurrence in ops of autograd, one step after the other (unbind, not indexing); "torch-fused" the same
in chunks with a backward written by hand, the best eager form we found. "tinyrec-simd": its kernel on the CPU, as in
`tinyrec train --kernels host`.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.cases import Case
from benchmarks.cases.decode import TOKENS_PER_CALL, tinyrec_writing
from benchmarks.cases.host_kernels import with_host_kernels
from benchmarks.cases.train_step import LEARNING_RATE, VOCAB, B, D, T, tinyrec_model, tinyrec_training

if TYPE_CHECKING:
    from benchmarks.torch_mamba import Mamba

LAYERS = 8  # a Mamba layer is about half of a transformer's block
tinyrec_mamba = partial(tinyrec_model, "mamba", n_layers=LAYERS)


def torch_model(scan: str) -> "Mamba":
    from benchmarks.torch_mamba import Config, Mamba

    return Mamba(Config(VOCAB, D, LAYERS, state_size=16, time_step_rank=8, scan=scan))


def torch_train(scan: str) -> Callable[[], object]:
    import torch

    from benchmarks.torch_training import train_step

    model = torch_model(scan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    tokens = torch.randint(0, VOCAB, (B, T + 1))
    return lambda: train_step(model, optimizer, tokens[:, :-1], tokens[:, 1:])


def torch_decode(context: int) -> Callable[[], object]:
    import torch

    model = torch_model("by_hand")
    with torch.no_grad():
        logits, states = model(torch.randint(0, VOCAB, (1, context)))
    token = logits[:, -1:].argmax(-1)  # (1, 1)

    @torch.no_grad()
    def call() -> None:
        nonlocal token, states
        for _ in range(TOKENS_PER_CALL):
            logits, states = model(token, states)
            token = logits.argmax(-1)

    return call


tinyrec_train = partial(tinyrec_training, tinyrec_mamba)
TRAIN = {
    "tinyrec": tinyrec_train,
    "tinyrec-simd": partial(with_host_kernels, tinyrec_train),
    "torch": partial(torch_train, "steps"),
    "torch-fused": partial(torch_train, "by_hand"),
}
CASES = [Case("train_step/mamba", TRAIN)]
CASES += [
    Case(
        f"decode/mamba@{context}",
        {"tinyrec": partial(tinyrec_writing, tinyrec_mamba, context), "torch": partial(torch_decode, context)},
        per_call=TOKENS_PER_CALL,
        unit="token",
    )
    for context in (256, 4096)
]
