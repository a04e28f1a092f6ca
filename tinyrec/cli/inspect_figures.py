"""The figures of `tinyrec inspect`. Each function returns one; matplotlib is imported only then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..inspect.recurrent_depth import Exits, Paths, Trajectories
from ..inspect.ttt import InnerLosses, WeightPath


def has_matplotlib() -> bool:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: no screen, no global figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_iterations(found: dict[int, tuple[float, float]], unit: str) -> Any:
    """{iterations: (nats, right)} -> bits and accuracy over the iterations."""
    figure = new_figure(8, 3.4)
    bits, right = figure.subplots(1, 2)
    bits.plot(list(found), [nats / math.log(2) for nats, _ in found.values()], "o-", color="tab:blue")
    right.plot(list(found), [100 * share for _, share in found.values()], "o-", color="tab:orange")
    bits.set(ylabel=f"bits per {unit}", title="held out")
    right.set(ylabel="right, %", title="held out")
    for axes in (bits, right):
        over_iterations(axes, list(found))
        axes.grid(alpha=0.3)
    return figure


def draw_paths(found: Paths, rest: int) -> Any:
    """Distances between states, and from s*, over the iterations: their means and the largest."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    names = {"from each other": found.apart, f"from $s^*$, the state after {rest}": found.to_rest}
    for (name, distances), color in zip(names.items(), ("tab:blue", "tab:orange"), strict=True):
        rows = distances.reshape(len(distances), -1)
        axes.plot(rows.mean(1), color=color, label=f"{name}: mean")
        axes.plot(rows.max(1), color=color, linewidth=1, linestyle=":", label=f"{name}: max")
    axes.set(xlabel="iterations", ylabel="distance / length of the state", yscale="log", title="path independence")
    axes.set_ylim(bottom=min(0.01, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return figure


def draw_exits(found: dict[str, Exits]) -> Any:
    """A histogram of steps for each criterion."""
    figure = new_figure(4 * len(found), 3.4)
    most = max(int(exits.steps.max()) for exits in found.values())
    row = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (name, exits) in zip(row, found.items(), strict=True):
        share = np.bincount(exits.steps.ravel(), minlength=most + 1)[1:] / exits.steps.size
        axes.bar(range(1, most + 1), 100 * share, width=0.9, color="tab:blue")
        axes.axvline(exits.steps.mean(), color="black", linestyle="--", linewidth=1)
        axes.set(xlabel="iterations until the exit", title=f"{name}: {exits.steps.mean():.2f} on average")
        axes.set_xlim(0.3, most + 0.7)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylabel("tokens, %")
    return figure


def draw_trajectories(found: Trajectories, chosen: Sequence[tuple[int, int]], names: Sequence[str]) -> Any:
    """A row for each chosen token, a column for each pair of principal components."""
    from matplotlib.colors import LogNorm

    C = found.coordinates.shape[-1]
    pairs = [(i, i + 1) for i in range(0, C - 1, 2)]
    figure = new_figure(3 * len(pairs) + 1, 2.8 * len(chosen))
    grid = figure.subplots(len(chosen), len(pairs), squeeze=False)
    colors = np.arange(1, len(found.states) + 1)  # i + 1: most happens early, and a logarithm has no place for 0
    for row, (b, t), name in zip(grid, chosen, names, strict=True):
        for axes, (i, j) in zip(row, pairs, strict=True):
            x, y = found.coordinates[:, b, t, i], found.coordinates[:, b, t, j]
            axes.plot(x, y, color="lightgray", linewidth=0.8, zorder=1)
            dots = axes.scatter(x, y, c=colors, s=14, cmap="viridis", norm=LogNorm(), zorder=2)
            axes.plot(0, 0, "+", color="tab:red", markersize=16, zorder=0)  # the centre of the dots
            axes.set(xlabel=f"component {i + 1}", ylabel=f"component {j + 1}")
            axes.set_aspect("equal", "datalim")
        row[0].set_title(name.replace("$", r"\$"), loc="left", fontsize="medium")
    bar = figure.colorbar(dots, ax=grid, label="iteration", shrink=0.6)
    ticks = [1 << n for n in range(len(found.states).bit_length()) if 1 << n < len(found.states)]
    bar.set_ticks([i + 1 for i in (0, *ticks)], labels=[f"{i}" for i in (0, *ticks)])
    bar.minorticks_off()
    return figure


def draw_inner(losses: InnerLosses, path: WeightPath, rates: np.ndarray, layer: int) -> Any:
    """The three losses over the mini-batches; of head 0 the ways of the weights, and the rates of one mini-batch."""
    figure = new_figure(13, 3.8)
    course, plane, heat = figure.subplots(1, 3)
    names = {"at $W_0$": "tab:gray", "before its step": "tab:blue", "after its step": "tab:orange"}
    for (name, color), found in zip(names.items(), losses, strict=True):
        y = found.mean((0, 1, 3))
        course.plot(range(1, len(y) + 1), y, "o-", color=color, markersize=3, label=name)
    course.set(xlabel="mini-batch", ylabel="inner loss", title=f"layer {layer}, mean over heads")
    course.set_xscale("log", base=2)
    ticks = [1 << n for n in range(len(y).bit_length())]
    course.set_xticks(ticks, labels=[f"{n}" for n in ticks])
    course.minorticks_off()
    course.set_ylim(bottom=0)
    course.grid(alpha=0.3)
    course.legend(frameon=False, fontsize="small")
    for b, way in enumerate(path.coordinates[:, 0]):
        plane.plot(*way.T, ".-", linewidth=0.8, markersize=4, label=f"window {b + 1}")
    plane.plot(0, 0, "+", color="black", markersize=14, label="$W_0$")
    plane.legend(frameon=False, fontsize="small")
    first, second = path.explained[0]
    plane.set(xlabel=f"direction 1 ({first:.0%} of the variance)", ylabel=f"direction 2 ({second:.0%})")
    plane.set_title("head 0: weights after each mini-batch")
    plane.set_aspect("equal", "datalim")
    plane.grid(alpha=0.3)
    eta = rates[0, 0, 0]
    image = heat.imshow(np.ma.array(eta, mask=np.triu(np.ones_like(eta), 1)), cmap="viridis", vmin=0.0)
    figure.colorbar(image, ax=heat)
    heat.set(xlabel="$j$, the gradient of", ylabel="$i$, read at", title=r"head 0, mini-batch 1: $\eta_{ij}$")
    for axis in (heat.xaxis, heat.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return figure


def over_iterations(axes: Any, steps: Sequence[int]) -> None:
    """Iterations on the x axis, each doubling as wide as the one before."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(steps), labels=[f"{r}" for r in steps])
    axes.minorticks_off()
    axes.set_xlabel("iterations")
