"""RWKV-4 at the sizes of train_step and decode: one training step, and one token at a time at batch 1.

"torch" is the published recurrence under autograd, "torch-fused" the same fused by hand, "torch-hf" the model of the
transformers package, whose memory includes that package. For one token, "torch" is a loop like the official RWKV_RNN.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.cases import Case
from benchmarks.cases.decode import TOKENS_PER_CALL, tinyrec_writing
from benchmarks.cases.train_step import LEARNING_RATE, VOCAB, B, D, T, tinyrec_model, tinyrec_training

if TYPE_CHECKING:
    from torch import nn

LAYERS = 4


# PyTorch's sides have no L2Wrap.
tinyrec_rwkv = partial(tinyrec_model, "rwkv", n_layers=LAYERS, l2wrap=0.0)


def torch_model(form: str) -> "nn.Module":
    from benchmarks.torch_rwkv import RWKV, Config, huggingface

    return huggingface(Config(VOCAB, D, LAYERS)) if form == "hf" else RWKV(Config(VOCAB, D, LAYERS, form))


def torch_train(form: str) -> Callable[[], object]:
    import torch

    from benchmarks.torch_rwkv import train_step

    model = torch_model(form)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    tokens = torch.randint(0, VOCAB, (B, T + 1))
    return lambda: train_step(model, optimizer, tokens)


def torch_decode(context: int) -> Callable[[], object]:
    import torch

    from benchmarks.torch_rwkv import RNN

    rnn = RNN(torch_model("fused"))  # WKV has a step of its own here
    state = rnn.initial_state()
    for token in torch.randint(0, VOCAB, (context,)).tolist():
        logits, state = rnn.step(token, state)
    token = int(logits.argmax())

    def call() -> None:
        nonlocal token, state
        for _ in range(TOKENS_PER_CALL):
            logits, state = rnn.step(token, state)
            token = int(logits.argmax())

    return call


def huggingface_decode(context: int) -> Callable[[], object]:
    import torch

    model = torch_model("hf").eval()
    with torch.no_grad():
        out = model(torch.randint(0, VOCAB, (1, context)), use_cache=True)

    @torch.no_grad()
    def call() -> None:
        nonlocal out
        for _ in range(TOKENS_PER_CALL):
            out = model(out.logits[:, -1:].argmax(-1), state=out.state, use_cache=True)

    return call


TRAIN = {
    "tinyrec": partial(tinyrec_training, tinyrec_rwkv),
    "torch": partial(torch_train, "loop"),
    "torch-fused": partial(torch_train, "fused"),
    "torch-hf": partial(torch_train, "hf"),
}


def decode_sides(context: int) -> dict:
    ours = partial(tinyrec_writing, tinyrec_rwkv)
    sides = {"tinyrec": ours, "torch": torch_decode, "torch-hf": huggingface_decode}
    return {name: partial(side, context) for name, side in sides.items()}


CASES = [Case("train_step/rwkv", TRAIN)]
CASES += [
    Case(f"decode/rwkv@{context}", decode_sides(context), per_call=TOKENS_PER_CALL, unit="token")
    for context in (256, 4096)
]
