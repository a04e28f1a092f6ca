"""AFT's three forms, forward and backward, float32, beside PyTorch in eager mode; one thread. The keys are standard
normal, so tinyrec takes its two matrix products, as PyTorch's side always does.

aft/local: PyTorch with the whole (T, T) matrix, or with s shifted products. aft/simple: with running sums under one
maximum, which large keys break, or in a loop over time, which is right for any keys, as tinyrec's is.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Case

B, T, C, WINDOW = 8, 256, 256, 32


def tinyrec_side(form: str) -> Callable[[], object]:
    import numpy as np

    from tinyrec import Tensor, grad
    from tinyrec.recurrences.aft import aft_full, aft_local, aft_simple
    from tinyrec.recurrences.wkv import fresh_state

    rng = np.random.default_rng(0)
    k, v, w, window = (
        Tensor(rng.standard_normal(shape, np.float32), True) for shape in ((B, T, C), (B, T, C), (T, T), (T, WINDOW))
    )
    dn, state = rng.standard_normal((B, T, C), np.float32), fresh_state(B, C, k.data)
    recent = np.zeros((B, 0, C), np.float32)
    calls = {
        "full": lambda: grad(aft_full(k, v, w), [k, v, w], g=dn),
        "local": lambda: grad(aft_local(k, v, window, *state, recent, recent)[0], [k, v, window], g=dn),
        "simple": lambda: grad(aft_simple(k, v, *state)[0], [k, v], g=dn),
    }
    return calls[form]


def torch_side(form: str) -> Callable[[], object]:
    import torch

    from benchmarks import torch_aft

    width = {"full": T, "local_dense": WINDOW, "local_shifts": WINDOW}.get(form)
    leaves = [torch.randn(B, T, C).requires_grad_() for _ in range(2)]
    leaves += [] if width is None else [torch.randn(T, width).requires_grad_()]
    dn, run = torch.randn(B, T, C), getattr(torch_aft, form)

    def call() -> None:
        for x in leaves:
            x.grad = None
        run(*leaves).backward(dn)

    return call


FORMS = {  # ours: {side: the function of torch_aft.py}
    "full": {"torch": "full"},
    "local": {"torch": "local_dense", "torch-shifts": "local_shifts"},
    "simple": {"torch": "simple_cumsum", "torch-unbind": "simple_unbind"},
}
CASES = [
    Case(
        f"aft/{form}",
        {"tinyrec": partial(tinyrec_side, form)} | {side: partial(torch_side, f) for side, f in theirs.items()},
        threads=1,
    )
    for form, theirs in FORMS.items()
]
