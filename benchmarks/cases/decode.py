"""One token at a time at batch 1, after a prompt of 256 or 4096 tokens; the models of train_step.

The prompt is read before the clock starts. The official attention cache always holds W tokens, so MQA gets a window
as long as its prompt: full from the first measured token on.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Case
from benchmarks.cases.train_step import KINDS, VOCAB, tinyrec_griffin, torch_model

TOKENS_PER_CALL = 16


def tinyrec_writing(build: Callable[[], object], context: int) -> Callable[[], object]:
    """Tokens from the model that build() makes."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    from tinyrec.models import decoder
    from tinyrec.nn import without_tape

    threadpool_limits(1)  # as `tinyrec generate` does: one token is too little work to share
    model = build()
    reader, writer = without_tape(model), decoder(model)  # as it does, too
    tokens = np.random.default_rng(0).integers(0, VOCAB, (1, context))
    logits, state = reader.prefill(tokens, reader.initial_state(1))
    token = logits[:, -1].argmax(-1)  # (1,)

    def call() -> None:
        nonlocal token, state
        for _ in range(TOKENS_PER_CALL):
            logits, state = writer.step(token, state)
            token = logits.argmax(-1)

    return call


def torch_side(kind: str, context: int) -> Callable[[], object]:
    import torch

    model = torch_model(kind, "unbind", context)  # the scan only matters for the prompt, which is not timed
    with torch.no_grad():
        logits, states = model(torch.randint(0, VOCAB, (1, context)), torch.arange(context)[None])
    token, position = logits[:, -1:].argmax(-1), torch.tensor([[context]])  # both (1, 1)

    @torch.no_grad()
    def call() -> None:
        nonlocal token, position, states
        for _ in range(TOKENS_PER_CALL):
            logits, states = model(token, position, states)
            token, position = logits.argmax(-1), position + 1

    return call


CASES = [
    Case(
        f"decode/{kind}@{context}",
        {
            "tinyrec": partial(tinyrec_writing, partial(tinyrec_griffin, kind), context),
            "torch": partial(torch_side, kind, context),
        },
        per_call=TOKENS_PER_CALL,
        unit="token",
    )
    for kind in KINDS
    for context in (256, 4096)
]
