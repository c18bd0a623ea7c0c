"""KV cache manager: blocks and recurrent slots of sequences, allocated at admission, freed at the end or on preemption.

A prefix that is in the cache is shared, not copied, up to its last full block; of the block behind it the
common prefix is copied, in models without recurrent state. A sequence that needs a prefix which another one is
computing right now waits for it instead of computing it twice.
"""

from collections.abc import Collection
from dataclasses import dataclass

from server.engine.blocks import Blocks, chain_hash
from server.engine.sequence import Sequence
from server.engine.slots import Slots, StateCopy

RESTART_INTERVAL_BLOCKS = 256  # distance between snapshots of a long prompt's recurrent state


@dataclass(frozen=True, slots=True)
class Allocation:
    """What admitting a sequence would allocate. `num_blocks` is the decrease of `num_available`."""

    shared: tuple[int, ...]
    num_new: int
    num_blocks: int
    num_cached: int  # tokens
    snapshot: int | None = None  # slot with the state to start from
    partial_block: int | None = None  # block to copy, whose prefix matches behind the shared ones


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy of a block to do before the next step is computed, in order."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class BlockMoves:
    """Copies of blocks to other ones, none of which is among the sources."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]


Copy = StateCopy | BlockCopy | BlockMoves


class Cache:
    """Blocks and slots of all sequences. `copies` are done before the next step is computed."""

    def __init__(self, blocks: Blocks, slots: Slots | None = None, *, copying: bool = False) -> None:
        """`copying`: copy partially matching blocks, in models without slots."""
        self.blocks = blocks
        self.slots = slots
        self.copying = copying and blocks.caching and slots is None
        self.copies: list[StateCopy | BlockCopy] = []
        self._in_flight_prefixes: dict[bytes, Sequence] = {}

    def waits_for_prefix(self, sequence: Sequence) -> bool:
        """Whether another sequence is computing the next block that this one needs."""
        if not self.blocks.caching:
            return False
        if sequence.awaited_hash is not None and sequence.awaited_hash in self._in_flight_prefixes:
            return True
        hashes = self._reusable_hashes(sequence)
        num_found = len(self.blocks.find_prefix(hashes))
        sequence.awaited_hash = hashes[num_found] if num_found < len(hashes) else None
        owner = self._in_flight_prefixes.get(sequence.awaited_hash) if sequence.awaited_hash is not None else None
        if owner is not None and self.slots is not None:
            self._request_snapshot(owner, hashes)
        return owner is not None

    def plan(self, sequence: Sequence) -> Allocation:
        """What admitting this sequence now would allocate."""
        size = self.blocks.block_size
        shared: list[int] = []
        snapshot: int | None = None
        if self.blocks.caching:
            hashes = self._reusable_hashes(sequence)
            shared = self.blocks.find_prefix(hashes)
            if self.slots is not None:
                shared, snapshot = self._cut_to_snapshot(sequence, hashes, shared)
        num_new, num_cached = -(-len(sequence.ids) // size) - len(shared), len(shared) * size
        partial_block = None
        if self.copying:
            rest = sequence.ids[num_cached : min(num_cached + size, sequence.num_reusable)]
            found = self.blocks.find_partial(self._parent(sequence, len(shared)), rest) if rest else None
            if found is not None:
                partial_block, num_cached = found[0], num_cached + found[1]
        num_blocks = num_new + self.blocks.num_idle(shared)
        return Allocation(tuple(shared), num_new, num_blocks, num_cached, snapshot, partial_block)

    def open(self, sequence: Sequence, allocation: Allocation) -> int:
        """Allocate blocks for all pending tokens of a sequence; returns how many tokens are cached."""
        blocks, size = self.blocks, self.blocks.block_size
        blocks.share(allocation.shared)
        # This may evict the block to be copied: its content stays until a step is computed.
        last = allocation.shared[-1] if allocation.shared else None
        sequence.blocks = [*allocation.shared, *blocks.allocate(allocation.num_new, after=last)]
        sequence.num_published = len(allocation.shared)
        sequence.begin_prefill(allocation.num_cached)
        if allocation.partial_block is not None:
            self.copies.append(BlockCopy(allocation.partial_block, sequence.blocks[len(allocation.shared)]))
        if self.slots is not None:
            sequence.slot = self.slots.allocate()
            if allocation.snapshot is not None:
                self.copies.append(StateCopy(allocation.snapshot, sequence.slot))
        if blocks.caching:
            for name in sequence.hashes[len(allocation.shared) : sequence.prefill_end // size]:
                self._in_flight_prefixes.setdefault(name, sequence)
        return sequence.num_computed

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate blocks for `num_tokens` tokens in all; False if there are not enough, then nothing changes."""
        missing = -(-num_tokens // self.blocks.block_size) - len(sequence.blocks)
        if missing <= 0:
            return True
        if missing > self.blocks.num_available:
            return False
        sequence.blocks.extend(self.blocks.allocate(missing, after=sequence.blocks[-1]))
        return True

    def publish(self, sequence: Sequence) -> None:
        """Publish the blocks that have become full, and take the requested snapshots of the recurrent state."""
        if not self.blocks.caching:
            return
        num_full = sequence.num_computed // self.blocks.block_size
        if num_full > sequence.num_published:
            hashes = sequence.extend_hashes(num_full, self.blocks.block_size)
            for index in range(sequence.num_published, num_full):
                parent, ids = self._parent(sequence, index), self._ids_of(sequence, index)
                self.blocks.publish(sequence.blocks[index], hashes[index], parent, ids)
                self._remove_in_flight(hashes[index], sequence)
            sequence.num_published = num_full
        if sequence.num_computed in sequence.snapshots_at:
            self._keep_state(sequence)

    def close(self, sequence: Sequence) -> None:
        """Free everything the sequence holds; published blocks stay cached until evicted."""
        if self.copying:
            due = [copy for copy in self.copies if copy.target in sequence.blocks]
            if due:  # admitted for a step that was not computed: its copied tokens are not there
                self.copies = [copy for copy in self.copies if copy not in due]
            else:
                self._publish_partial(sequence)
        self.blocks.free(sequence.blocks)
        for name in sequence.hashes[sequence.num_published :]:
            self._remove_in_flight(name, sequence)
        if self.slots is not None and sequence.slot is not None:
            self.slots.free(sequence.slot)
        sequence.blocks, sequence.slot = [], None
        sequence.num_published = sequence.num_computed = sequence.prefill_end = 0
        sequence.snapshots_at.clear()

    def invalidate_blocks(self, sequence: Sequence) -> None:
        """Remove the blocks of this sequence from the prefix cache: their content is invalid."""
        for block in sequence.blocks:
            self.blocks.unpublish(block)

    def move_below_limit(self, sequences: Collection[Sequence]) -> BlockMoves:
        """Give the blocks that these sequences, which are all, hold beyond the limit places below it."""
        limit = self.blocks.limit
        sources = tuple(dict.fromkeys(block for one in sequences for block in one.blocks if block >= limit))
        targets = self.blocks.relocate(sources)
        place_of = dict(zip(sources, targets, strict=True))
        for sequence in sequences:
            sequence.blocks = [place_of.get(block, block) for block in sequence.blocks]
        return BlockMoves(sources, tuple(targets))

    def take_copies(self) -> tuple[Copy, ...]:
        """Return and clear the copies to do before the next step."""
        copies, self.copies = tuple(self.copies), []
        return copies

    def _reusable_hashes(self, sequence: Sequence) -> list[bytes]:
        # The last token is always recomputed: a prompt found whole would leave no logits.
        size = self.blocks.block_size
        hashes = sequence.extend_hashes(len(sequence.ids) // size, size)
        return hashes[: sequence.num_reusable // size]

    def _publish_partial(self, sequence: Sequence) -> None:
        """Publish the block that is not full, for copies of its prefix, unless the reply failed."""
        index, count = divmod(sequence.num_computed, self.blocks.block_size)
        if count and sequence.reply.fault is None:
            parent, ids = self._parent(sequence, index), self._ids_of(sequence, index)[:count]
            self.blocks.publish(sequence.blocks[index], chain_hash(parent, ids), parent, ids)

    def _parent(self, sequence: Sequence, index: int) -> bytes:
        """Hash of everything before the sequence's block of this index."""
        return sequence.hashes[index - 1] if index else sequence.root_hash

    def _ids_of(self, sequence: Sequence, index: int) -> list[int]:
        size = self.blocks.block_size
        return sequence.ids[index * size : (index + 1) * size]

    def _remove_in_flight(self, name: bytes, sequence: Sequence) -> None:
        if self._in_flight_prefixes.get(name) is sequence:
            del self._in_flight_prefixes[name]

    def _cut_to_snapshot(
        self, sequence: Sequence, hashes: list[bytes], shared: list[int]
    ) -> tuple[list[int], int | None]:
        """Limit reuse to the longest snapshot, and request snapshots where they would have helped."""
        assert self.slots is not None
        size = self.blocks.block_size
        found = self.slots.find_snapshot(hashes[: len(shared)])
        num_kept, snapshot = (0, None) if found is None else found
        requested = {num * size for num in (len(shared), sequence.num_lasting // size) if num > num_kept}
        # Out of memory or preempted in the middle, a long prompt goes on from the last mark.
        sequence.restart_points = {
            num * size for num in range(num_kept + RESTART_INTERVAL_BLOCKS, len(hashes), RESTART_INTERVAL_BLOCKS)
        } - requested
        sequence.snapshots_at = requested | sequence.restart_points
        return shared[:num_kept], snapshot

    def _request_snapshot(self, owner: Sequence, hashes: list[bytes]) -> None:
        num_common = 0
        for ours, theirs in zip(hashes, owner.hashes, strict=False):
            if ours != theirs:
                break
            num_common += 1
        owner.snapshots_at.add(num_common * self.blocks.block_size)
        owner.restart_points.discard(num_common * self.blocks.block_size)

    def _keep_state(self, sequence: Sequence) -> None:
        sequence.snapshots_at.discard(sequence.num_computed)
        if self.slots is None or sequence.slot is None:
            return
        name = sequence.hashes[sequence.num_computed // self.blocks.block_size - 1]
        if sequence.restart_snapshot is not None:  # one per sequence: they must not evict other prefixes
            self.slots.drop_snapshot(sequence.restart_snapshot)
            sequence.restart_snapshot = None
        target = self.slots.take_snapshot(name)
        if target is not None:
            self.copies.append(StateCopy(sequence.slot, target))
            if sequence.num_computed in sequence.restart_points:
                sequence.restart_snapshot = name
