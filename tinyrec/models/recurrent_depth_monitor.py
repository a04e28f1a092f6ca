"""Figures that show whether a recurrent-depth model is healthy: section 4.2 and figure 5 of the paper.

The first large run failed because all tokens became alike, the second because the model learned to ignore its state.
"""

from __future__ import annotations

from typing import Any

from ..backend import get_xp
from ..tape import array_of


def token_correlation(x: Any) -> float:
    """How alike the tokens of a sequence are, x (B, T, h): about 0 if they are independent, 1 - 1/T if they are equal.

    The mean over all pairs of tokens of the cosine between them, each less its mean over h; the pairs of a token with
    itself, 1/T, are taken off.
    """
    x = array_of(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    lengths = get_xp(x).linalg.norm(centred, axis=-1, keepdims=True)
    direction = (centred / (lengths + 1e-30)).mean(axis=1)  # (B, h): the mean over pairs is the square of this mean
    return float((direction * direction).sum(-1).mean()) - 1.0 / x.shape[1]


def watched(thought: Any, previous: Any) -> dict[str, float]:
    """Records of an Unrolling after its last iteration; previous: the state s (B, T, h) before that iteration.

    distance_to_input is the mean length of norm(s_r) - e, and residual that of s_r - s_{r-1} over that of s_r. (The
    published code takes norm(s_r) - s_{r-1}, which stays large when the state has settled.)
    """
    xp, s, z = get_xp(previous), array_of(thought.s), array_of(thought.latent())

    def length(x: Any) -> float:
        return float(xp.linalg.norm(x, axis=-1).mean())

    return {
        "state_correlation": token_correlation(z),
        "output_correlation": token_correlation(thought.output()),
        "state_norm": length(s),
        "distance_to_input": length(z - array_of(thought.e)),
        "residual": length(s - previous) / length(s),
    }
