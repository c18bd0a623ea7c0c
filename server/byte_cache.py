"""Least recently used cache with a limit in bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
ENTRY_BYTES = 400  # of the bookkeeping of one entry


class ByteCache(Generic[K, V]):
    """Keeps the values used last, at most `max_bytes` of keys and values together; thread-safe.

    `num_bytes_of(key, value)` estimates what an entry takes. A value larger than the limit is returned and not kept;
    two threads that miss at the same time compute the value twice.
    """

    def __init__(self, max_bytes: int, num_bytes_of: Callable[[K, V], int]) -> None:
        self._max_bytes = max_bytes
        self._num_bytes_of = num_bytes_of
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()
        self.num_bytes = 0

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`, computed by `make` where it is not kept. Raises what `make` raises."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        value = make()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = value
                self.num_bytes += self._size(key, value)
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= self._size(*self._entries.popitem(last=False))
        return value

    def _size(self, key: K, value: V) -> int:
        return self._num_bytes_of(key, value) + ENTRY_BYTES
