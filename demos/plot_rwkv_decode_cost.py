"""
What does the next token cost, after a long text?
=================================================

Claim: RWKV reads in parallel and writes as an RNN, with the same logits. Its state has one size, 5 vectors a layer, and
a token costs the same after 128 tokens as after 16,384; a transformer's cache, and its time per token, grow.

    python demos/plot_rwkv_decode_cost.py      prints two tables, draws demos/out/rwkv_decode_cost.png
"""

from pathlib import Path
from time import perf_counter

import matplotlib
import numpy as np
from threadpoolctl import threadpool_limits

from tinyrec.generate import state_bytes
from tinyrec.models import build, decoder, make_config
from tinyrec.models.griffin import GriffinState
from tinyrec.nn import KVCache, parameters, without_tape

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent / "out"
OUT.mkdir(exist_ok=True)
CONTEXTS = [128, 256, 512, 1024, 2048, 4096, 8192, 16384]
TOKENS, ROUNDS = 8, 7  # tokens per measurement, measurements of each
threadpool_limits(1)  # one token is too little work to share


def make(name):
    """A model with 4 layers of width 128, every parameter away from its start: a fresh RWKV is the identity."""
    rng = np.random.default_rng(0)
    model = build(name, make_config(name, "small"), rng)
    for _, p in parameters(model):
        p.data += (0.05 * rng.standard_normal(p.shape)).astype("float32")
    return model


rwkv, transformer = make("rwkv"), make("transformer")

# %%
# One function in two forms
# -------------------------
# All tokens at once, as in training; the same one by one, through the decoder; and in pieces.

tokens = np.random.default_rng(1).integers(0, 256, (1, 300))
parallel = rwkv(tokens).data
plain, writer = without_tape(rwkv), decoder(rwkv)
state, logits = plain.initial_state(1), []
for t in range(300):
    out, state = writer.step(tokens[:, t], state)
    logits.append(out)
pieces, cut_state = [], plain.initial_state(1)
for piece in np.split(tokens, [1, 100, 101, 257], axis=1):
    out, cut_state = plain.prefill(piece, cut_state)
    pieces.append(out)
print(f"largest difference to the parallel form, 300 tokens, float32; the largest logit is {abs(parallel).max():.2f}")
print(f"  one by one                   {abs(np.stack(logits, axis=1) - parallel).max():.1e}")
print(f"  pieces of 1, 99, 1, 156, 43  {abs(np.concatenate(pieces, axis=1) - parallel).max():.1e}\n")

# %%
# The cost
# --------
# A transformer's cache of n tokens is filled with random keys and values: their number makes the cost, not what they
# say. The two models take turns; the median is shown.


def cache_of(n):
    """The state of the transformer after n tokens."""
    rng, like = np.random.default_rng(2), transformer.initial_state(1)
    width = like.layers[0].keys.shape[2:]
    made = [rng.standard_normal((2, 1, n, *width)).astype("float32") for _ in like.layers]
    return GriffinState(np.array([n]), tuple(KVCache(keys, values) for keys, values in made))


def seconds(writer, state):
    """Time for one token, and the state after TOKENS more."""
    token, began = np.array([10]), perf_counter()
    for _ in range(TOKENS):
        out, state = writer.step(token, state)
        token = out.argmax(axis=-1)
    return (perf_counter() - began) / TOKENS, state


writers = {"rwkv": decoder(rwkv), "transformer": decoder(transformer)}
times, sizes = {name: [] for name in writers}, {name: [] for name in writers}
print("tokens before   ms per token            state in bytes")
print("                 rwkv  transformer       rwkv  transformer")
for n in CONTEXTS:
    states = {"rwkv": state, "transformer": cache_of(n)}
    found = {name: [] for name in writers}
    for name, writer in writers.items():  # once without the clock: the cache makes room for what is to come
        sizes[name].append(state_bytes(states[name].layers if name == "transformer" else states[name]))
        _, states[name] = seconds(writer, states[name])
    for _ in range(ROUNDS):
        for name, writer in writers.items():
            spent, states[name] = seconds(writer, states[name])
            found[name].append(spent)
    for name in writers:
        times[name].append(1e3 * float(np.median(found[name])))
    print(f"{n:13,}{times['rwkv'][-1]:8.2f}{times['transformer'][-1]:13.2f}", end="")
    print(f"{sizes['rwkv'][-1]:11,}{sizes['transformer'][-1]:13,}")
growth = {name: t[-1] / t[0] for name, t in times.items()}
print(f"from 128 to 16,384 tokens: rwkv x {growth['rwkv']:.2f}, transformer x {growth['transformer']:.2f}\n")

# %%
# The figure
# ----------

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, colour in (("rwkv", "tab:blue"), ("transformer", "tab:orange")):
    left.plot(CONTEXTS, times[name], "o-", color=colour, label=name)
    right.plot(CONTEXTS, np.array(sizes[name]) / 1e3, "o-", color=colour, label=name)
left.set(xscale="log", xlabel="tokens before", ylabel="ms per token", title="time for one more token")
left.set_ylim(bottom=0)
right.set(xscale="log", yscale="log", xlabel="tokens before", ylabel="kB", title="state of one sequence")
for axes in (left, right):
    axes.set_xticks(CONTEXTS[::2], [f"{n:,}" for n in CONTEXTS[::2]], minor=False)
    axes.minorticks_off()
    axes.legend()
    axes.grid(alpha=0.3)
figure.savefig(OUT / "rwkv_decode_cost.png", dpi=120)
print("figure: out/rwkv_decode_cost.png")
