"""Memory guard: from device readings to an Allowance. Reduces blocks, stops admission, releases caches, preempts.

    need  = fixed + blocks x block_bytes        fixed: runtime, weights, recurrent slots, activation peak, scratch
    have  = free + min(own, need)               changed by other processes, and by what this one holds beyond its need

    calm      have - need stays above low water with every block
    tight     fewer blocks are allowed: the prefix cache shrinks, then no sequence is admitted
    critical  sequences hold more than is allowed: caches are released; if the next reading shows no
              change, the newest sequences are preempted; at once if almost nothing is free

Readings older than `STALE_S` are no basis: a share of the blocks is given back for what others may take unseen, no
limit rises, and preemption does not wait for another reading.

Limits fall at once and rise only after memory has been free for `RECOVER_S`, so that they do not oscillate.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from server.memory.budget import Plan, headroom
from server.memory.report import size
from server.memory.watcher import Latest
from server.messages import DeviceReading, MemoryReport

Level = Literal["calm", "tight", "critical"]
NUM_EVENTS = 64
RECOVER_S = 2.0  # memory must have been free this long before it is used again
GRACE_S = 0.2  # between releasing caches and preempting: a new reading has been taken
URGENT_SHARE = 0.5  # of the headroom: with less free than this, preemption does not wait for the next reading
PENALTY_S = 30.0  # after this long without running out of memory, the penalty is halved
STALE_S = 5.0  # the watcher reads ten times a second
BLIND_SHARE = 16  # of the pool, which is kept free while the device cannot be read
SLABS = 64  # limits change in steps of this fraction of the pool


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the scheduler may do in the next step; see `engine.ports.Allowance`."""

    blocks: int
    admit: bool = True
    preempt: bool = False


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """Sizes of the engine in bytes."""

    weights: int
    activations: int
    fixed: int  # everything but the KV pool at its largest: runtime, weights, recurrent slots, activations, scratch
    num_blocks: int
    block_bytes: int
    room: int


@dataclass(frozen=True, slots=True)
class AllocatorStats:
    """Bytes of torch's allocator: allocated, and allocated or cached."""

    allocated: int = 0
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class GuardIO:
    """Inputs and outputs of the guard."""

    latest: Latest  # newest readings
    clock: Callable[[], float]  # seconds, never backwards
    epoch_s: float  # wall time when the clock showed 0
    release_caches: Callable[[], None]  # release cached memory of torch and malloc
    figures: Callable[[], AllocatorStats] = AllocatorStats


class Guard:
    """The policy and its recent history. Called between steps by the engine's thread; not thread-safe."""

    def __init__(self, limits: GuardLimits, io: GuardIO) -> None:
        self._limits = limits
        self._io = io
        self._slab = max(1, limits.num_blocks // SLABS)
        self._allowed = limits.num_blocks
        self._level: Level = "calm"
        self._judged: tuple[DeviceReading, ...] = ()
        self._judged_s = io.clock()
        self._is_blind = False
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
        """A guard for the engine of this plan."""
        slots = found.num_slots * found.state_bytes
        runtime = found.overhead + found.device.growth
        return cls(
            GuardLimits(
                weights=found.weights,
                activations=found.activations,
                fixed=runtime + found.weights + found.activations + found.scratch + slots,
                num_blocks=found.num_blocks,
                block_bytes=found.block_bytes,
                room=found.device.usable(found.demand.memory_fraction),
            ),
            io,
        )

    def allowance(self, used_blocks: int = 0) -> Allowance:
        """What the next step may use, given the blocks that sequences hold. Does not query the device."""
        readings, now = self._io.latest(), self._io.clock()
        if readings is not self._judged:
            self._judged, self._judged_s, self._is_blind = readings, now, False
            self._judge(readings[0], now)
        elif not self._is_blind and now - self._judged_s > STALE_S:
            self._lose_sight(now)
        elif used_blocks == self._used and self._level != "critical":
            return self._answer
        self._used = used_blocks
        answer = self._answer_for(used_blocks, now)
        if answer != self._answer:  # the same object while nothing changes
            self._answer = answer
        return self._answer

    def out_of_memory(self) -> None:
        """Record that a step ran out of memory: keep more free, a penalty that decays with time."""
        self._ooms += 1
        pool = self._limits.num_blocks * self._limits.block_bytes
        self._penalty = min(pool // 2, max(self._limits.activations // 4, pool // 16, 2 * self._penalty))
        self._penalty_since = self._io.clock()
        self._io.release_caches()
        self._judge(self._io.latest()[0], self._penalty_since)
        self._used = -1  # recompute the next allowance
        self._set_allowed(min(self._allowed, self._blocks_with(pool - self._penalty)))
        self._note(f"a step ran out of memory ({self._ooms} so far); {self._allowed} blocks allowed")

    def reserve(self, num_bytes: int) -> str:
        """Take memory for weights from what blocks may have; below 0 it is given back.

        Returns why it cannot be had, or nothing. Half of the KV cache stays as it is.
        """
        limits, reading = self._limits, self._io.latest()[0]
        if num_bytes > 0:
            kept = limits.num_blocks * limits.block_bytes // 2
            left = limits.room - limits.fixed - kept
            if reading.total and reading.own is not None:
                need = limits.fixed + self._allowed * limits.block_bytes
                have = reading.free + min(reading.own, need) - limits.fixed - self._penalty
                left = min(left, have - headroom(reading.total) // 2 - kept)
            if num_bytes > left:
                return f"there is no memory for it: it takes {size(num_bytes)}, and {size(max(0, left))} are left"
        self._limits = replace(limits, weights=limits.weights + num_bytes, fixed=limits.fixed + num_bytes)
        self._judge(reading, self._io.clock())
        self._used = -1  # compute the next allowance again
        return ""

    def _lose_sight(self, now: float) -> None:
        """Keep a share of the pool free, as after running out of memory, until there is a new reading."""
        self._is_blind = True
        pool = self._limits.num_blocks * self._limits.block_bytes
        self._penalty = max(self._penalty, pool // BLIND_SHARE)
        self._penalty_since, self._roomy_since = now, None
        self._set_allowed(min(self._allowed, self._blocks_with(pool - self._penalty)))
        self._note(f"memory could not be read for {STALE_S:.0f} s; {self._allowed} blocks allowed")

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
            reading_age_s=self._io.clock() - self._judged_s,
        )

    def _judge(self, reading: DeviceReading, now: float) -> None:
        """Adjust the number of allowed blocks to the device: down at once, up after `RECOVER_S`."""
        self._set_allowed(min(self._allowed, self._most_blocks()))
        if not reading.total or reading.own is None:
            return  # no figures: keep the current limit
        if self._penalty and now - self._penalty_since > PENALTY_S:
            half = self._penalty // 2
            self._penalty, self._penalty_since = (half if half > self._slab * self._limits.block_bytes else 0), now
        spare_room = headroom(reading.total)
        need = self._limits.fixed + self._allowed * self._limits.block_bytes
        # Memory that the allocator caches beyond the need is not available for blocks.
        have = reading.free + min(reading.own, need) - self._limits.fixed - self._penalty
        slack = have - self._allowed * self._limits.block_bytes
        if slack < spare_room // 4:
            self._roomy_since = None
            if reading.own > need:
                self._io.release_caches()
            self._set_allowed(min(self._allowed, self._blocks_with(have - spare_room // 2)))
            return
        blocks = min(self._most_blocks(), self._blocks_with(have - spare_room // 2))
        if blocks <= self._allowed:
            self._roomy_since = None
            return
        self._roomy_since = now if self._roomy_since is None else self._roomy_since
        if now - self._roomy_since >= RECOVER_S:
            self._roomy_since = now
            self._set_allowed(blocks)

    def _most_blocks(self) -> int:
        """Blocks that the penalty leaves, and the engine's room: weights that came since the start take from it."""
        limits = self._limits
        return self._blocks_with(
            min(limits.num_blocks * limits.block_bytes - self._penalty, limits.room - limits.fixed)
        )

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
        """Escalation: all blocks, fewer blocks, no admission, caches released, newest sequences preempted."""
        if self._allowed == self._limits.num_blocks:
            self._set_level("calm")
            return Allowance(self._allowed)
        if used_blocks <= self._allowed:
            self._set_level("tight")
            # A new sequence would be the first to be preempted if its next blocks do not fit.
            resting = self._answer.admit or used_blocks + 2 * self._slab <= self._allowed
            return Allowance(self._allowed, admit=resting and used_blocks + self._slab <= self._allowed)
        if self._critical_since is None:
            self._set_level("critical")
            self._critical_since, self._released = now, self._judged
            self._io.release_caches()
            self._note(f"{used_blocks} blocks in use, {self._allowed} allowed: admission stopped, caches released")
        looked_again = (self._is_blind or self._judged is not self._released) and now - self._critical_since >= GRACE_S
        return Allowance(self._allowed, admit=False, preempt=looked_again or self._is_urgent())

    def _is_urgent(self) -> bool:
        """Whether the device is almost full: on a CPU the OOM killer is next."""
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
