"""h_t = a_t h_{t-1} + x_t over (B, T, D) = (8, 512, 512), float32, one thread, beside the floor that memory sets.

The floor is the time of passing once over the bytes that must be touched, arrays ready, no arithmetic to speak of:
forward reads a, x and writes h (12 bytes an element), backward reads a, h, dh and writes dx, da (20 bytes).

scan-rows: the two forms of the NumPy scan side by side; below 1 the two-level form is faster.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Case

B, T, D = 8, 512, 512


def tinyrec_side(backward: bool) -> Callable[[], object]:
    import numpy as np

    from tinyrec import Tensor, grad
    from tinyrec.recurrences.scan import scan

    rng = np.random.default_rng(0)
    a, x, dh = (rng.random((T, B, D), dtype=np.float32) for _ in range(3))  # time first, as the scan wants it
    h_init = np.zeros((B, D), np.float32)
    if not backward:
        return lambda: scan(a, x, h_init)
    leaves = [Tensor(a, True), Tensor(x, True)]
    return lambda: grad(scan(*leaves, h_init)[0], leaves, g=dh)


def floor_side(backward: bool) -> Callable[[], object]:
    import numpy as np

    a, x, h = (np.ones((T, B, D), np.float32) for _ in range(3))
    if not backward:
        return lambda: np.add(a, x, out=h)
    dh, dx, da = (np.ones((T, B, D), np.float32) for _ in range(3))

    def call() -> None:
        np.add(a, x, out=h)
        np.add(a, h, out=dx)
        np.copyto(da, dh)

    return call


def torch_side(backward: bool, scan: str) -> Callable[[], object]:
    import torch

    from benchmarks.torch_rglru import SCANS

    run = SCANS[scan]
    a, x, dh = (torch.rand(B, T, D) for _ in range(3))
    h_init = torch.zeros(B, D)
    if not backward:
        return torch.no_grad()(lambda: run(x, a, h_init))
    a.requires_grad_()
    x.requires_grad_()

    def call() -> None:
        a.grad = x.grad = None
        run(x, a, h_init)[0].backward(dh)

    return call


ROWS = (64, 256, 512, 1024)  # numbers in a row, around recurrences/scan.py's SHORT_ROW


def row_side(form: str, row: int) -> Callable[[], object]:
    """One form of the forward over (512, row), arrays ready: "_two_level" or "_loop" of recurrences/scan.py."""
    import numpy as np

    from tinyrec.recurrences import scan

    rng = np.random.default_rng(0)
    a, x, h = (rng.random((T, row), dtype=np.float32) for _ in range(3))
    run, h_init = getattr(scan, form), np.zeros(row, np.float32)
    return lambda: run(a, x, h_init, h)


CASES = [
    Case(
        f"scan/{name}",
        {
            "tinyrec": partial(tinyrec_side, backward),
            "floor": partial(floor_side, backward),
            "torch": partial(torch_side, backward, "official"),
            "torch-unbind": partial(torch_side, backward, "unbind"),
        },
        threads=1,
    )
    for name, backward in [("forward", False), ("forward+backward", True)]
]
CASES += [
    Case(
        f"scan-rows/{row}",
        {"tinyrec": partial(row_side, "_two_level", row), "loop": partial(row_side, "_loop", row)},
        threads=1,
    )
    for row in ROWS
]
