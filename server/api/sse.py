"""Server-sent events: frames, pings, stalled clients, and what becomes of a request whose client leaves.

Knows no chunk's meaning. Streams that run when the server receives SIGTERM go on until they end or the drain is over.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.errors import ApiError, encode, error_of, unexpected
from server.errors import ServeError

logger = logging.getLogger("toolwire.api")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
STALL_TIMEOUT_S = 60.0  # a client that takes no byte for so long holds memory for nothing
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed the connection."""


class ClientStalled(Exception):
    """The client keeps the connection open and takes nothing."""


class Framing(Protocol):
    """The frames of one surface's streams: of an event, of an error, of a silence, and the last one."""

    @property
    def ping(self) -> bytes:
        """Sent while the stream is silent."""

    @property
    def end(self) -> bytes:
        """Sent last, whatever happens."""

    def frame(self, event: msgspec.Struct) -> bytes:
        """One event."""

    def error(self, error: ApiError, request_id: str) -> bytes:
        """The error that ends the stream of this request."""


@dataclass(frozen=True, slots=True)
class DataFrames:
    """Unnamed events, OpenAI's error object, and `[DONE]`."""

    ping: bytes = PING
    end: bytes = DONE

    def frame(self, event: msgspec.Struct) -> bytes:
        """One unnamed event."""
        return b"data: " + encode(event) + b"\n\n"

    def error(self, error: ApiError, request_id: str) -> bytes:
        """The error object as an event."""
        return self.frame(error.envelope())


DATA_FRAMES = DataFrames()


class EventStream(StreamingResponse):
    """Events as server-sent events, those of one step in one write; pings while it is silent.

    A failure becomes an error event, and the last frame is last whatever happens: after the first byte the status
    cannot change. `release` frees what the chunks hold, even if the client left before the first of them was asked for.
    """

    def __init__(
        self,
        steps: AsyncGenerator[Sequence[msgspec.Struct], None],
        ping_interval_s: float,
        release: Callable[[], Awaitable[None]],
        framing: Framing = DATA_FRAMES,
    ) -> None:
        super().__init__((), headers=HEADERS)
        self._steps = steps
        self._ping_interval_s = ping_interval_s
        self._release = release
        self._framing = framing
        self._last_write_s = time.monotonic()
        self._pending_writes = 0
        self._done = False
        self._failed = False
        self._request_id = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the stream. A client that leaves or takes nothing ends it; neither is a fault of the server."""
        self._request_id = scope.get("state", {}).get("request_id", "")
        try:
            with suppress(ClientGone):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await _first_of(self._write_steps(send), self._ping(send), _raise_when_gone(receive))
        except ClientStalled:
            logger.info("a client took nothing for %.0f s: its stream is dropped", STALL_TIMEOUT_S)
        finally:
            scope.setdefault("state", {})["failed"] = self._failed  # for the log and the count of requests
            await self._steps.aclose()
            await self._release()

    async def _write_steps(self, send: Send) -> None:
        while (frames := await self._next_frames()) is not None:
            await self._write(send, frames)
        self._done = True
        await self._write(send, self._framing.end)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next_frames(self) -> bytes | None:
        """The frames of the next step, or of the error that ends the steps; None behind the last."""
        try:
            return b"".join(map(self._framing.frame, await anext(self._steps)))
        except StopAsyncIteration:
            return None
        except ServeError as error:
            self._failed = True
            return self._framing.error(error_of(error), self._request_id)
        except Exception:
            logger.exception("unhandled exception in a stream")
            self._failed = True
            return self._framing.error(unexpected(), self._request_id)

    async def _write(self, send: Send, data: bytes) -> None:
        """Raises ClientStalled if the client takes nothing for too long."""
        self._last_write_s = time.monotonic()
        self._pending_writes += 1
        try:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError as error:
            raise ClientStalled from error
        finally:
            self._pending_writes -= 1

    async def _ping(self, send: Send) -> None:
        while not self._done:
            silent_s = time.monotonic() - self._last_write_s
            if self._pending_writes:  # a ping that waits behind a stalled write could come after [DONE]
                await asyncio.sleep(self._ping_interval_s)
            elif silent_s < self._ping_interval_s:
                await asyncio.sleep(self._ping_interval_s - silent_s)
            else:
                await self._write(send, self._framing.ping)
        await asyncio.Event().wait()  # the last write decides when the stream is over


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled as soon as the client leaves; then raises ClientGone.

    The request's body must have been read: all that can still arrive is the news of the disconnect.
    """
    return await _first_of(work, _raise_when_gone(receive))


async def _first_of(work: Awaitable[T], *guards: Awaitable[None]) -> T:
    """The result of `work`, or the exception of the first of `guards` to raise; what still runs is cancelled."""
    working, watching = [asyncio.ensure_future(work)], [asyncio.ensure_future(guard) for guard in guards]
    try:
        await asyncio.wait({*working, *watching}, return_when=asyncio.FIRST_COMPLETED)
        for i in range(len(watching)):
            if watching[i].done() and not working[0].done():
                watching[i].result()
        return await working[0]
    finally:
        for task in (*working, *watching):
            task.cancel()
        await asyncio.gather(*working, *watching, return_exceptions=True)
        # An exception holds this frame, and its task the exception: if this frame held the task, only the garbage
        # collector would free what belonged to a client that left.
        del task
        working.clear()
        watching.clear()


async def _raise_when_gone(receive: Receive) -> None:
    message = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()
    raise ClientGone
