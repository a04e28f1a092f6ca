"""The small models that the recurrent-depth demos look at: trained once, then kept in demos/out.

Prefix parity (tinyrec/data/tasks/depth.py): say of every prefix of random bits whether its number of ones is even. No
token says where a sequence begins, sequences are 24 bits long, and there are three blocks of width 48: prelude, core
and coda, one each. Three ways to train them, alike in everything else:

    random         r drawn anew for each step, 9 on average (r-bar 8), the last 4 iterations recorded: as the paper does
    fixed          always 4 iterations, all recorded
    fixed-depth    always 1: the paper's baseline, an ordinary transformer of three blocks

And one that writes text, byte by byte: prelude 1, core 2 and coda 1 blocks of width 64.

    python demos/recurrent_depth_models.py --seeds 3     trains what is missing, one to two minutes each on one core

A kept model is taken if its options and its config are those below. Delete demos/out to train again.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from threadpoolctl import threadpool_limits

from tinyrec.checkpoint import load_run, restore, save_run
from tinyrec.models import build, make_config
from tinyrec.options import Options, streams
from tinyrec.train import open_source, start, train

OUT = Path(__file__).resolve().parent / "out"
LENGTH = 24
WAYS = {
    "random": make_config("recurrent-depth", "parity", vocab_size=4),
    "fixed": make_config("recurrent-depth", "parity", vocab_size=4, sampler="fixed", mean_steps=4),
    "fixed-depth": make_config("recurrent-depth", "fixed-depth", vocab_size=4, d_model=48, d_mlp=128),
}


def parity_model(way="random", seed=0):
    """Trained on prefix parity in one of the WAYS."""
    steps = 1600
    options = Options(
        task="prefix-parity", context=LENGTH, batch=24, steps=steps, lr=1e-3, schedule="trapezoid", warmup=100,
        cooldown=400, weight_decay=0.01, seed=seed, threads=1, log_every=steps, valid_every=steps,
    )  # fmt: skip
    return kept(f"parity_{way}_{seed}", WAYS[way], options)


def text_options(seed):
    steps = 400
    return Options(
        data="pydoc", max_bytes=1_000_000, context=64, batch=8, steps=steps, lr=3e-3, schedule="trapezoid", warmup=40,
        cooldown=100, weight_decay=0.01, seed=seed, threads=1, log_every=steps, valid_every=steps, valid_bytes=4096,
    )  # fmt: skip


def text_model(seed=0):
    """Trained on a megabyte of the standard library's documentation, for a short while."""
    return kept(f"text_{seed}", make_config("recurrent-depth", "main", n_core=2), text_options(seed))


def kept(name, config, options):
    """The trained model: read if it is there, trained and kept if not."""
    path, extra = OUT / f"recurrent_depth_{name}.safetensors", {"options": asdict(options)}
    if path.exists():
        run = load_run(path)
        if (run.extra, run.config) == (extra, asdict(config)):
            model = build(run.name, config, streams(options.seed).init)
            restore(model, run.parameters)
            return model
    state = start("recurrent-depth", config, options)
    with threadpool_limits(1):  # matrices of this size are too small to share
        for record in train(state, open_source(options), options):
            if record["step"] % 200 == 0:
                line = f"training {name}: step {record['step']} of {options.steps}, loss {record['loss']:.3f}"
                print(line, file=sys.stderr, flush=True)
    OUT.mkdir(exist_ok=True)
    save_run(path, state.model, step=state.step, extra=extra)
    return state.model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    for seed in range(parser.parse_args().seeds):
        text_model(seed)
        for way in WAYS:
            parity_model(way, seed)
