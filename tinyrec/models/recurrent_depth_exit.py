"""When has a token been thought about enough? Criteria that compare an iteration with the one before: section 6.1.

    kl                KL(p_{i-1} || p_i) of the predictions; before the first one all tokens are equally likely
    minp-kl           the same when each probability below a tenth of the largest counts as 1 / V
    entropy-diff      |H_i - H_{i-1}|, the entropies of the predictions; H_0 = 100
    argmax-stability  minus the number of iterations for which the likeliest token has been the same
    latent-diff       |s_i - s_{i-1}| / |s_i|
    cosine            1 - cos(s_i, s_{i-1})

A token is done when the value falls to the threshold. The first four need the predictions, which cost a pass through
the coda and the head in each iteration; the last two need only the state. None was trained for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import get_xp
from ..ops import logsumexp
from ..suggest import check_known
from ..tape import array_of

# Those of the published code, but for kl: 5e-4 as in the paper's figures, 1e-3 there.
THRESHOLDS = {
    "kl": 5e-4, "minp-kl": 1e-5, "entropy-diff": 1e-3, "argmax-stability": -5.0, "latent-diff": 0.03, "cosine": 1e-3,
}  # fmt: skip


class ExitWatch:
    """Looks at an Unrolling after each of its iterations. Make it before the first one."""

    def __init__(self, criterion: str, threshold: float | None, thought: Any):
        """criterion: one of THRESHOLDS; threshold: None for the usual one."""
        self.criterion = check_known(criterion, THRESHOLDS, "exit criterion")
        self.threshold = THRESHOLDS[criterion] if threshold is None else threshold
        self.thought, self.by_state = thought, criterion in STATE
        self.predict: Any = _Stability() if criterion == "argmax-stability" else PREDICTION.get(criterion)
        self.logits: Any = None  # of the last look, for the criteria that need them
        self.last: Any = array_of(thought.s) if self.by_state else None  # s_{i-1}, or log p_{i-1}

    def look(self) -> Any:
        """The value of the criterion for each token, (B, T), after the latest iteration."""
        if self.by_state:
            now = array_of(self.thought.s)
            value = STATE[self.criterion](self.last, now)
        else:
            self.logits = array_of(self.thought.logits())
            now = self.logits - logsumexp(self.logits, axis=-1, keepdims=True)  # log p_i (B, T, V)
            value = self.predict(self.last, now)
        self.last = now
        return value

    def done(self) -> Any:
        """Which tokens may stop, (B, T) booleans."""
        return self.look() <= self.threshold


class _Stability:
    """Minus the number of iterations since the likeliest token changed, (B, T)."""

    def __init__(self) -> None:
        self.unchanged: Any = 0

    def __call__(self, before: Any, now: Any) -> Any:
        same = now.argmax(-1) == (-1 if before is None else before.argmax(-1))
        self.unchanged = (self.unchanged + 1) * same
        return -self.unchanged


def _kl(before: Any, now: Any) -> Any:
    """KL(p || q) of log p, log q (B, T, V); before = None: of equally likely tokens."""
    if before is None:
        before = now * 0.0 - _log_size(now)
    return (get_xp(now).exp(before) * (before - now)).sum(-1)


def _minp_kl(before: Any, now: Any) -> Any:
    return _kl(None if before is None else _cut(before), _cut(now))


def _cut(log_p: Any) -> Any:
    """Probabilities below a tenth of the largest set to 1 / V, then normalized again."""
    xp = get_xp(log_p)
    far = log_p < log_p.max(-1, keepdims=True) + math.log(0.1)
    cut = xp.where(far, -_log_size(log_p), log_p)
    return cut - logsumexp(cut, axis=-1, keepdims=True)


def _entropy_diff(before: Any, now: Any) -> Any:
    return abs(_entropy(now) - (100.0 if before is None else _entropy(before)))


def _entropy(log_p: Any) -> Any:
    return -(get_xp(log_p).exp(log_p) * log_p).sum(-1)


def _log_size(x: Any) -> float:
    return math.log(x.shape[-1])


def _latent_diff(before: Any, now: Any) -> Any:
    norm = get_xp(now).linalg.norm
    return norm(now - before, axis=-1) / norm(now, axis=-1)


def _cosine(before: Any, now: Any) -> Any:
    norm = get_xp(now).linalg.norm
    lengths = norm(now, axis=-1) * norm(before, axis=-1) + 1e-8  # s_0 may be zero
    return 1.0 - (now * before).sum(-1) / lengths


PREDICTION: dict[str, Callable] = {"kl": _kl, "minp-kl": _minp_kl, "entropy-diff": _entropy_diff}
STATE: dict[str, Callable] = {"latent-diff": _latent_diff, "cosine": _cosine}
