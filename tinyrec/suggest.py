"""The "did you mean" at the end of an error's sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known name closest to `name`, or "" when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_known(name: str, known: Iterable[str], what: str) -> str:
    """The name itself. Raises ValueError if it is not among the known: "unknown model 'hwk'; did you mean 'hawk'?"."""
    known = list(known)
    if name not in known:
        hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        raise ValueError(f"unknown {what} {name!r}{hint}")
    return name
