"""Synthetic tasks that ask one thing of a model: can it remember, choose, look up (memory), go step by step (depth).

Every task is a small dataclass with the same three members, so a training loop needs to know none of them:

    task.sample(batch, rng) -> tokens (B, T), targets (B, T)      target -1: not scored
    task.vocab_size                                               different tokens, answers and special ones included
    task.accuracy(logits, targets)                                share of the scored targets that are right
"""

from dataclasses import fields

from ...suggest import did_you_mean
from ..errors import DataError
from .base import Task
from .depth import Addition, Chase, Permutations, PrefixParity
from .memory import Copy, Induction, Markov, SelectiveCopy

TASKS: dict[str, type[Task]] = {
    "copy": Copy,
    "selective_copy": SelectiveCopy,
    "induction": Induction,
    "markov": Markov,
    "prefix_parity": PrefixParity,
    "addition": Addition,
    "permutations": Permutations,
    "chase": Chase,
}


def load_task(name: str, **options: int) -> Task:
    """Return the task of that name, for instance load_task("induction", length=128)."""
    if name not in TASKS:
        raise DataError(f"there is no task {name!r}, only {', '.join(TASKS)}{did_you_mean(name, TASKS)}")
    known = [field.name for field in fields(TASKS[name])]
    for option in options:
        if option not in known:
            raise DataError(
                f"the task {name} has no option {option!r}, only {', '.join(known)}{did_you_mean(option, known)}"
            )
    return TASKS[name](**options)
