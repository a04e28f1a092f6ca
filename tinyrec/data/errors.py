"""The one exception of this package, and the "did you mean" at the end of its sentences."""

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Data that is missing, too short or asked for by a wrong name; the message is one sentence for the user."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name closest to `name`, or "" when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
