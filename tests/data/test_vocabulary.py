import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec.data import VOCAB_SIZE, decode, decode_text, encode


@given(st.binary())
def test_bytes_come_back(data):
    tokens = encode(data)
    assert tokens.dtype == np.uint8
    assert tokens.tolist() == list(data)
    assert decode(tokens) == data
    assert decode(tokens.astype(np.int64)) == data
    assert decode(tokens.tolist()) == data


@given(st.text())
def test_text_comes_back(text):
    assert decode_text(encode(text)) == text


def test_a_cut_character_is_shown_not_raised():
    assert decode_text(encode("é")[:1]) == "\ufffd"


def test_encoded_tokens_can_be_written_to():
    tokens = encode(b"ab")
    tokens[0] = 99
    assert decode(tokens) == b"cb"


@pytest.mark.parametrize("tokens", [[0, VOCAB_SIZE], [-1, 3], [0.5], [True, False]])
def test_what_is_no_byte_is_refused(tokens):
    with pytest.raises(ValueError, match="byte tokens are integers from 0 to 255"):
        decode(tokens)
