"""Figures that show whether a recurrent-depth model is healthy: section 4.2 and figure 5 of the paper.

The first large run failed because all tokens became alike, the second because the model learned to ignore its state.
"""

from __future__ import annotations

from typing import Any

from ..backend import get_xp, to_floats
from ..tape import array_of


def token_correlation(x: Any) -> float:
    """How alike the tokens of a sequence are, x (B, T, h): about 0 if they are independent, 1 - 1/T if they are equal.

    The mean over all pairs of tokens of the cosine between them, each less its mean over h; the pairs of a token with
    itself, 1/T, are taken off.
    """
    return to_floats([_likeness(array_of(x))])[0] - 1.0 / x.shape[1]


def _likeness(x: Any) -> Any:
    """The mean over all pairs, also of a token with itself, as an array ()."""
    centred = x - x.mean(axis=-1, keepdims=True)
    lengths = get_xp(x).linalg.norm(centred, axis=-1, keepdims=True)
    direction = (centred / (lengths + 1e-30)).mean(axis=1)  # (B, h): the mean over pairs is the square of this mean
    return (direction * direction).sum(-1).mean()


def watched(thought: Any, previous: Any) -> dict[str, float]:
    """Records of an Unrolling after its last iteration; previous: the state s (B, T, h) before that iteration.

    distance_to_input is the mean length of norm(s_r) - e, and residual that of s_r - s_{r-1} over that of s_r. (The
    published code takes norm(s_r) - s_{r-1}, which stays large when the state has settled.)
    """
    xp, s, z, y = get_xp(previous), array_of(thought.s), array_of(thought.latent()), array_of(thought.output())

    def length(x: Any) -> Any:
        return xp.linalg.norm(x, axis=-1).mean()

    found = _likeness(z), _likeness(y), length(s), length(z - array_of(thought.e)), length(s - previous)
    state, output, norm, distance, moved = to_floats(found)  # a GPU is waited for once
    return {
        "state_correlation": state - 1.0 / s.shape[1],
        "output_correlation": output - 1.0 / s.shape[1],
        "state_norm": norm,
        "distance_to_input": distance,
        "residual": moved / norm,
    }
