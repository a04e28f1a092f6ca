"""
Why RWKV starts its embedding near zero
=======================================

Claim: with entries of +-1e-4 and a LayerNorm behind it, an embedding row forgets its random start after one update of
Adam, and the loss falls fastest at first. Over N(0, 0.02^2) with the same LayerNorm the lead shrinks as training goes
on; over N(0, 0.02^2) without one it is about a tenth of a nat. A start of size 1 is far behind. Five variants, three
seeds, 100 steps: nothing is said here about the end of a long training.

    python demos/plot_rwkv_small_init.py      one to two minutes; prints a table, draws demos/out/rwkv_small_init.png
"""

import re
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
from threadpoolctl import threadpool_limits

from tinyrec.data import load_text
from tinyrec.models import build, make_config
from tinyrec.nn import parameters
from tinyrec.ops import cross_entropy
from tinyrec.optim import clip_by_global_norm, optimizer_for
from tinyrec.parallel import loss_and_grads
from tinyrec.tape import no_grad

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
VOCAB, B, T, STEPS, LOOKS = 1024, 16, 32, 100, [10, 25, 50, 100]
VARIANTS = [("small", True), ("normal", False), ("small", False), ("normal", True), ("unit", True)]
NAMES = {"small": "U(-1e-4, 1e-4)", "normal": "N(0, 0.02^2)", "unit": "N(0, 1)"}
SEEDS = range(3)
threadpool_limits(1)  # two Python threads share each batch instead

# %%
# Words, so that most rows are rarely seen
# ----------------------------------------
# The 1023 most frequent words and signs of the standard library's documentation; all others are number 0.

words = re.findall(rb"[A-Za-z]+|[^A-Za-z\s]", load_text("pydoc", 1_500_000))
number = {word: n + 1 for n, (word, _) in enumerate(Counter(words).most_common(VOCAB - 1))}
ids = np.array([number.get(word, 0) for word in words])
held_out = ids[-len(ids) // 10 :]
ids = ids[: -len(held_out)]
windows = held_out[: len(held_out) // (T + 1) * (T + 1)].reshape(-1, T + 1)[:128]
print(f"{len(ids):,} words to learn from, {windows.size:,} held out, {VOCAB} kinds\n")


# %%
# The runs
# --------
# Adam at 8e-4, constant, no weight decay, as the paper's text has it. Within a seed all variants see the same batches,
# and start with the same other weights.


def run(kind, ln0, seed):
    """Held-out loss in nats per word at LOOKS."""
    config = make_config("rwkv", vocab_size=VOCAB, d_model=64, n_layers=2, embedding_init=kind, ln0=ln0)
    model = build("rwkv", config, np.random.default_rng(seed))
    optimizer, rng, losses = optimizer_for(model, 8e-4, weight_decay=0.0), np.random.default_rng([seed, 1]), []
    for step in range(1, STEPS + 1):
        starts = rng.integers(0, len(ids) - T, B)
        batch = ids[starts[:, None] + np.arange(T + 1)]
        optimizer.zero_grad()
        loss_and_grads(model, batch[:, :-1], batch[:, 1:], threads=2)
        clip_by_global_norm(parameters(model), 1.0)
        optimizer.step()
        if step in LOOKS:
            with no_grad():
                losses.append(cross_entropy(model(windows[:, :-1]), windows[:, 1:]).item())
    return losses


results = {variant: np.array([run(*variant, seed) for seed in SEEDS]) for variant in VARIANTS}  # (seeds, looks)
print("held-out loss, nats per word: mean of three seeds (lowest - highest)")
print(f"{'embedding':16} {'LN0':4}" + "".join(f"{f'step {step}':>24}" for step in LOOKS))
for (kind, ln0), losses in results.items():
    cells = [f"{x.mean():.3f} ({x.min():.3f} - {x.max():.3f})" for x in losses.T]
    print(f"{NAMES[kind]:16} {'yes' if ln0 else 'no':4}" + "".join(f"{cell:>24}" for cell in cells))
best = [min(results, key=lambda v: results[v][:, look].mean()) for look in range(len(LOOKS))]
for step, (kind, ln0) in zip(LOOKS, best, strict=True):
    print(f"lowest at step {step}: {NAMES[kind]} {'with' if ln0 else 'without'} LN0")

# %%
# The figure
# ----------

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for (kind, ln0), losses in results.items():
    label = f"{NAMES[kind]}, {'LN0' if ln0 else 'no LN0'}"
    (line,) = axes.plot(LOOKS, losses.mean(axis=0), "o-" if ln0 else "o--", label=label)
    axes.fill_between(LOOKS, losses.min(axis=0), losses.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0)
axes.set(xscale="log", xlabel="step", ylabel="nats per word, held out", title="three seeds; band: lowest to highest")
axes.set_xticks(LOOKS, [str(step) for step in LOOKS])
axes.minorticks_off()
axes.legend()
axes.grid(alpha=0.3)
figure.savefig(OUT / "rwkv_small_init.png", dpi=120)
print("figure: out/rwkv_small_init.png")
