"""Choice of an engine by the prefixes that it holds: hashes of blocks of tokens, and bounded load.

A prompt is cut into blocks, and each is known by a hash over it and all before it. An index keeps the hashes that went
to one engine, least recently used first out, about as many as its KV cache holds tokens. A prefix's hashes are never
forgotten before those behind it, so that the longest known prefix is found by binary search.

    tokens    |--32--|--32--| ... up to 4096 ... |----256----|----256----| ...
"""

import hashlib
import math
from array import array
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

FINE_BLOCK, COARSE_BLOCK = 32, 256  # tokens
FINE_TOKENS = 4096  # up to here blocks are fine: where conversations of the same tools part
HASH_BYTES = 8
ENTRY_BYTES = 180  # of an index: the hash, and its place in the ordered dictionary
# An engine that has LOAD_FACTOR times the mean number of requests, and LOAD_MARGIN more than it, gets no new one,
# whatever prefix it holds. A few more are cheaper than a prompt that is computed again.
LOAD_FACTOR, LOAD_MARGIN = 1.25, 4


def num_blocks(num_tokens: int) -> int:
    """The number of whole blocks in a prompt."""
    fine = min(num_tokens, FINE_TOKENS) // FINE_BLOCK
    return fine + max(0, num_tokens - FINE_TOKENS) // COARSE_BLOCK


def num_tokens(blocks: int) -> int:
    """The number of tokens in the first blocks of a prompt."""
    fine = FINE_TOKENS // FINE_BLOCK
    return min(blocks, fine) * FINE_BLOCK + max(0, blocks - fine) * COARSE_BLOCK


def prefix_hashes(token_ids: Sequence[int], salt: str = "") -> list[bytes]:
    """The hashes of a prompt's whole blocks; those of different salts have none in common."""
    ids = memoryview(array("I", token_ids)).cast("B")
    width = array("I").itemsize
    parent = _digest(salt.encode(), b"") if salt else b""
    start, found = 0, []
    for block in range(num_blocks(len(token_ids))):
        end = num_tokens(block + 1)
        parent = _digest(ids[start * width : end * width], parent)
        found.append(parent)
        start = end
    return found


def _digest(data: bytes | memoryview, key: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=HASH_BYTES, key=key).digest()


class PrefixIndex:
    """Hashes of the prefixes that one engine holds, as far as can be known from here."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._known: OrderedDict[bytes, None] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._known)

    def match(self, hashes: Sequence[bytes]) -> int:
        """How many of a prompt's blocks, from the first one on, are known."""
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if hashes[middle - 1] in self._known else (low, middle - 1)
        return low

    def insert(self, hashes: Sequence[bytes]) -> None:
        """Record a prompt; its last blocks count as used before its first."""
        for one in reversed(hashes):
            self._known[one] = None
            self._known.move_to_end(one)
        while len(self._known) > self.max_entries:
            self._known.popitem(last=False)


class Candidate(Protocol):
    """An engine that may be chosen."""

    @property
    def load(self) -> int:
        """Requests that it has, waiting ones included."""

    @property
    def index(self) -> PrefixIndex:
        """The prefixes that it holds."""


C = TypeVar("C", bound=Candidate)


def choose_by_prefix(candidates: Collection[C], hashes: Sequence[bytes]) -> C:
    """The engine that holds most of the prompt, of those whose load is within the bound; of equals the least loaded.

    Less than half of the prompt counts as nothing: what many conversations begin with would gather them all at one
    engine, whose cache does not hold them. `candidates` must not be empty.
    """
    loads = [one.load for one in candidates]
    mean = (sum(loads) + 1) / len(loads)
    limit = math.ceil(max(LOAD_FACTOR * mean, LOAD_MARGIN + mean))
    free = [one for one, load in zip(candidates, loads, strict=True) if load < limit]

    def rank(one: C) -> tuple[int, int, int]:
        held = one.index.match(hashes)
        return (-held if 2 * held >= len(hashes) else 0, one.load, len(one.index))

    return min(free, key=rank)
