"""The keys and values that attention has seen, as a value: `append` returns a new cache and the old one stays right.

Appending one token must not copy thousands. So several caches share one roomy buffer: the newest writes behind its own
end, which no older cache looks at. A second append to the same cache (two continuations of one prompt) finds the place
taken and copies first.
"""

from __future__ import annotations

from typing import Any

from ..backend import get_xp
from ..ops import concat
from ..tape import array_of


class KVCache:
    """keys, values (B, n, H, K): the last n tokens, oldest first; n <= `limit` if there is one."""

    __slots__ = ("_buffer", "_start", "_stop", "limit")

    def __init__(self, keys: Any, values: Any, limit: int | None = None):
        self._buffer, self._start, self._stop, self.limit = _Buffer(keys, values), 0, keys.shape[1], limit

    keys = property(lambda self: self._buffer.keys[:, self._start : self._stop])
    values = property(lambda self: self._buffer.values[:, self._start : self._stop])

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values that can still be seen."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, keys: Any, values: Any) -> KVCache:
        """The cache after the tokens of keys, values (B, T, H, K), cut to the newest `limit`."""
        stop = self._stop + keys.shape[1]
        start = self._start if self.limit is None else max(self._start, stop - self.limit)
        new = object.__new__(KVCache)
        new.limit = self.limit
        if stop <= self._buffer.places and self._buffer.used == self._stop:
            self._buffer.keys[:, self._stop : stop] = keys
            self._buffer.values[:, self._stop : stop] = values
            new._buffer, new._start, new._stop = self._buffer, start, stop
        else:
            recent = [
                get_xp(now).concatenate([old, now], axis=1)[:, start - stop :]
                for old, now in ((self.keys, keys), (self.values, values))
            ]
            new._buffer, new._start, new._stop = _Buffer(recent[0], recent[1], room=2), 0, stop - start
        new._buffer.used = new._stop
        return new

    def without_last(self, n: int) -> KVCache:
        """The cache before its last n tokens. What follows it is given up: the next append may write over it.

        So a guess is taken back, or made again, without a copy of everything; caches that continue this one, and the
        one that is cut, must not be used afterwards. n = 0 gives up what continues this cache. Needs no `limit`.
        """
        if not 0 <= n <= self._stop - self._start:
            raise ValueError(f"a cache of {self._stop - self._start} tokens cannot give up its last {n}")
        new = object.__new__(KVCache)
        new.limit, new._buffer, new._start, new._stop = self.limit, self._buffer, self._start, self._stop - n
        new._buffer.used = new._stop
        return new


def extended(keys: Any, values: Any, cache: KVCache | None) -> tuple[Any, Any, KVCache | None]:
    """(all keys, all values, new cache): those of `cache`, then keys, values (B, T, H, K) of new tokens.

    Gradients flow into the new ones only: what an earlier call has cached is constant.
    """
    if cache is None:
        return keys, values, None
    new = cache.append(array_of(keys), array_of(values))
    if not getattr(keys, "requires_grad", False) and (cache.limit is None or keys.shape[1] == 1):
        return new.keys, new.values, new  # what the tokens see is just what is kept: no copy
    if cache.keys.shape[1]:
        keys, values = concat(cache.keys, keys, axis=1), concat(cache.values, values, axis=1)
    return keys, values, new


class _Buffer:
    """Two arrays with room behind the part in use.

    places: as many as may be written to. None of the arrays that the first cache was made of: they are the caller's.
    """

    __slots__ = ("keys", "places", "used", "values")

    def __init__(self, keys: Any, values: Any, room: int = 1):
        self.used, self.places = keys.shape[1], 0
        if room > 1:
            xp, (batch, _, heads, width) = get_xp(keys), keys.shape
            self.places = places = room * max(self.used, 16)
            # They lie in memory as few queries read them fastest: keys as (B, H, K, n), values as (B, H, n, K).
            self.keys = xp.empty((batch, heads, width, places), keys.dtype).transpose(0, 3, 1, 2)
            self.values = xp.empty((batch, heads, places, width), values.dtype).transpose(0, 2, 1, 3)
            self.keys[:, : self.used], self.values[:, : self.used] = keys, values
        else:
            self.keys, self.values = keys, values
