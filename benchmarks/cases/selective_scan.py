"""The selective scan, forward and backward, float32, at the size it has in a Mamba of width 128, batch 4.

On two threads each of two Python threads of tinyrec has half of the batch. "tinyrec-simd" is the kernel on the CPU,
`use_host_kernels()`.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.cases import Case
from benchmarks.cases.host_kernels import with_host_kernels

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


def sides(threads: int, scans: tuple[str, ...]) -> dict:
    ours = partial(tinyrec_side, threads)
    both = {"tinyrec": ours, "tinyrec-simd": partial(with_host_kernels, ours)}
    return both | {f"torch-{scan}": partial(torch_side, scan) for scan in scans}


CASES = [
    Case("selective-scan/1-thread", sides(1, ("unbind", "steps", "indexed")), threads=1),
    Case("selective-scan/2-threads", sides(2, ("unbind", "steps")), threads=2),
]
