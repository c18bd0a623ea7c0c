"""Slots of recurrent state: one for each running sequence, and some for snapshots that later prompts start from.

    slot    0 .......... num_running | num_running ........ num_running + num_snapshots
            held by sequences        | snapshots, least recently used ones overwritten

A snapshot is the state after exactly the tokens whose blocks a hash chain names. Plain models have no slots.
"""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StateCopy:
    """State to copy between slots before the next step is computed; copies are done in order."""

    source: int
    target: int


class Slots:
    """Allocator of slots, and cache of snapshots by prefix hash."""

    def __init__(self, num_running: int, num_snapshots: int) -> None:
        self.num_running = num_running
        self._free = list(range(num_running - 1, -1, -1))
        self._free_snapshots = list(range(num_running + num_snapshots - 1, num_running - 1, -1))
        self._snapshots: OrderedDict[bytes, int] = OrderedDict()
        self.num_snapshots = num_snapshots

    @property
    def num_free(self) -> int:
        """Slots that `allocate` can return."""
        return len(self._free)

    def allocate(self) -> int:
        """Allocate a slot for a sequence; `num_free` must be above 0."""
        return self._free.pop()

    def free(self, slot: int) -> None:
        """Free the slot of a sequence."""
        self._free.append(slot)

    def find_snapshot(self, hashes: list[bytes]) -> tuple[int, int] | None:
        """Number of blocks and slot of the longest snapshot along this chain."""
        for index in range(len(hashes) - 1, -1, -1):
            slot = self._snapshots.get(hashes[index])
            if slot is not None:
                self._snapshots.move_to_end(hashes[index])
                return index + 1, slot
        return None

    def take_snapshot(self, name: bytes) -> int | None:
        """Where to copy the state that has seen the chain up to this hash; None if it is kept already, or cannot be."""
        if name in self._snapshots or self.num_snapshots == 0:
            return None
        slot = self._free_snapshots.pop() if self._free_snapshots else self._snapshots.popitem(last=False)[1]
        self._snapshots[name] = slot
        return slot

    def drop_snapshot(self, name: bytes) -> None:
        """Free this snapshot."""
        slot = self._snapshots.pop(name, None)
        if slot is not None:
            self._free_snapshots.append(slot)

    def check(self, held: list[int]) -> None:
        """Check the invariants against the slots that sequences hold; raises AssertionError."""
        assert sorted(held + self._free) == list(range(self.num_running))
        snapshots = sorted([*self._snapshots.values(), *self._free_snapshots])
        assert snapshots == list(range(self.num_running, self.num_running + self.num_snapshots))
