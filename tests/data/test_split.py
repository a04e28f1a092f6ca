import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec.data import DataError, Split, check_length, split_text
from tinyrec.data.split import PASSAGE

LINES = st.sampled_from([b"short", b"", b"  ", b"x" * PASSAGE, b"y " * PASSAGE, b"  z" * PASSAGE, b"w" * 40])
TEXTS = st.one_of(
    st.binary(max_size=2000),
    st.lists(LINES, max_size=60).map(b"\n".join),
    st.lists(LINES, max_size=60).map(b"\r\n".join),
)


def unique_text(lines: int) -> bytes:
    return b"".join(b"line number %d of a text without repetitions\n" % i for i in range(lines))


def long_passages(text: bytes) -> set[bytes]:
    """Paragraphs and lines of 64 bytes or more, with white space made equal: what must not be shared."""
    candidates = re.split(rb"\n(?:[ \t\r]*\n)+", text) + text.split(b"\n")
    return {key for candidate in candidates if len(key := b" ".join(candidate.split())) >= PASSAGE}


def test_pieces_are_contiguous_in_order_and_cut_at_line_ends():
    text = unique_text(1000)
    split = split_text(text)
    assert split.train + split.valid + split.test == text
    assert split.train.endswith(b"\n") and split.valid.endswith(b"\n")
    assert len(split.train) == pytest.approx(0.9 * len(text), abs=1024)
    assert len(split.valid) == pytest.approx(0.05 * len(text), abs=1024)


def test_other_shares():
    text = unique_text(1000)
    split = split_text(text, valid=0.2, test=0.0)
    assert (split.train + split.valid, split.test) == (text, b"")
    assert len(split.valid) == pytest.approx(0.2 * len(text), abs=1024)


@given(TEXTS)
def test_no_long_passage_is_in_two_pieces(text):
    split = split_text(text, valid=0.3, test=0.3)
    train, valid, test = map(long_passages, (split.train, split.valid, split.test))
    assert not train & valid
    assert not train & test
    assert not valid & test


@given(TEXTS)
def test_what_is_kept_was_there_and_train_is_untouched(text):
    split = split_text(text, valid=0.3, test=0.3)
    assert text.startswith(split.train)
    rest = iter(text[len(split.train) :])
    assert all(byte in rest for byte in split.valid + split.test)  # a subsequence: `in` moves the iterator on


def test_a_repeated_paragraph_of_short_lines_is_dropped_with_other_white_space_too():
    verse = b"Two households, both alike in dignity,\nIn fair Verona, where we lay our scene,\n"
    again = b"  Two households, both alike in dignity,\n  In fair Verona, where we lay our scene,\n"
    filler = unique_text(100)
    split = split_text(verse + b"\n" + filler + b"\nnew\n\n" + again + b"\nend\n", valid=0.05, test=0.0)
    assert split.valid.endswith(b"\nnew\n\nend\n")
    assert b"Verona" in split.train


def test_a_repeated_long_line_is_dropped_and_its_paragraph_kept():
    notice = b"Permission is hereby granted, free of charge, to any person who obtains a copy of it\n"
    split = split_text(notice + unique_text(100) + b"before\n" + notice + b"after\n", valid=0.05, test=0.0)
    assert split.valid.endswith(b"before\nafter\n")


def test_a_repeated_paragraph_is_dropped_whole_with_its_short_lines():
    paragraph = b"l" * PASSAGE + b"\nshort\n"
    split = split_text(paragraph + b"\n" + unique_text(100) + b"\n" + paragraph + b"\nend\n", valid=0.05, test=0.0)
    assert split.valid.endswith(b"repetitions\n\nend\n")


def test_a_paragraph_that_becomes_a_known_one_is_dropped_too():
    verse = b"Two households, both alike in dignity,\nIn fair Verona, where we lay our scene,\n"
    line = b"n" * PASSAGE + b"\n"
    split = split_text(verse + b"\n" + line + b"\n" + unique_text(100) + b"\n" + line + verse, valid=0.05, test=0.0)
    assert b"Verona" not in split.valid


def test_lines_end_with_a_line_feed_only():
    line = b"a" * 40 + b"\r" + b"b" * 40 + b"\n"
    split = split_text(line + unique_text(100) + b"before\n" + line + b"after\n", valid=0.05, test=0.0)
    assert split.valid.endswith(b"before\nafter\n")


def test_short_passages_stay():
    line = b"s" * (PASSAGE - 1) + b"\n"
    split = split_text(line + unique_text(100) + line, valid=0.05, test=0.0)
    assert split.valid.endswith(line)


def test_what_valid_has_is_dropped_from_test():
    passage = b"p" * PASSAGE + b"\n"
    text = unique_text(200)
    lines = text.splitlines(keepends=True)
    lines[185:185] = lines[195:195] = [passage]
    split = split_text(b"".join(lines), valid=0.1, test=0.05)
    assert passage not in split.train
    assert passage in split.valid
    assert passage not in split.test


def test_a_text_of_one_endless_line_is_cut_where_asked():
    split = split_text(bytes(range(1, 10)) * 1000, valid=0.25, test=0.25)
    assert len(split.train) == 4500
    assert split.valid  # its "passage" is not the train piece's


@pytest.mark.parametrize(("valid", "test"), [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (1.0, 0.0)])
def test_impossible_shares(valid, test):
    with pytest.raises(DataError, match="leave room for train"):
        split_text(b"text", valid, test)


@pytest.mark.parametrize(("train", "valid", "name"), [(32, 33, "train"), (33, 32, "valid"), (33, 0, "valid")])
def test_too_short_for_the_context(train, valid, name):
    with pytest.raises(DataError, match=f"the {name} piece has .* context of 32 needs at least 33"):
        check_length(Split(b"x" * train, b"x" * valid, b""), context=32)


def test_just_long_enough():
    check_length(Split(b"x" * 33, b"x" * 33, b""), context=32)
