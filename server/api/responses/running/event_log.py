"""Events of one response for readers that come and go: frames by their sequence number, compressed and counted.

Readers get what is there, then wait for the rest. The packed form is what the database keeps.
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator

import msgspec

from server.api.errors import ApiError
from server.api.responses.plan import ResponseFrames
from server.runtime.byte_budget import ByteBudget

BLOCK_BYTES = 1 << 16  # of frames that are compressed together
LEVEL = 1  # of zlib; frames are a tenth of their size then
_END = b"\n\n"  # of a frame; JSON holds no line break
_encode = msgspec.msgpack.Encoder().encode


class LoggedEvents(msgspec.Struct):
    """Frames of events as they were sent first."""

    frames: bytes


class LoggedFrames(ResponseFrames):
    """Frames that are written already. The stream ends without one of its own."""

    def frame(self, event: msgspec.Struct) -> bytes:
        """The frames themselves."""
        assert isinstance(event, LoggedEvents), "a log has no other events"
        return event.frames

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Nothing: a client whose stream ends without its last event resumes it."""
        return b""


class _Block(msgspec.Struct, array_like=True):
    """Frames from number `first` on, compressed."""

    first: int
    packed: bytes

    def frames(self) -> list[bytes]:
        return [frame + _END for frame in zlib.decompress(self.packed).split(_END)[:-1]]


class _PackedLog(msgspec.Struct, array_like=True):
    num_events: int
    blocks: list[_Block]


_decode = msgspec.msgpack.Decoder(_PackedLog).decode


class EventLog:
    """The frames of one stream, from number 0 on. `close` says that there will be no more."""

    def __init__(self, budget: ByteBudget | None = None) -> None:
        self._budget = budget
        self._held_bytes = 0
        self._blocks: list[_Block] = []
        self._recent: list[bytes] = []  # behind the blocks
        self._recent_bytes = 0
        self._closed = False
        self._changed = asyncio.Event()
        self.num_events = 0

    @classmethod
    def unpack(cls, packed: bytes) -> "EventLog":
        """A closed log from its packed form."""
        log, stored = cls(), _decode(packed)
        log._blocks, log.num_events, log._closed = stored.blocks, stored.num_events, True
        return log

    def append(self, frame: bytes, is_last: bool = False) -> bool:
        """Add the next frame. False where the budget is spent: nothing is added then, but a last frame always is."""
        if not self._take(len(frame)) and not is_last:
            return False
        self._recent.append(frame)
        self._recent_bytes += len(frame)
        self.num_events += 1
        if self._recent_bytes >= BLOCK_BYTES:
            self._compress()
        self._closed = is_last
        self._wake()
        return True

    def close(self) -> None:
        """End it, and the waiting of its readers."""
        self._closed = True
        self._wake()

    def release(self) -> None:
        """Give its bytes back to the budget; its readers may read on."""
        if self._budget is not None:
            self._budget.free(self._held_bytes)
        self._held_bytes = 0

    def pack(self, last: bytes) -> bytes:
        """The packed form with one frame more."""
        rest = _block(self.num_events - len(self._recent), [*self._recent, last])
        return _encode(_PackedLog(self.num_events + 1, [*self._blocks, rest]))

    async def read(self, after: int) -> AsyncGenerator[list[LoggedEvents], None]:
        """The events with numbers above `after`; none where that is beyond those that there are."""
        number = after + 1
        while number <= self.num_events:
            if number < self.num_events:
                frames = self._frames_from(number)
                number += len(frames)
                yield [LoggedEvents(b"".join(frames))]
            elif self._closed:
                return
            else:
                await self._changed.wait()

    def _frames_from(self, number: int) -> list[bytes]:
        """The frames of one block from `number` on, or those behind the blocks."""
        first = self.num_events - len(self._recent)
        if number >= first:
            return self._recent[number - first :]
        block = next(block for block in reversed(self._blocks) if block.first <= number)
        return block.frames()[number - block.first :]

    def _compress(self) -> None:
        block = _block(self.num_events - len(self._recent), self._recent)
        if self._budget is not None:
            saved = min(self._recent_bytes - len(block.packed), self._held_bytes)
            self._budget.free(saved)
            self._held_bytes -= saved
        self._blocks.append(block)
        self._recent, self._recent_bytes = [], 0

    def _take(self, num_bytes: int) -> bool:
        if self._budget is None:
            return True
        if not self._budget.take(num_bytes):
            return False
        self._held_bytes += num_bytes
        return True

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _block(first: int, frames: list[bytes]) -> _Block:
    return _Block(first, zlib.compress(b"".join(frames), LEVEL))
