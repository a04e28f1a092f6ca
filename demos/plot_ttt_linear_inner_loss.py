"""
The inner loss, before and after every step
===========================================

Claim: a trained TTT-Linear layer learns while it reads. The step that its inner model takes for a mini-batch lowers the
inner loss there, on average in every mini-batch, and in more than 99 % of the single ones. Along the sequence the loss
before the step falls too, to less than a third, mostly within the first mini-batches; at the first weights, W_0, it
stays what it was.

This is a property of the inner loop, and no evidence that the model predicts well: after 100 of 600 training steps,
when it says the next symbol little better than chance, the picture is the same, and the loss falls even lower.

An untrained layer does not show it: its losses stay near 0.5. LayerNorm gives whatever its inner model
answers the same variance, 1, and the answers should be almost 0. The first step even raises the loss, and the others
lower it by too little to see.

    python demos/plot_ttt_linear_inner_loss.py      trains for 10 s on one idle core, prints three tables,
                                                    draws demos/out/ttt_linear_inner_loss.png
"""

import math
from pathlib import Path

import matplotlib
import numpy as np
from threadpoolctl import threadpool_limits

from tinyrec.data.tasks import load_task
from tinyrec.evaluate import score_logits
from tinyrec.inspect import inner_losses
from tinyrec.models import make_config
from tinyrec.options import Options
from tinyrec.train import open_source, start, train

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
threadpool_limits(1)
SYMBOLS, K, WINDOWS, N = 12, 8, 32, 64
LOOKS = [1, 2, 4, 8, 16, 32, 64]
SHOWN = [0, 100, 600]  # training steps

# %%
# The model and its task
# ----------------------
# One layer, two heads of width 16, mini-batches of 8 tokens. Each sequence of the task `markov` has a rule of its own,
# a random permutation of 12 symbols, and follows it nine times out of ten. 64 tokens in training, and 512 here.

config = make_config("ttt-linear", vocab_size=SYMBOLS, d_model=32, n_heads=2, n_layers=1, mini_batch=K)
options = Options(
    task=f"markov:symbols={SYMBOLS}", context=64, batch=16, steps=SHOWN[-1], lr=1e-2, threads=1,
    log_every=SHOWN[-1], valid_every=SHOWN[-1],
)  # fmt: skip
task = load_task("markov", length=K * N, symbols=SYMBOLS)
tokens, targets = task.sample(WINDOWS, np.random.default_rng(5))

# %%
# The losses
# ----------
# |f(k) - v|^2 / 2 over the width of a head: the mean over both heads, the tokens of a mini-batch, and 32 sequences.

NAMES = {"at W_0": "0.6", "before the step": "tab:blue", "after the step": "tab:orange"}


def look(step, model):
    """Print the three losses over the mini-batches, and return them, (N,) each."""
    nats = score_logits(model(tokens).data, targets)[0].mean()
    found = inner_losses(model, tokens)  # (B, H, N, K) each
    lowered = found.after.mean(axis=(1, 3)) < found.before.mean(axis=(1, 3))  # (B, N)
    print(f"\nafter {step} training steps: {nats:.3f} nats a symbol")
    print(f"{'mini-batch':18}" + "".join(f"{n:8}" for n in LOOKS))
    means = _, before, after = [losses.mean(axis=(0, 1, 3)) for losses in found]
    for name, losses in zip(NAMES, means, strict=True):
        print(f"{name:18}" + "".join(f"{losses[n - 1]:8.3f}" for n in LOOKS))
    print(f"the step lowers the loss of its mini-batch in {lowered.mean():.2%} of {lowered.size} cases,", end=" ")
    print(f"and the mean of {WINDOWS} in {(after < before).sum()} of {N}")
    return means


print(f"chance is {math.log(SYMBOLS):.3f} nats, the rule's own noise leaves {task.floor:.3f}")
state = start("ttt-linear", config, options)
seen = {0: look(0, state.model)}
for record in train(state, open_source(options), options):
    if record["step"] in SHOWN:
        seen[record["step"]] = look(record["step"], state.model)

# %%
# The figure
# ----------

figure, row = plt.subplots(1, len(SHOWN), figsize=(12, 3.8), sharey=True, layout="constrained")
for axes, (step, means) in zip(row, seen.items(), strict=True):
    for (name, colour), losses in zip(NAMES.items(), means, strict=True):
        axes.plot(range(1, N + 1), losses, "o-", color=colour, markersize=3, label=name.replace("W_0", "$W_0$"))
    axes.set(xlabel="mini-batch", title=f"after {step} training steps", xscale="log")
    axes.set_xticks(LOOKS, [f"{n}" for n in LOOKS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
row[0].set_ylabel("inner loss")
row[0].set_ylim(bottom=0)
row[0].legend()
figure.savefig(OUT / "ttt_linear_inner_loss.png", dpi=120)
print(f"\nfigure: {OUT.name}/ttt_linear_inner_loss.png")
