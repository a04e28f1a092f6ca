"""
Stopping early, and guessing ahead
==================================

Claim: exits that nobody trained for cost nothing where a model comes to rest early, and much where it needs its
iterations. Of three models of prefix parity two lose 0.001 at most at the usual thresholds; the third, the best, falls
from 0.955 right answers to 0.760 by kl and to 0.918 by latent-diff. What is lost was not decided: its answer had a
probability of 0.51 to 0.57 on average, and "I do not know yet" looks like "I am done". No threshold beats one fixed r
of the same cost by more than 0.001. Speculation is exact: the text is that of plain decoding, at 3.4 to 4.0 bytes for
each verification when a draft takes one iteration, 4.5 and more when it takes two, in text that repeats itself.

Not reproduced: that a warm start saves one or two iterations for each token. Here it saves at most 0.14 and often costs
some, always so on text; and by kl it may cost many right answers. That harder tokens take longer is half true: in
all six rows of the usual thresholds the second quarter of a sequence takes longer than the first; towards the end two
go on so, and four do not.

    python demos/plot_recurrent_depth_adaptive_exit.py      one seed; trains in two to three minutes what is not there
    ... --seeds 3                                           all that is said above

Draws demos/out/recurrent_depth_adaptive_exit.png.
"""

import argparse
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np
from recurrent_depth_models import LENGTH, parity_model, text_model, text_options
from threadpoolctl import threadpool_limits

from tinyrec.evaluate import score_logits
from tinyrec.generate import generate
from tinyrec.inspect import exit_steps
from tinyrec.models.recurrent_depth_decode import DepthDecoder, speculate
from tinyrec.models.recurrent_depth_draw import draw_state
from tinyrec.ops import logsumexp
from tinyrec.train import open_source, parse_task

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
threadpool_limits(1)
parser = argparse.ArgumentParser()
parser.add_argument("--seeds", type=int, default=1)
SEEDS = range(parser.parse_args().seeds)
B, MOST = 256, 64  # sequences, and iterations of a token that never exits
EXITS = {"kl": [1e-2, 5e-4, 1e-5], "latent-diff": [0.1, 0.03, 0.01]}
USUAL = {"kl": 5e-4, "latent-diff": 0.03}  # of the paper's figures and of the published code
QUARTER = LENGTH // 4

# %%
# When would each token stop?
# ---------------------------
# Prefix parity, the models of recurrent_depth_models.py with r random in training. A token exits when its prediction
# (kl) or its state (latent-diff) has hardly changed; nothing was trained for it. Beside it, what one fixed r gives to
# all tokens, read between whole numbers: of the same mean, and of the same cost. For kl each iteration is also decoded,
# and here the coda is as large as the core: r looks cost as much as 2 r - 1 iterations that nobody looks at.

models = [parity_model("random", seed) for seed in SEEDS]
rng = np.random.default_rng(9)
tokens, targets = parse_task("prefix-parity", LENGTH).sample(B, rng)
s_0 = draw_state(rng, models[0].config, B, LENGTH, models[0].embedding.data)


def right(logits):
    """Share of right answers."""
    return score_logits(logits, targets)[1].mean()


def probabilities(logits):
    """softmax, (B, T, V)."""
    return np.exp(logits - logsumexp(logits, axis=-1, keepdims=True))


fixed = [{r: right(logits) for r, logits in model.logits_by_steps(tokens, range(1, MOST + 1), s_0)} for model in models]
exits = {(name, x, seed): exit_steps(models[seed], tokens, name, x, MOST, s_0)
         for name, thresholds in EXITS.items() for x in thresholds for seed in SEEDS}  # fmt: skip
print(f"prefix parity, length {LENGTH}, {B} sequences; r = {MOST} is right in "
      + ", ".join(f"{of_seed[MOST]:.3f} (seed {seed})" for seed, of_seed in enumerate(fixed)))  # fmt: skip
print(f"{'':27}iterations          right answers           iterations by position")
print("exit        below  seed  mean   never    exit  same mean  same cost" + "".join(
    f"{f'{QUARTER * q + 1}-{QUARTER * (q + 1)}':>7}" for q in range(4)))  # fmt: skip
for (name, x, seed), found in exits.items():
    mean, by_quarter = found.steps.mean(), found.steps.reshape(B, 4, -1).mean((0, 2))
    looks, never = list(fixed[seed]), (found.steps == MOST).mean()
    same = [np.interp(r, looks, list(fixed[seed].values())) for r in (mean, 2 * mean - 1 if name == "kl" else mean)]
    print(f"{name:12}{x:<7g}{seed:4}{mean:6.2f}{never:8.3f}{right(found.logits):8.3f}{same[0]:11.3f}{same[1]:11.3f}"
          + "".join(f"{q:7.2f}" for q in by_quarter))  # fmt: skip

# %%
# What an exit takes for certainty
# --------------------------------
# Tokens that r = 64 answers right and the exit wrong: had they made up their minds? With two answers, 0.5 is "I do not
# know", and not knowing does not change from one iteration to the next either.

print("\ntokens that an exit loses, and how likely their answer was then; beside it, that of all tokens")
print("exit        below  seed    lost   of the lost   of all")
for name, x in USUAL.items():
    for seed in SEEDS:
        found = exits[name, x, seed]
        at, final = (score_logits(logits, targets)[1] for logits in (found.logits, found.final))
        sure, lost = probabilities(found.logits).max(-1), final & ~at
        print(f"{name:12}{x:<7g}{seed:4}{lost.sum():8}{sure[lost].mean():14.3f}{sure.mean():9.3f}")

# %%
# One token after the other
# -------------------------
# As text is written: batch 1, a token that exits leaves the keys and values of its last iteration behind. With a warm
# start a token begins at norm(s_r) of the token before, not at noise. The same with a small model of text.


def one_by_one(model, rows, answers, name, warm):
    """Mean iterations and share of right answers."""
    taken, hits = [], []
    for row, answer in zip(rows, answers, strict=True):
        reader = DepthDecoder(model, MOST, name, USUAL[name], warm_start=warm, rng=np.random.default_rng(1))
        state = reader.initial_state(1)
        for token, y in zip(row, answer, strict=True):
            logits, state = reader.step(np.array([token]), state)
            hits.append(logits[0].argmax() == y)
        taken += reader.taken
    return np.mean(taken), np.mean(hits)


texts = [text_model(seed) for seed in SEEDS]
rows, following = next(iter(open_source(text_options(0)).validation(32)))  # held-out text (B, T)
inputs = {"parity": (models, tokens[:32], targets[:32]), "text": (texts, rows[:16], following[:16])}
print("\none token after the other: mean iterations, and right answers")
print(f"{'':30}{'from noise':>20}{'warm start':>20}{'iterations saved':>20}")
for task, (of_seed, read, answers) in inputs.items():
    for name, x in USUAL.items():
        for seed in SEEDS:
            (cold, a), (warm, b) = (one_by_one(of_seed[seed], read, answers, name, how) for how in (False, True))
            print(f"{task:8}{name:12}{x:<6g}{seed:4}{cold:12.2f}{a:8.3f}{warm:12.2f}{b:8.3f}{cold - warm:20.2f}")

# %%
# Guessing ahead
# --------------
# Speculation: the text model drafts 4 bytes with few iterations each and verifies them in one call with 16. Twelve
# prompts of held-out text, 51 bytes after each. What such a model writes repeats itself, which is easy to guess; so the
# table also has how often, over held-out text itself, the likeliest byte after the draft's iterations is the one after
# 16. A byte waits for all blocks that run one after the other, so these are counted; last in the table, how many they
# are if nothing is verified, and the text may be another.

DRAFTS, FULL, WRITTEN, GUESSES = [1, 2, 3, 4, 6, 8], 16, 51, 4
print(f"\nspeculation, {GUESSES} bytes drafted, verified with r = {FULL}; at most {GUESSES + 1} for each verification")
print(f"{'':36}draft r =" + "".join(f"{r:8}" for r in DRAFTS))
per_round, config = [], texts[0].config


def blocks(r):
    """That one call with r iterations runs, one after the other."""
    return config.n_prelude + r * config.n_core + config.n_coda


for seed, model in enumerate(texts):
    prompts = rows[:12, :16]
    plain = [list(generate(model, p, WRITTEN, temperature=0.0, reader=DepthDecoder(model, FULL))) for p in prompts]
    line, same = [], True
    for r in DRAFTS:
        rounds = [list(speculate(model, p, WRITTEN, FULL, r, GUESSES)) for p in prompts]
        same &= [list(chain(*of_prompt)) for of_prompt in rounds] == plain
        line.append((WRITTEN - 1) * len(prompts) / (sum(map(len, rounds)) - len(prompts)))  # the first is no round
    likeliest = {r: logits.data.argmax(-1) for r, logits in model.logits_by_steps(rows, [*DRAFTS, FULL])}
    agree = [(likeliest[r] == likeliest[FULL]).mean() for r in DRAFTS]
    per_round.append(line)
    run = [(GUESSES * blocks(r) + blocks(FULL)) / x for r, x in zip(DRAFTS, line, strict=True)]
    print(f"seed {seed}: bytes for each verification        " + "".join(f"{x:8.2f}" for x in line))
    print(f"{'':8}blocks for each byte ({blocks(FULL)} without)    " + "".join(f"{x:8.1f}" for x in run))
    print(f"{'':8}the same likeliest byte, held-out    " + "".join(f"{x:8.3f}" for x in agree))
    print(f"{'':8}the text is that of plain greedy decoding: {same}")
    print(f"{'':8}{bytes(map(int, prompts[0]))} -> {bytes(plain[0])}")
print("blocks for each byte, never verified         " + "".join(f"{blocks(r):8}" for r in DRAFTS))

# %%
# The figure
# ----------

figure, (cost, place, ahead) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
COLOURS = {"kl": "tab:red", "latent-diff": "tab:green"}
for seed in SEEDS:
    looks = [r for r in fixed[seed] if r <= 16]
    label = None if seed else "the same r for all tokens"
    cost.plot(looks, [fixed[seed][r] for r in looks], ".-", color="0.6", linewidth=1, markersize=4, label=label)
    for name, thresholds in EXITS.items():
        found = [exits[name, x, seed] for x in thresholds]
        at = [of_one.steps.mean() for of_one in found], [right(of_one.logits) for of_one in found]
        cost.plot(*at, "os^"[seed % 3] + "-", color=COLOURS[name], linewidth=0.8, label=None if seed else name)
        steps = exits[name, USUAL[name], seed].steps
        place.plot(np.arange(1, LENGTH + 1), steps.mean(0), "-", color=COLOURS[name], alpha=0.8,
                   label=None if seed else f"{name}, {USUAL[name]:g}")  # fmt: skip
    ahead.plot(DRAFTS, per_round[seed], "o-", color="tab:blue", alpha=0.8, markersize=4)
cost.set(xlabel="mean iterations", ylabel="right answers", title="parity: exits by threshold, one line for each seed")
place.set(xlabel="position in the sequence", ylabel="mean iterations", title="parity: who thinks longer?")
place.set_ylim(bottom=0)
ahead.set(xlabel="iterations of a draft", ylabel="bytes for each verification", ylim=(0, GUESSES + 1.3),
          title=f"text: {GUESSES} bytes drafted, verified with r = {FULL}")  # fmt: skip
ahead.axhline(GUESSES + 1, color="black", linewidth=1, linestyle="--", label="all guesses right")
for axis in (cost, place, ahead):
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
figure.savefig(OUT / "recurrent_depth_adaptive_exit.png", dpi=120)
print(f"\nfigure: {OUT.name}/recurrent_depth_adaptive_exit.png")
