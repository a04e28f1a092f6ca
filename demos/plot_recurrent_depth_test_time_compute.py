"""
More iterations at test time, more right answers
================================================

Claim: trained with r drawn at random, a recurrent-depth transformer answers more the longer it thinks, and does not
overthink. On prefix parity three seeds rise from 0.62 or 0.63 right answers after one iteration to 0.83, 0.90 and 0.96
after 12; from there to 64 nothing changes by more than 0.002. On sequences that are longer than any in training it is
the same at a lower level. Trained with always r = 4, three more are at their best after 4, and have lost 0.22, 0.02 and
0.08 after 64.

Not reproduced: that this is the better model. With always r = 4, and asked for 4, two of three seeds are more accurate
than with random r, by 0.13 and 0.02. The baseline that always runs its core once is worse in two seeds, and better in
the third. Nor do longer sequences take more iterations than shorter ones to get to where they get.

    python demos/plot_recurrent_depth_test_time_compute.py      one model, trained in two minutes if it is not there
    ... --seeds 3 --controls                                    all that is said above, in a quarter of an hour

Draws demos/out/recurrent_depth_test_time_compute.png.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from recurrent_depth_models import LENGTH, parity_model
from threadpoolctl import threadpool_limits

from tinyrec.evaluate import evaluate_by_steps
from tinyrec.train import parse_task

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
threadpool_limits(1)
parser = argparse.ArgumentParser()
parser.add_argument("--seeds", type=int, default=1)
parser.add_argument("--controls", action="store_true")
arguments = parser.parse_args()
SEEDS = range(arguments.seeds)
LOOKS = [1, 2, 4, 8, 12, 16, 32, 64]
LENGTHS = [LENGTH, LENGTH * 3 // 2]
CEILINGS = {length: parse_task("prefix-parity", length).ceiling for length in LENGTHS}

# %%
# The task and the models
# -----------------------
# Of every prefix of random bits: is its number of ones even or odd? No token says where the sequence begins, and so
# even a perfect model of this kind cannot answer all: the ceiling, see tinyrec/data/tasks/depth.py. The models are
# those of recurrent_depth_models.py, three blocks of width 48; the controls differ only in how often the core ran in
# training.

WAYS = {"random": ("r random, 9 on average", "tab:blue")}
if arguments.controls:
    WAYS |= {"fixed": ("always r = 4", "tab:red"), "fixed-depth": ("always r = 1", "tab:gray")}


def accuracies(model, length):
    """The share of right answers after LOOKS iterations, 512 new sequences."""
    task, rng = parse_task("prefix-parity", length), np.random.default_rng(9)
    found = evaluate_by_steps(model, [task.sample(64, rng) for _ in range(8)], LOOKS)
    return np.array([found[r][1] for r in LOOKS])


models = {way: [parity_model(way, seed) for seed in SEEDS] for way in WAYS}
right = {(length, way): np.array([accuracies(model, length) for model in of_way])
         for length in LENGTHS for way, of_way in models.items()}  # fmt: skip
print("right answers after r iterations; chance is 0.5")
for length in LENGTHS:
    print(f"\nlength {length} ({'trained' if length == LENGTH else 'never seen'}), ceiling {CEILINGS[length]:.3f}")
    print(f"{'iterations in training':24}seed" + "".join(f"{f'r = {r}':>8}" for r in LOOKS))
    for way, (name, _) in WAYS.items():
        for seed, row in zip(SEEDS, right[length, way], strict=True):
            print(f"{name:24}{seed:4}" + "".join(f"{x:8.3f}" for x in row))

# %%
# The figure
# ----------

figure, axes = plt.subplots(1, len(LENGTHS), figsize=(13, 4.2), layout="constrained", sharey=True)
for axis, length in zip(axes, LENGTHS, strict=True):
    for way, (name, colour) in WAYS.items():
        for number, row in enumerate(right[length, way]):
            axis.plot(LOOKS, row, "o-", color=colour, markersize=4, alpha=0.8, label=None if number else name)
    axis.axhline(CEILINGS[length], color="black", linewidth=1, linestyle="--", label="ceiling")
    axis.axhline(0.5, color="black", linewidth=1, linestyle=":", label="chance")
    axis.set(xscale="log", xlabel="iterations at test time", ylim=(0.45, 1.02))
    axis.set_title(f"length {length}, {'as trained' if length == LENGTH else 'never seen in training'}")
    axis.set_xticks(LOOKS, [str(r) for r in LOOKS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
axes[0].set_ylabel("right answers" + (f" ({len(SEEDS)} seeds)" if len(SEEDS) > 1 else ""))
figure.legend(*axes[0].get_legend_handles_labels(), fontsize=9, title="in training", loc="outside right center")
figure.savefig(OUT / "recurrent_depth_test_time_compute.png", dpi=120)
print(f"\nfigure: {OUT.name}/recurrent_depth_test_time_compute.png")
