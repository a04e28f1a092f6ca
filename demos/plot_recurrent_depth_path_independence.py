"""
Wherever thinking begins, it ends at the same point
===================================================

Claim: from whatever noise a recurrent-depth transformer begins to think, nearly every token comes to the same state.
Of three models trained on prefix parity the median distance of two paths is at most 4e-5 after 16 iterations, at the
trained length and at one never seen. Training has not brought this about, but made it faster: before it, the distance
is 5e-4 and more by then.

It is no law. In two of the models all tokens, or all but 0.4 %, come together; in the third 1.6 % have not after 64
iterations, and 8.2 % at the unseen length. (That one answers best: plot_recurrent_depth_test_time_compute.py.) Trained
with always 4 iterations, 11 to 33 % do not in two seeds; in the third it is 1 % at most, fewer than with random r and
the same seed.

Not reproduced: the paper's picture of key tokens that circle and of others that drift on. At most 3 % of the tokens
have not settled after 128 iterations, with random r in training, and none drifts; with always r = 4 it is up to 43 %.

    python demos/plot_recurrent_depth_path_independence.py      one model, trained in two minutes if it is not there
    ... --seeds 3 --controls                                    all that is said above

Draws demos/out/recurrent_depth_path_independence.png.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from recurrent_depth_models import LENGTH, WAYS, parity_model
from threadpoolctl import threadpool_limits

from tinyrec.inspect.recurrent_depth import path_independence, principal, trajectories
from tinyrec.models import build
from tinyrec.models.recurrent_depth_draw import draw_state
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
LENGTHS = [LENGTH, LENGTH * 3 // 2]
LOOKS = [1, 2, 4, 8, 16, 32, 64]
B, STARTS, STEPS = 64, 3, 64

# %%
# The distance between two paths
# ------------------------------
# The same 64 sequences of prefix parity (see recurrent_depth_models.py) from three s_0 of noise: |s_i - s'_i| / |s_i|
# for each token and the first start against the other two. Float32 rounds at about 1e-7.


def fresh(seed):
    """The model before its training."""
    return build("recurrent-depth", WAYS["random"], np.random.default_rng(seed))


KINDS = {"fresh": fresh, "trained": lambda seed: parity_model("random", seed)}
if arguments.controls:
    KINDS["always r = 4"] = lambda seed: parity_model("fixed", seed)
models = {(kind, seed): make(seed) for kind, make in KINDS.items() for seed in SEEDS}


def draws(model, batch, length, seed=5):
    """tokens (B, T), right answers (B, T), and starts (B, T, h)."""
    rng = np.random.default_rng(seed)
    tokens, targets = parse_task("prefix-parity", length).sample(batch, rng)
    like = model.embedding.data
    return tokens, targets, [draw_state(rng, model.config, batch, length, like) for _ in range(STARTS)]


def distances(model, length):
    """(I, S - 1, B, T): after i iterations, of the first start's state and each of the others'."""
    tokens, _, starts = draws(model, B, length)
    return path_independence(model, tokens, starts, STEPS, rest=STEPS).apart


def share_apart(found):
    """(I,): of the tokens, how many have two paths more than 1 % apart."""
    return (found > 0.01).any(axis=1).mean(axis=(1, 2))


apart = {(*key, length): distances(model, length) for key, model in models.items() for length in LENGTHS}
print(f"|s_i - s'_i| / |s_i| from different noise: the median over tokens of {B} sequences,")
print(f"and how many tokens have paths that are still more than 1 % apart after {STEPS} iterations")
print(f"{'model':13}seed length" + "".join(f"{f'i = {i}':>9}" for i in LOOKS) + "   > 1 %")
for (kind, seed, length), found in apart.items():
    medians = "".join(f"{np.median(found[i]):9.1e}" for i in LOOKS)
    print(f"{kind:13}{seed:4}{length:7}{medians}{100 * share_apart(found)[-1]:6.1f} %")

# %%
# Where the paths lead
# --------------------
# norm(s_i) of every token for 128 iterations, see tinyrec/inspect/recurrent_depth.py: it settles if in the second half
# it stays within 2 % of the longest way it ever had to its end.

print(f"\nafter 128 iterations, {B} sequences")
print("model        seed length   settle    orbit   slider     share of the variance along 4 components")
for (kind, seed), model in models.items():
    for length in LENGTHS:
        tokens, _, starts = draws(model, B, length)
        found = trajectories(model, tokens, 128, 4, starts[0])
        counts = [int((found.habits.kind == habit).sum()) for habit in ("settles", "orbit", "slider")]
        shares = "".join(f"{share:8.3f}" for share in found.explained)
        print(f"{kind:13}{seed:4}{length:7}" + "".join(f"{count:9}" for count in counts) + f"      {shares}")

# %%
# The figure
# ----------
# At the right: the first trained model, the plane of the two largest components of norm(s_i). Five tokens of one
# sequence from three starts each, and where all tokens of the 64 sequences are in the end.

figure, (curves, shares_left, plane) = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
COLOURS = dict(zip(("fresh", "trained", "always r = 4"), ("0.55", "tab:blue", "tab:red"), strict=True))
for (kind, seed, length), found in apart.items():
    line = dict(color=COLOURS[kind], linestyle="-" if length == LENGTH else "--", linewidth=1.4)
    line["label"] = None if seed else f"{kind}, length {length}"
    curves.plot(np.median(found, axis=(1, 2, 3)), **line)
    shares_left.plot(100 * share_apart(found), **line)
curves.set(yscale="log", ylabel="|s_i - s'_i| / |s_i|", title="distance of two paths, median over tokens")
shares_left.set(ylabel="% of tokens", ylim=(-2, 102), title="tokens with paths more than 1 % apart")
curves.legend(fontsize=9)
for axis in (curves, shares_left):
    axis.set_xlabel("iterations i")
    axis.grid(alpha=0.3)

model = models["trained", 0]
tokens, targets, starts = draws(model, B, LENGTH)
SHOWN, TOKENS = 1, [2, 5, 8, 11, 17]
together = np.concatenate([tokens] + [tokens[SHOWN : SHOWN + 1]] * STARTS)
begin = np.concatenate([starts[0]] + [start[SHOWN : SHOWN + 1] for start in starts])
states = trajectories(model, together, STEPS, 2, begin).states  # (I, B + STARTS, T, h)
places, shares = principal(states, 2)  # (I, B + STARTS, T, 2)
odd = targets == 3
for answer, colour in ((False, "tab:cyan"), (True, "tab:pink")):
    rest = places[-1, :B][odd == answer]
    plane.plot(*rest.T, "s", color=colour, markersize=3, alpha=0.6, label=f"end, {'odd' if answer else 'even'}")
for t, colour in zip(TOKENS, ("black", "tab:blue", "tab:orange", "tab:green", "tab:purple"), strict=True):
    for path in places[:, B:, t].swapaxes(0, 1):  # (I, 2)
        plane.plot(*path.T, "-", color=colour, linewidth=1)
        plane.plot(*path[0], "o", color=colour, markersize=5)
    answer = "odd" if odd[SHOWN, t] else "even"
    plane.plot([], [], "o-", color=colour, markersize=5, label=f"token {t + 1}, {answer}")
plane.set(title="the paths of five tokens", xlabel=f"component 1 ({100 * shares[0]:.0f} % of the variance)",
          ylabel=f"component 2 ({100 * shares[1]:.0f} %)")  # fmt: skip
plane.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1), title="from three s_0")
figure.savefig(OUT / "recurrent_depth_path_independence.png", dpi=120)
print(f"\nfigure: {OUT.name}/recurrent_depth_path_independence.png")
