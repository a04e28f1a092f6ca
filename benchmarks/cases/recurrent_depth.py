"""The recurrent-depth transformer at the sizes of train_step and decode.

train_step/recurrent-depth@r: one training step of r iterations, of which the last 8 are recorded, so the first 0 or 8
are silent. decode/recurrent-depth@T: one token at a time at batch 1, 8 iterations each, after a context of T tokens.
Every call starts again from that context; since it is made before the clock starts, random tokens do. The sides of
PyTorch differ in how they keep the keys and values of earlier tokens: for each new one "torch-official" stacks them all
from single tokens, as the cache that the official code makes by default; "torch" copies them all with one `cat`;
"torch-roomy" copies none, which is the fair form.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.cases import Case
from benchmarks.cases.decode import TOKENS_PER_CALL
from benchmarks.cases.train_step import LEARNING_RATE, VOCAB, B, D, T, tinyrec_model, tinyrec_training

if TYPE_CHECKING:
    from benchmarks.torch_recurrent_depth import Raven

HEADS, MLP = 4, 432  # 3.39 D, as published, rounded to a multiple of 16
PRELUDE, CORE, CODA = 1, 2, 1
RECORDED = 8
DECODING_STEPS = 8
STATE_STD = 0.4**0.5  # of s_0

tinyrec_depth = partial(
    tinyrec_model,
    "recurrent-depth",
    n_heads=HEADS,
    d_mlp=MLP,
    n_prelude=PRELUDE,
    n_core=CORE,
    n_coda=CODA,
)


def torch_model(most: int) -> "Raven":
    from benchmarks.torch_recurrent_depth import Config, Raven

    return Raven(Config(VOCAB, D, HEADS, MLP, PRELUDE, CORE, CODA, block_size=most))


def tinyrec_inputs(steps: int) -> dict:
    import numpy as np

    s0 = np.random.default_rng(0).standard_normal((B, T, D), np.float32) * STATE_STD
    return {"steps": steps, "grad_steps": RECORDED, "initial_state": s0}


def torch_train(steps: int) -> Callable[[], object]:
    import torch

    from benchmarks.torch_recurrent_depth import train_step

    model = torch_model(T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    tokens, s0 = torch.randint(0, VOCAB, (B, T + 1)), torch.randn(B, T, D) * STATE_STD
    return lambda: train_step(model, optimizer, tokens[:, :-1], tokens[:, 1:], steps - RECORDED, RECORDED, s0)


def tinyrec_decode(context: int) -> Callable[[], object]:
    import numpy as np
    from threadpoolctl import threadpool_limits

    from tinyrec.models import decoder
    from tinyrec.models.recurrent_depth_decode import without_last

    threadpool_limits(1)  # as `tinyrec generate` does: one token is too little work to share
    reader = decoder(tinyrec_depth())  # as it does, too
    tokens = np.random.default_rng(0).integers(0, VOCAB, (1, context))
    logits, prompt = reader.prefill(tokens, reader.initial_state(1, slots=DECODING_STEPS), steps=DECODING_STEPS)
    first = logits[:, -1].argmax(-1)  # (1,)

    def call() -> None:
        token, state = first, without_last(prompt, 0)  # 0: gives up what an earlier call has written behind it
        for _ in range(TOKENS_PER_CALL):
            logits, state = reader.step(token, state, steps=DECODING_STEPS)
            token = logits.argmax(-1)

    return call


def torch_decode(kind: str, context: int) -> Callable[[], object]:
    import torch

    from benchmarks.torch_recurrent_depth import GrowingCache, RoomyCache, StackingCache

    most = context + TOKENS_PER_CALL
    model = torch_model(most)
    cache = {"official": StackingCache, "growing": GrowingCache, "roomy": partial(RoomyCache, most)}[kind]()
    with torch.no_grad():
        first = model(torch.randint(0, VOCAB, (1, context)), DECODING_STEPS, 0, cache=cache)[:, -1:].argmax(-1)

    @torch.no_grad()
    def call() -> None:
        token = first  # (1, 1)
        cache.cut(context)
        for _ in range(TOKENS_PER_CALL):
            token = model(token, DECODING_STEPS, 0, cache=cache).argmax(-1)

    return call


CASES = [
    Case(
        f"train_step/recurrent-depth@{steps}",
        {
            "tinyrec": partial(tinyrec_training, tinyrec_depth, partial(tinyrec_inputs, steps)),
            "torch": partial(torch_train, steps),
        },
    )
    for steps in (8, 16)
]
CASES += [
    Case(
        f"decode/recurrent-depth@{context}",
        {
            "tinyrec": partial(tinyrec_decode, context),
            "torch-official": partial(torch_decode, "official", context),
            "torch": partial(torch_decode, "growing", context),
            "torch-roomy": partial(torch_decode, "roomy", context),
        },
        per_call=TOKENS_PER_CALL,
        unit="token",
    )
    for context in (256, 4096)
]
