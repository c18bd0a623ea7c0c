"""Block allocator with a prefix cache: reference counts and hashes, no tensors. A block is in one of three states.

    free       unreferenced; content undefined
    cached     unreferenced; content reusable until evicted, least recently used first
    used       referenced by one or more sequences; shareable once the block is full

A full block is known by a hash over its ids and the hash of the block before it, so that equal hashes mean equal
tokens at equal positions. Sharing is by reference: a shared block is never written again. Where a prompt
diverges in the middle of a block, the common prefix of that block can be copied, be it full or not.
"""

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice

ROOT_HASH = b""  # parent of a first block


def root_hash(salt: str, adapter: bytes = b"") -> bytes:
    """Parent of a first block: chains of different salts, or of adapters with different digests, share no hash.

    The digest is a key of the hash, so that no salt stands for an adapter.
    """
    return hashlib.blake2b(salt.encode(), digest_size=16, key=adapter).digest() if salt or adapter else ROOT_HASH


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of a full block: 16 bytes over its parent's hash and its ids, cryptographically collision-resistant."""
    return hashlib.blake2b(array("I", token_ids).tobytes(), digest_size=16, key=parent).digest()


MAX_COMPARED = 32  # blocks behind one prefix with one first id, compared for the longest common prefix


class Blocks:
    """Allocator of the blocks `0 .. num_blocks`. Low ids and runs of consecutive ids are allocated first:
    attention on the CPU reads a dense range of blocks in place, and the pool can release its tail.
    """

    def __init__(self, num_blocks: int, block_size: int, *, caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.caching = caching
        self.limit = num_blocks
        self.num_used = 0
        self.num_beyond_limit = 0  # used, although beyond the limit
        self._num_free = num_blocks
        self._is_free = bytearray(b"\1" * num_blocks)  # searched for runs with bytes.find, at the speed of C
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._branches: dict[tuple[bytes, int], dict[int, array[int]]] = {}  # by parent and first id: block, its ids
        self._branch_of: list[tuple[bytes, int]] = [(b"", 0)] * num_blocks
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can return now: free ones, and cached ones that it evicts."""
        return self._num_free + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Unreferenced blocks whose content may be reused."""
        return len(self._cached)

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Allocate `count` blocks for one sequence, in table order; `after` is the last block it has.

        `count` is at most `num_available`.
        """
        assert count <= self.num_available
        while self._num_free < count:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            self._mark_free(block)
        taken = [] if after is None else self._run_after(after, count)
        while len(taken) < count:
            start, length = self._find_run(count - len(taken))
            taken.extend(self._claim(start, length))
        self.num_used += count
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to these blocks, which are used or cached."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
                self.num_used += 1
            self._references[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each of these blocks, in table order."""
        for block in reversed(blocks):  # so that a chain's tail is evicted before its head
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            self.num_used -= 1
            if block >= self.limit:
                self.num_beyond_limit -= 1
                self._forget(block)
            elif self._hashes[block] is None:
                self._mark_free(block)
            else:
                self._cached[block] = None

    def find_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of this hash chain; not referenced yet."""
        found = []
        for name in hashes:
            block = self._by_hash.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def find_partial(self, parent: bytes, token_ids: Sequence[int]) -> tuple[int, int] | None:
        """The block behind `parent` with the longest common prefix with these ids, and its length; or None."""
        known = self._branches.get((parent, token_ids[0]), {})
        counts = ((_num_common(known[block], token_ids), block) for block in islice(reversed(known), MAX_COMPARED))
        count, block = max(counts, default=(0, 0))
        return (block, count) if count else None

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of these are cached and unreferenced: sharing them makes that many fewer available."""
        return sum(self._references[block] == 0 for block in blocks)

    def publish(self, block: int, name: bytes, parent: bytes, token_ids: Sequence[int]) -> None:
        """Make this used block, which holds these ids behind `parent` and will not change, findable."""
        if self.caching and self._hashes[block] is None and name not in self._by_hash:
            self._hashes[block] = name
            self._by_hash[name] = block
            self._branch_of[block] = branch = (parent, token_ids[0])
            self._branches.setdefault(branch, {})[block] = array("I", token_ids)

    def unpublish(self, block: int) -> None:
        """Make this used block unfindable."""
        self._forget(block)

    def set_limit(self, limit: int) -> None:
        """Stop allocating and caching blocks from this id on (`num_beyond_limit` of them are still used)."""
        limit = max(0, min(limit, self.num_blocks))
        for block in range(limit, self.limit):
            if self._references[block]:
                self.num_beyond_limit += 1
            elif self._is_free[block]:
                self._is_free[block] = 0
                self._num_free -= 1
            else:
                del self._cached[block]
                self._forget(block)
        for block in range(self.limit, limit):
            if self._references[block]:
                self.num_beyond_limit -= 1
            else:
                self._mark_free(block)
        self.limit = limit

    def relocate(self, blocks: Sequence[int]) -> list[int]:
        """Places below the limit for used blocks beyond it, at most `num_available`; their content is to be copied."""
        targets = self.allocate(len(blocks))
        for block, target in zip(blocks, targets, strict=True):
            self._references[target], self._references[block] = self._references[block], 0
            name, branch = self._hashes[block], self._branch_of[block]
            if name is not None:
                self._hashes[block], self._hashes[target] = None, name
                self._by_hash[name], self._branch_of[target] = target, branch
                self._branches[branch][target] = self._branches[branch].pop(block)
        self.num_used -= len(blocks)
        self.num_beyond_limit -= len(blocks)
        return targets

    def check(self, tables: Iterable[Sequence[int]] = ()) -> None:
        """Check the invariants against the block tables of all sequences; raises AssertionError."""
        held = Counter(block for table in tables for block in table)
        num_free = num_beyond_limit = 0
        for block in range(self.num_blocks):
            references, name = self._references[block], self._hashes[block]
            assert references == held[block], f"block {block} has {references} references, {held[block]} holders"
            assert name is None or self._by_hash[name] == block, f"block {block} cannot be found by its hash"
            free, cached = bool(self._is_free[block]), block in self._cached
            assert not cached or name is not None, f"block {block} is cached without a hash"
            states = free + cached + (references > 0)
            assert states == (1 if block < self.limit or references else 0), f"block {block} is in {states} states"
            num_free += free
            num_beyond_limit += references > 0 and block >= self.limit
        assert num_free == self._num_free and num_beyond_limit == self.num_beyond_limit
        known = [block for branch in self._branches.values() for block in branch]
        assert sorted(known) == sorted(self._by_hash.values()), "a block can be found one way and not the other"
        assert self.num_used == len(held) and len(self._by_hash) == sum(name is not None for name in self._hashes)

    def _forget(self, block: int) -> None:
        name = self._hashes[block]
        if name is not None:
            del self._by_hash[name]
            self._hashes[block] = None
            branch = self._branches[self._branch_of[block]]
            del branch[block]
            if not branch:
                del self._branches[self._branch_of[block]]

    def _mark_free(self, block: int) -> None:
        self._is_free[block] = 1
        self._num_free += 1

    def _claim(self, start: int, length: int) -> range:
        run = range(start, start + length)
        for block in run:
            self._is_free[block] = 0
            self._references[block] = 1
        self._num_free -= length
        return run

    def _run_after(self, block: int, count: int) -> list[int]:
        """Up to `count` blocks directly behind this one."""
        end = self._is_free.find(b"\0", block + 1, block + 1 + count)
        length = (min(block + 1 + count, self.num_blocks) if end < 0 else end) - (block + 1)
        return list(self._claim(block + 1, length)) if length > 0 else []

    def _find_run(self, count: int) -> tuple[int, int]:
        """Start and length of a free run: the lowest that is long enough, else the lowest half as long, ..."""
        while (start := self._is_free.find(b"\1" * count)) < 0:
            count = (count + 1) // 2
        return start, count


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    most = min(len(one), len(other))
    return next((i for i in range(most) if one[i] != other[i]), most)
