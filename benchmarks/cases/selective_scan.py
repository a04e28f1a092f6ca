"""The selective scan, forward and backward, float32, at the size it has in a Mamba of width 128, batch 4.

On two threads tinyrec does what its training does: each of two Python threads has half of the batch.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Case

B, T, D, N = 4, 256, 256, 16


def tinyrec_side(threads: int) -> Callable[[], object]:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from threadpoolctl import threadpool_limits

    from tinyrec import Tensor, grad
    from tinyrec.recurrences.selective_scan import selective_scan

    rng = np.random.default_rng(0)
    u, dy = (rng.standard_normal((B, T, D), np.float32) for _ in range(2))
    dt = np.exp(rng.uniform(-7, -2, (B, T, D))).astype(np.float32)  # from 0.001 to 0.1, as at initialisation
    b, c = (rng.standard_normal((B, T, N), np.float32) for _ in range(2))
    a = np.tile(-np.arange(1, N + 1, dtype=np.float32), (D, 1))
    d, h_init = np.ones(D, np.float32), np.zeros((B, D, N), np.float32)
    threadpool_limits(1, user_api="blas")
    pool = ThreadPoolExecutor(threads)

    def shard(rows: slice) -> list:
        leaves = [Tensor(x, True) for x in (u[rows], dt[rows], a, b[rows], c[rows], d)]
        y, _ = selective_scan(*leaves, h_init[rows])
        return grad(y, leaves, g=dy[rows])

    shards = [slice(B * i // threads, B * (i + 1) // threads) for i in range(threads)]
    return lambda: list(pool.map(shard, shards))


def torch_side(scan: str) -> Callable[[], object]:
    import torch

    from benchmarks.torch_selective_scan import SCANS

    u, dy = torch.randn(B, T, D).requires_grad_(), torch.randn(B, T, D)
    dt = torch.empty(B, T, D).uniform_(-7, -2).exp().requires_grad_()
    b, c = torch.randn(B, T, N).requires_grad_(), torch.randn(B, T, N).requires_grad_()
    a = (-torch.arange(1.0, N + 1)).repeat(D, 1).requires_grad_()
    d, h_init = torch.ones(D).requires_grad_(), torch.zeros(B, D, N)

    def call() -> None:
        for leaf in (u, dt, a, b, c, d):
            leaf.grad = None
        SCANS[scan](u, dt, a, b, c, d, h_init)[0].backward(dy)

    return call


CASES = [
    Case(
        f"selective-scan/{threads}-thread{'s' * (threads > 1)}",
        {"tinyrec": partial(tinyrec_side, threads)} | {f"torch-{scan}": partial(torch_side, scan) for scan in scans},
        threads=threads,
    )
    for threads, scans in ((1, ("unbind", "steps", "indexed")), (2, ("unbind", "steps")))
]
