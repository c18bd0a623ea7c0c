"""Frames of a stream, and what becomes of a request whose client leaves. Knows no chunk's meaning.

Importing sse-starlette makes uvicorn's first SIGTERM end every live stream within half a second. A drain is wanted
here instead (running replies may finish, for a time that an option sets), so `keep_streams_through_shutdown` turns
that off by the library's own switch.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus, SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from server.api.errors import encode, error_of, unexpected
from server.errors import ServeError

logger = logging.getLogger("toolwire.api")

DONE = b"data: [DONE]\n\n"
STALL_TIMEOUT_S = 60.0  # a client that takes no byte for so long holds memory for nothing
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed the connection."""


def keep_streams_through_shutdown() -> None:
    """Undo what importing sse-starlette did to uvicorn: on SIGTERM streams go on until they end."""
    AppStatus.enable_automatic_graceful_drain = False  # what its untyped `disable_…` sets


class EventStream(EventSourceResponse):
    """Steps of chunks as server-sent events, the chunks of one step in one write; comments while it is silent.

    `release` frees what the steps hold even if the client left before the first of them was asked for.
    """

    def __init__(
        self,
        steps: AsyncGenerator[Sequence[msgspec.Struct], None],
        ping_interval_s: float,
        release: Callable[[], Awaitable[None]],
    ) -> None:
        self._release = release
        super().__init__(
            frames(steps),
            headers=HEADERS,
            sep="\n",
            ping=ping_interval_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            send_timeout=STALL_TIMEOUT_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A client that has stalled is dropped, and that is no fault of the server."""
        try:
            await super().__call__(scope, receive, _ending_with_done(send))
        except SendTimeoutError:
            logger.info("a client took nothing for %.0f s: its stream is dropped", STALL_TIMEOUT_S)
        finally:
            await self._release()


def _ending_with_done(send: Send) -> Send:
    """`send`, without a comment that was due when `[DONE]` was sent: it would come after it."""
    is_done = False

    async def send_unless_late(message: Message) -> None:
        nonlocal is_done
        body = message.get("body", b"")
        if is_done and body.startswith(b":"):
            return
        is_done = is_done or body == DONE
        await send(message)

    return send_unless_late


def frame(chunk: bytes) -> bytes:
    """One unnamed event."""
    return b"data: " + chunk + b"\n\n"


async def frames(steps: AsyncGenerator[Sequence[msgspec.Struct], None]) -> AsyncGenerator[bytes, None]:
    """One piece of bytes a step; a fault becomes an error event, and `[DONE]` is last whatever happens.

    After the first byte the status cannot change any more: the error event is all that is left to tell it.
    """
    try:
        async for chunks in steps:
            yield b"".join(frame(encode(chunk)) for chunk in chunks)
    except ServeError as error:
        yield frame(error_of(error).body())
    except Exception:
        logger.exception("a stream failed in a way nobody foresaw")
        yield frame(unexpected().body())
    finally:
        await steps.aclose()
    yield DONE


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled as soon as the client leaves; then raises ClientGone.

    The request's body must have been read: all that can still arrive is the news of the disconnect.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    message = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()
