"""One training step of a tiny language model: forward, loss, backward, clip to norm 1, AdamW; float32, two threads;
tinyrec splits the batch between two processes, as `tinyrec train` does.

The paper's sizes shrunk: E = 4/3 D rounded to whole gate blocks, an MLP of 3 D, every third mixer of Griffin local
attention, no embedding scale and no soft cap.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.cases import Case

if TYPE_CHECKING:
    from typing import Any

    from benchmarks.torch_griffin import Griffin

B, T, VOCAB = 8, 256, 256
D, E, MLP, HEADS = 128, 172, 384, 4
WINDOW = 64  # of Griffin's local attention
LEARNING_RATE = 1e-3
KINDS = {
    "hawk": ("recurrent", "recurrent", "recurrent", "recurrent"),
    "griffin": ("recurrent", "recurrent", "attention", "recurrent"),
    "mqa": ("attention", "attention", "attention", "attention"),  # global: the window is the whole context
}


def tinyrec_training(build: Callable[[], "Any"], inputs: Callable[[], dict] = dict) -> Callable[[], object]:
    """One step of the model that build() makes; inputs() are what it is called with besides tokens."""
    import numpy as np

    from tinyrec.nn import parameters
    from tinyrec.optim import AdamW, clip_by_global_norm
    from tinyrec.parallel import sharing

    model, more = build(), inputs()
    optimizer = AdamW(parameters(model), LEARNING_RATE)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (B, T + 1))
    helpers = sharing(model, 2)  # two processes, this one and another, until this one ends
    run = helpers.__enter__()

    def call(keep: object = helpers) -> None:
        optimizer.zero_grad()
        run(tokens[:, :-1], tokens[:, 1:], **more)
        clip_by_global_norm(parameters(model), 1.0)
        optimizer.step()

    return call


def tinyrec_model(name: str, **options: "Any") -> "Any":
    import numpy as np

    from tinyrec.models import build, make_config

    return build(name, make_config(name, d_model=D, vocab_size=VOCAB, **options), np.random.default_rng(0))


def tinyrec_griffin(kind: str) -> "Any":
    names = {"recurrent": "recurrent", "attention": "local" if kind == "griffin" else "global"}
    pattern = tuple(names[k] for k in KINDS[kind])
    name = {"hawk": "hawk", "griffin": "griffin", "mqa": "transformer"}[kind]
    sizes = {"d_rnn": E, "n_heads": HEADS, "gate_blocks": HEADS, "window": WINDOW}
    return tinyrec_model(name, n_layers=len(pattern), pattern=pattern, **sizes)


def torch_model(kind: str, scan: str, context: int) -> "Griffin":
    import torch

    from benchmarks.torch_griffin import Config, Griffin

    torch.manual_seed(0)
    window = WINDOW if kind == "griffin" else context
    return Griffin(Config(VOCAB, D, MLP, HEADS, E, KINDS[kind], window, scan=scan))


def torch_side(kind: str, scan: str) -> Callable[[], object]:
    import torch

    from benchmarks.torch_griffin import train_step

    model = torch_model(kind, scan, T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    tokens = torch.randint(0, VOCAB, (B, T))
    positions = torch.arange(T).expand(B, T)
    return lambda: train_step(model, optimizer, tokens, positions)


def sides(kind: str) -> dict:
    ours = partial(tinyrec_training, partial(tinyrec_griffin, kind))
    both = {"tinyrec": ours, "torch": partial(torch_side, kind, "official")}
    return both if kind == "mqa" else both | {"torch-unbind": partial(torch_side, kind, "unbind")}


CASES = [Case(f"train_step/{kind}", sides(kind)) for kind in KINDS]
