"""The log of a stream's events: read from anywhere, while it grows, packed, and within its bytes."""

import asyncio
import random

import pytest

from server.api.responses.running import event_log
from server.api.responses.running.event_log import EventLog
from server.runtime.byte_budget import ByteBudget


def frames_of(number: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    return [f'event: e\ndata: {{"n":{i},"t":"{chance.random()}"}}\n\n'.encode() for i in range(number)]


async def text_of(log: EventLog, after: int) -> bytes:
    return b"".join([event.frames async for step in log.read(after) for event in step])


async def test_every_reader_gets_the_rest_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few frames, so that readers begin within, at and behind them."""
    monkeypatch.setattr(event_log, "BLOCK_BYTES", 200)
    frames, log = frames_of(40), EventLog()
    readers = []
    for number, frame in enumerate(frames):
        readers.append(asyncio.create_task(text_of(log, number - 1)))
        await asyncio.sleep(0)
        assert log.append(frame, is_last=number == len(frames) - 1)
    packed = EventLog.unpack(_logged(frames[:-1]).pack(frames[-1]))
    for after, reader in enumerate(readers, start=-1):
        expected = b"".join(frames[after + 1 :])
        assert await reader == await text_of(log, after) == await text_of(packed, after) == expected
    assert await text_of(log, len(frames)) == await text_of(packed, len(frames) + 7) == b""


def _logged(frames: list[bytes]) -> EventLog:
    log = EventLog()
    for frame in frames:
        log.append(frame)
    return log


async def test_a_number_beyond_those_there_are_ends_at_once_while_it_grows() -> None:
    log = _logged(frames_of(3))
    async with asyncio.timeout(1):
        assert await text_of(log, 3) == b""


async def test_a_closed_log_ends_its_readers() -> None:
    log = _logged(frames_of(3))
    reader = asyncio.create_task(text_of(log, 1))
    await asyncio.sleep(0)
    log.close()
    assert await reader == frames_of(3)[2]


async def test_its_bytes_are_those_of_the_budget() -> None:
    """What is compressed counts as it is held; everything is given back."""
    budget = ByteBudget(100_000)
    log, full = EventLog(budget), EventLog(budget)
    frames = frames_of(5000)
    assert all(map(log.append, frames[:1500])) and budget.num_bytes < sum(map(len, frames[:1500]))
    appended = [full.append(frame) for frame in frames]
    assert not all(appended) and budget.num_bytes <= budget.limit
    assert full.num_events == sum(appended)
    assert full.append(frames[-1], is_last=True) and await text_of(full, full.num_events - 2) == frames[-1]
    log.release()
    full.release()
    assert budget.num_bytes == 0
