"""The cache of keys and values is a value: appending leaves the old one right, shares memory and stays small."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyrec.nn import KVCache


def tokens(start, stop, batch=2):
    """keys, values (B, T, 1, 3) that say which token they belong to."""
    keys = np.arange(start, stop, dtype=float)[None, :, None, None] + np.zeros((batch, 1, 1, 3))
    return keys + 1000.0 * np.arange(batch)[:, None, None, None], -keys


def empty(limit=None):
    keys, values = tokens(0, 0)
    return KVCache(keys, values, limit)


def assert_holds(cache, expected):
    """The cache holds just the tokens of these numbers, oldest first."""
    keys, values = tokens(0, max(expected, default=0) + 1)
    assert (cache.keys == keys[:, expected]).all() and (cache.values == values[:, expected]).all()
    assert cache.keys.shape == (2, len(expected), 1, 3) == cache.values.shape


@settings(max_examples=100)
@given(pieces=st.lists(st.integers(1, 40), max_size=12), limit=st.sampled_from([None, 1, 3, 20]))
def test_any_pieces_give_the_newest_tokens(pieces, limit):
    caches, stops, stop = [empty(limit)], [0], 0
    for piece in pieces:
        caches.append(caches[-1].append(*tokens(stop, stop + piece)))
        stop += piece
        stops.append(stop)
    for cache, end in zip(caches, stops, strict=True):  # the old ones too, after all appends
        assert_holds(cache, list(range(0 if limit is None else max(0, end - limit), end)))


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("prompt", [1, 5, 30])
def test_two_continuations_of_one_cache_are_independent(prompt, limit):
    trunk = empty(limit)
    for t in range(prompt):
        trunk = trunk.append(*tokens(t, t + 1))
    branches = [trunk, trunk, trunk]
    for t in range(20):
        for k in range(3):
            branches[k] = branches[k].append(*tokens(100 * k + t, 100 * k + t + 1))
    start = 0 if limit is None else max(0, prompt - limit)
    assert_holds(trunk, list(range(start, prompt)))
    for k, branch in enumerate(branches):
        expected = [*range(prompt), *range(100 * k, 100 * k + 20)]
        assert_holds(branch, expected if limit is None else expected[-limit:])


def test_the_arrays_that_it_was_made_of_are_not_written_to():
    keys, values = tokens(0, 4)
    keys.flags.writeable = values.flags.writeable = False
    cache = KVCache(keys, values)
    for t in range(4, 9):
        cache = cache.append(*tokens(t, t + 1))
    assert_holds(cache, list(range(9)))


def appended(n, limit):
    """The cache after n single tokens, and how often it moved to a new buffer."""
    cache, moves = empty(limit), 0
    for t in range(n):
        new = cache.append(*tokens(t, t + 1))
        moves += new._buffer is not cache._buffer
        cache = new
    return cache, moves


def test_appending_seldom_copies():
    cache, moves = appended(1000, None)
    assert moves <= 9 and cache.keys.shape[1] == 1000  # it doubles
    cache, moves = appended(1000, 50)
    assert moves <= 1000 / 50 + 6 and cache.keys.shape[1] == 50
    assert appended(1000, 3)[1] <= 1000 / 29 + 1  # a short window has room for more than its own length


def test_with_a_limit_the_buffer_stays_small():
    cache, _ = appended(1000, 50)
    assert cache._buffer.keys.shape[1] <= 100
    cache, _ = appended(1000, 3)
    assert cache._buffer.keys.shape[1] <= 32


def test_nbytes_counts_what_can_be_seen():
    cache, _ = appended(10, 4)
    assert cache.nbytes == 2 * 2 * 4 * 1 * 3 * 8


def test_the_limit_and_the_dtype_are_kept():
    keys = np.zeros((1, 2, 1, 3), "float32")
    cache = KVCache(keys, keys, 4)
    for _ in range(5):
        cache = cache.append(keys, keys)
    assert cache.limit == 4 and cache.keys.dtype == cache.values.dtype == np.float32


# --- taking tokens back -----------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(changes=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 20)), max_size=8))
def test_tokens_that_are_taken_back_make_room_for_others(changes):
    """changes: how many of the last tokens are taken back (at most all), how many others then come."""
    cache, held, label = empty(), [], 0
    for back, more in changes:
        back = min(back, len(held))
        cache, held = cache.without_last(back), held[: len(held) - back]
        assert_holds(cache, held)
        cache = cache.append(*tokens(label, label + more))
        held += range(label, label + more)
        label += more
        assert_holds(cache, held)


def test_taking_back_copies_nothing_and_neither_does_what_comes_next():
    cache, _ = appended(20, None)
    short = cache.without_last(3)
    assert short.keys.base is cache.keys.base is not None and np.shares_memory(short.keys, cache.keys)
    again = short.append(*tokens(100, 103))
    assert np.shares_memory(again.keys, cache.keys) and np.shares_memory(again.values, cache.values)
    assert_holds(again, [*range(17), 100, 101, 102])
    assert_holds(short, list(range(17)))


def test_taking_nothing_back_gives_up_what_continues():
    """A guess is made again and again in the same place."""
    trunk, _ = appended(20, None)
    trunk = trunk.append(*tokens(20, 21))
    guess = trunk.append(*tokens(100, 104))
    again = trunk.without_last(0).append(*tokens(200, 204))
    assert np.shares_memory(guess.keys, again.keys)
    assert_holds(again, [*range(21), *range(200, 204)])
    assert_holds(trunk, list(range(21)))
    assert not np.shares_memory(trunk.append(*tokens(300, 301)).keys, again.keys)  # the place is taken: it copies
    assert_holds(again, [*range(21), *range(200, 204)])


def test_all_can_be_taken_back_and_more_cannot():
    cache, _ = appended(3, None)
    assert_holds(cache.without_last(3), [])
    for n in (4, -1):
        with pytest.raises(ValueError, match=f"a cache of 3 tokens cannot give up its last {n}"):
            cache.without_last(n)


def test_the_arrays_that_it_was_made_of_are_not_written_to_after_taking_back_either():
    keys, values = tokens(0, 4)
    cache = KVCache(keys, values).without_last(2).append(*tokens(100, 102))
    assert_holds(cache, [0, 1, 100, 101])
    assert (keys[0, :, 0, 0] == [0, 1, 2, 3]).all() and (values[0, :, 0, 0] == [0, -1, -2, -3]).all()


def test_taking_back_with_a_limit_leaves_fewer():
    cache, _ = appended(10, 4)
    short = cache.without_last(3)
    assert_holds(short, [6])
    assert short.limit == 4
    assert_holds(short.append(*tokens(20, 25)), [21, 22, 23, 24])
