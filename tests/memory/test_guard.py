"""The ladder down and back up, on a clock and readings that the test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.memory.budget import GIB, MIB, headroom
from server.memory.guard import (
    GRACE_S,
    NUM_EVENTS,
    PENALTY_S,
    RECOVER_S,
    STALE_S,
    AllocatorStats,
    Guard,
    GuardIO,
    GuardLimits,
)
from server.messages import DeviceReading

TOTAL, BLOCKS, BLOCK = 24 * GIB, 640, 8 * MIB  # a pool of 5 GiB in slabs of 10 blocks
FIXED = 16 * GIB
SLACK_AT_REST = TOTAL - FIXED - BLOCKS * BLOCK  # what others may take before anything happens: 3 GiB


class World:
    """A device that others use too, and a clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.others = 0
        self.released = 0
        self.readings = (self.look(),)
        limits = GuardLimits(
            weights=15 * GIB, activations=GIB, fixed=FIXED, num_blocks=BLOCKS, block_bytes=BLOCK, room=22 * GIB
        )
        io = GuardIO(lambda: self.readings, lambda: self.now_s, 1e9, self.release, lambda: AllocatorStats(7, 9))
        self.guard = Guard(limits, io)

    def look(self, own: int = 2 * GIB) -> DeviceReading:
        """Most of what is reserved is not written yet, so others can take nearly everything."""
        free = max(0, TOTAL - own - self.others)
        return DeviceReading("card", "GPU-1", "nvml", TOTAL, TOTAL - free, free, own)

    def release(self) -> None:
        self.released += 1

    def pass_time(self, seconds: float) -> None:
        """The clock moves, and the watcher has looked again."""
        self.now_s += seconds
        self.readings = (self.look(),)

    @property
    def level(self) -> str:
        return self.guard.report().level


@pytest.fixture
def world() -> World:
    return World()


def test_calm_allows_every_block(world: World) -> None:
    allowance = world.guard.allowance(600)
    assert (allowance.blocks, allowance.admit, allowance.preempt) == (BLOCKS, True, False)
    world.others = SLACK_AT_REST - headroom(TOTAL)
    world.pass_time(0.1)
    assert world.guard.allowance(600).blocks == BLOCKS and world.level == "calm"


def test_others_take_memory_and_the_ladder_is_taken_in_order(world: World) -> None:
    used = 400
    assert world.guard.allowance(used).blocks == BLOCKS
    world.others = SLACK_AT_REST + GIB  # 128 blocks' worth
    world.pass_time(0.1)
    tight = world.guard.allowance(used)
    assert used < tight.blocks < BLOCKS - 128 and tight.admit and not tight.preempt
    assert world.level == "tight" and world.released == 0

    almost = world.guard.allowance(tight.blocks - 3)  # no room for a newcomer's next blocks
    assert not almost.admit and not almost.preempt and world.released == 0

    world.others += GIB
    world.pass_time(0.1)
    critical = world.guard.allowance(used)
    assert critical.blocks < used and not critical.admit and not critical.preempt
    assert world.level == "critical" and world.released == 1

    assert not world.guard.allowance(used).preempt, "the device has not been looked at again"
    world.pass_time(GRACE_S)
    assert world.guard.allowance(used).preempt and world.released == 1

    after = world.guard.allowance(critical.blocks - 50)
    assert (after.blocks, after.admit, after.preempt) == (critical.blocks, True, False) and world.level == "tight"


def test_a_device_that_is_all_but_full_leaves_no_time_to_look_again(world: World) -> None:
    """A process that takes everything in one go would have the kernel kill somebody within the grace period."""
    world.others = TOTAL - 2 * GIB - headroom(TOTAL) // 4
    world.pass_time(0.02)
    allowance = world.guard.allowance(400)
    assert (allowance.blocks, allowance.admit, allowance.preempt) == (0, False, True)
    assert world.level == "critical" and world.released >= 1


def test_it_recovers_by_itself_but_not_at_once(world: World) -> None:
    world.others = SLACK_AT_REST + 2 * GIB
    world.pass_time(0.1)
    low = world.guard.allowance(0).blocks
    assert low < BLOCKS
    world.others = 0
    world.pass_time(0.1)
    assert world.guard.allowance(0).blocks == low
    world.pass_time(RECOVER_S / 2)
    assert world.guard.allowance(0).blocks == low
    world.pass_time(RECOVER_S)
    back = world.guard.allowance(0)
    assert (back.blocks, back.admit, back.preempt) == (BLOCKS, True, False) and world.level == "calm"


def test_admission_resumes_only_with_room_to_spare(world: World) -> None:
    """Without a gap between stopping and resuming, every finished block would let one in and throw it out."""
    world.others = SLACK_AT_REST + GIB
    world.pass_time(0.1)
    blocks = world.guard.allowance(0).blocks
    assert not world.guard.allowance(blocks - 5).admit
    assert not world.guard.allowance(blocks - 15).admit
    assert world.guard.allowance(blocks - 25).admit
    assert world.guard.allowance(blocks - 15).admit


def test_a_flickering_reading_does_not_move_the_limit(world: World) -> None:
    world.others = SLACK_AT_REST + GIB
    world.pass_time(0.1)
    blocks = world.guard.allowance(0).blocks
    for step in range(100):
        world.others += (1 if step % 2 else -1) * (headroom(TOTAL) // 8)
        world.pass_time(0.3)
        assert world.guard.allowance(0).blocks == blocks


def test_what_this_process_takes_itself_changes_nothing(world: World) -> None:
    """free + own stays the same: caching allocators and lazily written pools must not look like other processes."""
    world.readings = (world.look(own=FIXED),)
    assert world.guard.allowance(0).blocks == BLOCKS
    world.readings = (world.look(own=FIXED + BLOCKS * BLOCK + GIB),)
    assert world.guard.allowance(0).blocks == BLOCKS


def test_everything_taken_leaves_no_block_and_no_negative_number(world: World) -> None:
    world.others = 2 * TOTAL
    world.pass_time(0.1)
    allowance = world.guard.allowance(7)
    assert (allowance.blocks, allowance.admit) == (0, False)


def test_running_out_releases_caches_and_allows_less_for_a_while(world: World) -> None:
    world.guard.out_of_memory()
    first = world.guard.allowance(0).blocks
    assert first < BLOCKS and world.released == 1 and world.guard.report().ooms == 1
    world.guard.out_of_memory()
    second = world.guard.allowance(0).blocks
    assert second < first
    world.pass_time(RECOVER_S)
    assert world.guard.allowance(0).blocks == second, "plenty of free memory is no reason to fail in the same way"
    for _ in range(40):
        world.pass_time(PENALTY_S + 1)
        world.guard.allowance(0)
    assert world.guard.allowance(0).blocks == BLOCKS and world.level == "calm"


def test_a_device_that_tells_nothing_keeps_what_held(world: World) -> None:
    world.others = SLACK_AT_REST + GIB
    world.pass_time(0.1)
    blocks = world.guard.allowance(0).blocks
    world.readings = (blank(),)
    world.now_s += 100
    assert world.guard.allowance(0).blocks == blocks


def blank() -> DeviceReading:
    return DeviceReading("card", "GPU-1", "nvml", 0, 0, 0, None, healthy=False)


def test_a_device_that_cannot_be_read_any_more_is_not_trusted(world: World) -> None:
    """The last reading was judged for ever: others could take all memory unseen."""
    assert world.guard.allowance(400).blocks == BLOCKS
    world.now_s += STALE_S + 0.1
    blind = world.guard.allowance(400)
    assert blind.blocks == BLOCKS * 15 // 16 and world.level == "tight"
    assert world.guard.report().reading_age_s > STALE_S
    assert "could not be read" in world.guard.report().events[-2][1]
    world.pass_time(PENALTY_S)
    for _ in range(400):
        world.pass_time(0.5)
        world.guard.allowance(400)
    assert world.guard.allowance(400).blocks == BLOCKS


def test_a_blind_guard_preempts_without_another_reading(world: World) -> None:
    world.others = SLACK_AT_REST + 2 * GIB
    world.pass_time(0.1)
    assert not world.guard.allowance(600).preempt
    world.now_s += STALE_S + 0.1
    assert world.guard.allowance(600).preempt


def test_the_report_tells_sizes_and_what_happened(world: World) -> None:
    world.guard.allowance(0)
    world.others = SLACK_AT_REST + GIB
    world.pass_time(0.5)
    world.guard.allowance(0)
    report = world.guard.report()
    assert (report.kv_bytes, report.block_bytes, report.room_bytes) == (BLOCKS * BLOCK, BLOCK, 22 * GIB)
    assert (report.allocated_bytes, report.reserved_bytes) == (7, 9)
    assert report.devices == world.readings and report.allowed_blocks < BLOCKS
    assert [text for _, text in report.events][-1] == "calm -> tight"
    assert all(at == 1e9 + 100.5 for at, _ in report.events)
    for step in range(200):
        world.others = (step % 4 // 2) * (SLACK_AT_REST + GIB)
        world.pass_time(RECOVER_S)
        world.guard.allowance(0)
    assert len(world.guard.report().events) == NUM_EVENTS


@given(
    st.lists(
        st.tuples(st.integers(0, TOTAL), st.sampled_from([0.0, 0.1, 1.0, 40.0]), st.integers(0, BLOCKS), st.booleans()),
        max_size=30,
    )
)
def test_what_is_allowed_always_fits_and_calm_means_everything(
    moves: list[tuple[int, float, int, bool]],
) -> None:
    world = World()
    for others, seconds, used, runs_out in moves:
        world.others = others
        world.pass_time(seconds)
        if runs_out:
            world.guard.out_of_memory()
        allowance = world.guard.allowance(used)
        have = world.readings[0].free + (world.readings[0].own or 0)
        assert 0 <= allowance.blocks <= BLOCKS
        assert allowance.blocks == 0 or FIXED + allowance.blocks * BLOCK <= have
        assert not (allowance.admit and used > allowance.blocks)
        assert not allowance.preempt or used > allowance.blocks
        assert (world.level == "calm") == (allowance.blocks == BLOCKS)


def test_weights_that_come_later_take_from_the_blocks(world: World) -> None:
    """An adapter that nothing counts would be written into memory that the KV cache is going to write as well."""
    assert world.guard.reserve(GIB) == ""  # all that this engine's room leaves beside the blocks
    assert world.guard.allowance(0).blocks == BLOCKS
    assert world.guard.report().weight_bytes == 16 * GIB
    assert world.guard.reserve(2 * GIB) == ""
    world.pass_time(0.5)
    allowed = world.guard.allowance(0).blocks
    assert BLOCKS // 2 <= allowed < BLOCKS
    report = world.guard.report()
    assert report.fixed_bytes + allowed * BLOCK <= report.room_bytes, "what --memory-fraction leaves holds all of it"
    refusal = world.guard.reserve(GIB)  # half of the pool, and what is in use, would be more than this engine's room
    assert "no memory" in refusal and "1.00 GiB" in refusal
    assert world.guard.report().weight_bytes == 18 * GIB, "what is refused is not counted"
    assert world.guard.reserve(-3 * GIB) == ""
    world.pass_time(0.1)
    world.guard.allowance(0)
    world.pass_time(RECOVER_S)
    assert world.guard.allowance(0).blocks == BLOCKS
    assert world.guard.report().weight_bytes == 15 * GIB


def test_weights_do_not_come_where_others_hold_the_memory(world: World) -> None:
    world.others = SLACK_AT_REST + 3 * GIB
    world.pass_time(0.5)
    world.guard.allowance(0)
    assert "no memory" in world.guard.reserve(GIB)
