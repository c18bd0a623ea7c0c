"""Readings in, Allowance out. Bends before memory ends: fewer blocks, no newcomers, caches released, preemption.

    need  = fixed + blocks x block_bytes        fixed: runtime, weights, recurrent slots, activation peak, scratch
    have  = free + min(own, need)               moved by other processes, and by what this one holds beyond its need

    calm      have - need stays above low water with every block
    tight     fewer blocks are allowed: the prefix cache shrinks, then nobody is admitted
    critical  sequences hold more than is allowed: caches are released; if the next look shows no change,
              the newest sequences are preempted; where next to nothing is free, they are preempted at once

Down at once, up slowly: a limit grows only after memory has been back for `recover_s`, so it does not flutter.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from server.memory.budget import Plan, headroom
from server.memory.watcher import Latest
from server.messages import DeviceReading, MemoryReport

Level = Literal["calm", "tight", "critical"]
NUM_EVENTS = 64
RECOVER_S = 2.0  # memory must have been back this long before it is used again
GRACE_S = 0.2  # between releasing caches and preempting: the next look at the device has happened
URGENT_SHARE = 0.5  # of the headroom: with less free than this nobody waits for the next look
PENALTY_S = 30.0  # after this long without running out, half of the caution is dropped
SLABS = 64  # limits move in steps of this part of the pool


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the scheduler may do in the next step; see `engine.ports.Allowance`."""

    blocks: int
    admit: bool = True
    preempt: bool = False


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """What the guard protects. Sizes in bytes."""

    weights: int
    activations: int
    fixed: int  # everything but the KV pool at its largest: runtime, weights, recurrent slots, activations, scratch
    num_blocks: int
    block_bytes: int
    room: int


@dataclass(frozen=True, slots=True)
class AllocatorStats:
    """What torch's allocator holds: handed out, and handed out or cached."""

    allocated: int = 0
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class GuardIO:
    """What the guard reaches outside itself."""

    latest: Latest  # newest readings
    clock: Callable[[], float]  # seconds, never backwards
    epoch_s: float  # wall time when the clock showed 0
    release_caches: Callable[[], None]  # torch's cached memory back to the device, malloc's back to the system
    figures: Callable[[], AllocatorStats] = AllocatorStats


class Guard:
    """The policy with its memory of the last seconds. Called between steps by the engine's thread alone."""

    def __init__(self, limits: GuardLimits, io: GuardIO) -> None:
        self._limits = limits
        self._io = io
        self._slab = max(1, limits.num_blocks // SLABS)
        self._allowed = limits.num_blocks
        self._level: Level = "calm"
        self._judged: tuple[DeviceReading, ...] = ()
        self._used = -1
        self._answer = Allowance(limits.num_blocks)
        self._roomy_since: float | None = None
        self._critical_since: float | None = None
        self._released: tuple[DeviceReading, ...] = ()
        self._penalty = 0
        self._penalty_since = 0.0
        self._ooms = 0
        self._events: deque[tuple[float, str]] = deque(maxlen=NUM_EVENTS)

    @classmethod
    def for_engine(cls, found: Plan, io: GuardIO) -> "Guard":
        """A guard for the engine that this plan describes: measured sizes where there are some."""
        slots = found.num_slots * found.state_bytes
        runtime = found.overhead + found.room.growth
        return cls(
            GuardLimits(
                weights=found.weights,
                activations=found.activations,
                fixed=runtime + found.weights + found.activations + found.scratch + slots,
                num_blocks=found.num_blocks,
                block_bytes=found.block_bytes,
                room=found.room.usable(found.demand.memory_fraction),
            ),
            io,
        )

    def allowance(self, used_blocks: int = 0) -> Allowance:
        """What the next step may use, given the blocks that sequences hold. Looks at no device itself."""
        readings, now = self._io.latest(), self._io.clock()
        if readings is not self._judged:
            self._judged = readings
            self._judge(readings[0], now)
        elif used_blocks == self._used and self._level != "critical":
            return self._answer
        self._used = used_blocks
        answer = self._answer_for(used_blocks, now)
        if answer != self._answer:  # the same object as long as nothing changes, so that the loop sees it at a glance
            self._answer = answer
        return self._answer

    def out_of_memory(self) -> None:
        """A step ran out of memory: the peak was larger than known. Keep more free, and less the longer it holds."""
        self._ooms += 1
        pool = self._limits.num_blocks * self._limits.block_bytes
        self._penalty = min(pool // 2, max(self._limits.activations // 4, pool // 16, 2 * self._penalty))
        self._penalty_since = self._io.clock()
        self._io.release_caches()
        self._judge(self._io.latest()[0], self._penalty_since)
        self._used = -1  # the last answer is out of date
        self._set_allowed(min(self._allowed, self._blocks_with(pool - self._penalty)))
        self._note(f"a step ran out of memory ({self._ooms} so far); {self._allowed} blocks allowed")

    def report(self) -> MemoryReport:
        """Level, devices, sizes, counts and the last events, newest last."""
        figures = self._io.figures()
        return MemoryReport(
            level=self._level,
            devices=self._io.latest(),
            weight_bytes=self._limits.weights,
            activation_bytes=self._limits.activations,
            kv_bytes=self._limits.num_blocks * self._limits.block_bytes,
            block_bytes=self._limits.block_bytes,
            allocated_bytes=figures.allocated,
            reserved_bytes=figures.reserved,
            ooms=self._ooms,
            events=tuple(self._events),
            room_bytes=self._limits.room,
            allowed_blocks=self._allowed,
            fixed_bytes=self._limits.fixed,
        )

    def _judge(self, reading: DeviceReading, now: float) -> None:
        """Move the number of allowed blocks to what the device has: down at once, up after a while."""
        if not reading.total or reading.own is None:
            return  # the device tells nothing now: keep what held until it does
        if self._penalty and now - self._penalty_since > PENALTY_S:
            half = self._penalty // 2
            self._penalty, self._penalty_since = (half if half > self._slab * self._limits.block_bytes else 0), now
        spare_room = headroom(reading.total)
        need = self._limits.fixed + self._allowed * self._limits.block_bytes
        # What an allocator keeps beyond the need is no room for blocks.
        have = reading.free + min(reading.own, need) - self._limits.fixed - self._penalty
        slack = have - self._allowed * self._limits.block_bytes
        if slack < spare_room // 4:
            self._roomy_since = None
            if reading.own > need:
                self._io.release_caches()
            self._set_allowed(min(self._allowed, self._blocks_with(have - spare_room // 2)))
            return
        most = self._blocks_with(self._limits.num_blocks * self._limits.block_bytes - self._penalty)
        wanted = min(most, self._blocks_with(have - spare_room // 2))
        if wanted <= self._allowed:
            self._roomy_since = None
            return
        self._roomy_since = now if self._roomy_since is None else self._roomy_since
        if now - self._roomy_since >= RECOVER_S:
            self._roomy_since = now
            self._set_allowed(wanted)

    def _blocks_with(self, num_bytes: int) -> int:
        """Blocks that this much memory holds, in whole slabs; every block where it holds them all."""
        blocks = num_bytes // self._limits.block_bytes
        if blocks >= self._limits.num_blocks:
            return self._limits.num_blocks
        return max(0, blocks // self._slab * self._slab)

    def _set_allowed(self, blocks: int) -> None:
        if blocks == self._allowed:
            return
        verb = "back" if blocks > self._allowed else "taken by others"
        self._note(f"memory {verb}: {self._allowed} -> {blocks} of {self._limits.num_blocks} blocks allowed")
        self._allowed = blocks

    def _answer_for(self, used_blocks: int, now: float) -> Allowance:
        """The ladder: everything, fewer blocks, nobody new, caches released, the newest preempted."""
        if self._allowed == self._limits.num_blocks:
            self._set_level("calm")
            return Allowance(self._allowed)
        if used_blocks <= self._allowed:
            self._set_level("tight")
            # A newcomer would be the first to be preempted if there is no room for its next blocks.
            resting = self._answer.admit or used_blocks + 2 * self._slab <= self._allowed
            return Allowance(self._allowed, admit=resting and used_blocks + self._slab <= self._allowed)
        if self._critical_since is None:
            self._set_level("critical")
            self._critical_since, self._released = now, self._judged
            self._io.release_caches()
            self._note(f"{used_blocks} blocks in use, {self._allowed} allowed: nobody new, caches released")
        looked_again = self._judged is not self._released and now - self._critical_since >= GRACE_S
        return Allowance(self._allowed, admit=False, preempt=looked_again or self._is_urgent())

    def _is_urgent(self) -> bool:
        """Whether the device is all but full: on a CPU the kernel kills somebody next."""
        reading = self._judged[0]
        return reading.total > 0 and reading.free < URGENT_SHARE * headroom(reading.total)

    def _set_level(self, level: Level) -> None:
        if level != "critical":
            self._critical_since = None
        if level != self._level:
            self._note(f"{self._level} -> {level}")
            self._level = level

    def _note(self, text: str) -> None:
        self._events.append((self._io.epoch_s + self._io.clock(), text))
