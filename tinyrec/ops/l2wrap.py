"""L2Wrap, the regulariser of RWKV's training code: it keeps the largest logit of each token from drifting upwards.

The loss keeps its value. Only the gradient changes, by that of the penalty strength / 2 * sum of max(logits)^2. (The
paper describes PaLM's z-loss, on the logarithm of the normaliser; the published code has this.)
"""

from __future__ import annotations

from ..backend import get_xp
from ..tape import array_of, surrogate


@surrogate("adds strength * max(logits) to the gradient of each row's largest logit")
def l2wrap(logits, *, strength: float):
    """The logits (..., V) themselves. strength: of the official code 1e-4 / (B T), for a loss that is a mean."""
    return logits[...], (logits, strength)


@l2wrap.vjp
def l2wrap_vjp(g, logits, strength):  # not scaled by g: a penalty of its own, beside whatever loss comes after
    logits = array_of(logits)
    xp = get_xp(logits)
    largest, penalty = logits.argmax(axis=-1)[..., None], xp.zeros_like(logits)
    xp.put_along_axis(penalty, largest, strength * xp.take_along_axis(logits, largest, axis=-1), axis=-1)
    return g + penalty
