import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrec.data import IGNORE_INDEX, Batches, DataError, encode


def row(n: int) -> np.ndarray:
    """Tokens that tell their own place, up to 256."""
    return np.arange(n).astype(np.uint8)


@given(length=st.integers(1, 20), extra=st.integers(1, 50), batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_sample_gives_windows_of_the_text_and_the_token_after_each(length, extra, batch, seed):
    tokens, targets = Batches(row(length + extra), length).sample(batch, np.random.default_rng(seed))
    assert tokens.shape == targets.shape == (batch, length)
    assert tokens.dtype == targets.dtype == np.int64
    assert tokens.flags.c_contiguous and targets.flags.c_contiguous
    np.testing.assert_array_equal(tokens - tokens[:, :1], np.broadcast_to(np.arange(length), tokens.shape))
    np.testing.assert_array_equal(targets, tokens + 1)
    assert targets.max() < length + extra


def test_sample_reaches_the_first_and_the_last_window_about_equally_often():
    tokens, _ = Batches(row(8), 4).sample(4000, np.random.default_rng(0))  # starts 0, 1, 2, 3
    starts = np.bincount(tokens[:, 0], minlength=8)
    assert starts[4:].sum() == 0
    assert np.all(np.abs(starts[:4] - 1000) < 150)


def test_sample_depends_on_the_generator_alone():
    first, second = Batches(row(200), 7), Batches(row(200), 7)
    rng = np.random.default_rng(5)
    for _ in range(3):
        first.sample(4, rng)
    resumed = np.random.default_rng()
    resumed.bit_generator.state = rng.bit_generator.state
    for ours, theirs in zip(first.sample(4, rng), second.sample(4, resumed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_window_is_enough_to_sample():
    tokens, targets = Batches(row(5), 4).sample(2, np.random.default_rng(0))
    np.testing.assert_array_equal(tokens, [[0, 1, 2, 3]] * 2)
    np.testing.assert_array_equal(targets, [[1, 2, 3, 4]] * 2)


@given(n=st.integers(2, 200), length=st.integers(1, 30), batch=st.integers(1, 7))
def test_consecutive_scores_every_token_but_the_first_once(n, length, batch):
    batches = list(Batches(row(n), length).consecutive(batch))
    assert all(tokens.shape == targets.shape == (batch, length) for tokens, targets in batches[:-1])
    assert 1 <= len(batches[-1][0]) <= batch
    assert all(array.dtype == np.int64 for pair in batches for array in pair)
    tokens = np.concatenate([tokens for tokens, _ in batches]).ravel()
    targets = np.concatenate([targets for _, targets in batches]).ravel()
    scored = targets != IGNORE_INDEX
    np.testing.assert_array_equal(targets[scored], row(n)[1:])
    np.testing.assert_array_equal(tokens[scored], row(n)[:-1])
    assert not tokens[~scored].any()
    assert (~scored).sum() < length  # only the last window is filled up


def test_consecutive_by_hand():
    ((tokens, targets),) = Batches(encode(b"abcdef"), 3).consecutive(8)
    assert tokens.tolist() == [[97, 98, 99], [100, 101, 0]]
    assert targets.tolist() == [[98, 99, 100], [101, 102, -1]]


def test_too_few_tokens():
    with pytest.raises(DataError, match="4 tokens are too few for windows of 4"):
        Batches(row(4), 4).sample(1, np.random.default_rng(0))
    with pytest.raises(DataError, match="2 tokens or more"):
        list(Batches(row(1), 4).consecutive(1))
    with pytest.raises(DataError, match="batch >= 1"):
        list(Batches(row(9), 4).consecutive(0))


def test_wrong_tokens_and_length():
    with pytest.raises(DataError, match="one row of integers"):
        Batches(row(4).reshape(2, 2), 1)
    with pytest.raises(DataError, match="one row of integers"):
        Batches(np.zeros(4), 1)
    with pytest.raises(DataError, match="length of a window"):
        Batches(row(4), 0)
