"""Train, valid and test pieces of one text, such that no passage of one is found in another."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import DataError

PASSAGE = 64  # bytes; shorter passages ("Returns None.") recur by themselves and are no leak
EMPTY_LINES = re.compile(rb"(\n(?:[ \t\r]*\n)+)")


@dataclass(frozen=True)
class Split:
    """The three pieces of a text; train on the first, choose with the second, report the third."""

    train: bytes
    valid: bytes
    test: bytes


def split_text(text: bytes, valid: float = 0.05, test: float = 0.05) -> Split:
    """Cut a text into contiguous pieces, train first, and remove what would be known by heart.

    Random windows would leak: neighbours share most of a sentence. Contiguous pieces meet at two places only, and the
    cuts are moved to the end of a line. Documents also repeat themselves (licences, boilerplate, songs). So, from valid
    what occurs in train, and from test what occurs in train or valid, is dropped: paragraphs (between empty lines) and
    single lines of at least 64 bytes, equal up to white space. Rewording is not found.

        text  |------------- train -------------|-- valid --|-- test --|
                    the same paragraph as  ->       dropped
    """
    if valid < 0 or test < 0 or valid + test >= 1:
        raise DataError(f"the shares of valid and test must be >= 0 and leave room for train, got {valid} and {test}")
    first = _line_end(text, round(len(text) * (1 - valid - test)))
    second = _line_end(text, round(len(text) * (1 - test)))
    pieces = text[:first], text[first:second], text[second:]
    known = set(_passages(pieces[0]))
    valid_piece = _without(pieces[1], known)
    known.update(_passages(valid_piece))
    return Split(pieces[0], valid_piece, _without(pieces[2], known))


def check_length(split: Split, context: int) -> None:
    """Refuse a split whose train or valid piece is too short for one window of `context` tokens and its targets."""
    for name, piece in (("train", split.train), ("valid", split.valid)):
        if len(piece) < context + 1:
            raise DataError(
                f"the {name} piece has {len(piece)} bytes (repeated passages were dropped) and a context of {context} "
                f"needs at least {context + 1}: give a longer text or a shorter context"
            )


def _line_end(text: bytes, cut: int) -> int:
    """Move a cut behind the end of its line, unless that is far away (a text of very long lines)."""
    end = text.find(b"\n", cut, cut + 1024)
    return cut if end < 0 else end + 1


def _key(passage: bytes) -> bytes | None:
    """What two passages are compared by: white space made equal; None for one that is too short to be a leak."""
    words = b" ".join(passage.split())
    return words if len(words) >= PASSAGE else None


def _passages(text: bytes) -> Iterator[bytes]:
    for paragraph in EMPTY_LINES.split(text):
        for passage in (paragraph, *paragraph.split(b"\n")):
            if key := _key(passage):
                yield key


def _without(text: bytes, known: set[bytes]) -> bytes:
    """Drop the known paragraphs, each with the empty lines behind it, and the known lines of the others."""
    parts = EMPTY_LINES.split(text) + [b""]  # paragraph, empty lines, paragraph, ..., paragraph, b""
    kept = []
    for paragraph, empty_lines in zip(parts[::2], parts[1::2], strict=True):
        if _key(paragraph) in known:
            continue
        remaining = b"".join(line for line in re.split(rb"(?<=\n)", paragraph) if _key(line) not in known)
        if remaining and _key(remaining) not in known:  # without those lines it may have become a known one
            kept += [remaining, empty_lines]
    return b"".join(kept)
