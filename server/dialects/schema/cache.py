"""Cache of compiled schemas, checks of custom grammars and whole grammars, of all kinds together, bounded in bytes."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from server.byte_cache import ByteCache

V = TypeVar("V")
MAX_BYTES = 128 << 20

_cache: ByteCache[tuple[str, str], tuple[Any, int]] = ByteCache(
    MAX_BYTES, lambda key, entry: sys.getsizeof(key[1]) + entry[1]
)


def derived(kind: str, source: str, make: Callable[[], V], num_bytes_of: Callable[[V], int]) -> V:
    """The value of this kind for this source text, computed by `make` where it is not kept.

    `num_bytes_of` estimates the memory of the value.
    """

    def make_entry() -> tuple[V, int]:
        value = make()
        return value, num_bytes_of(value)

    value: V = _cache.get((kind, source), make_entry)[0]
    return value


def num_bytes() -> int:
    """The estimated bytes of everything kept."""
    return _cache.num_bytes
