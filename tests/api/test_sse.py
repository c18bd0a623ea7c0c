"""Frames, pings, stalled clients, and clients that leave."""

import asyncio
import json
import selectors
from collections.abc import AsyncGenerator, Callable, MutableMapping
from typing import Any

import pytest

import server.api.sse as sse
from server.api.errors import ErrorBody, ErrorObject
from server.errors import EngineDied, ShuttingDown
from tests.api.conftest import Serve
from tests.api.test_surfaces import post
from tests.backends.scripted import Script

CHUNK = ErrorBody(ErrorObject("line\nbreak", "x", None, None))


async def steps(*pieces: list[Any] | Exception) -> AsyncGenerator[list[Any], None]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def written(*pieces: list[Any] | Exception) -> list[bytes]:
    """The writes of a stream of these steps."""
    out: list[bytes] = []

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            out.append(message["body"])

    async def release() -> None:
        return None

    await run(sse.EventStream(steps(*pieces), 10.0, release), send)
    return out


async def test_the_chunks_of_a_step_are_one_write() -> None:
    out = await written([CHUNK, CHUNK], [CHUNK])
    assert [piece.count(b"data: ") for piece in out] == [2, 1, 1]
    assert out[-1] == sse.DONE
    assert all(frame.startswith(b"data: ") for frame in b"".join(out).split(b"\n\n")[:-1])


@pytest.mark.parametrize(
    ("error", "code"), [(EngineDied("gone"), b'"engine_died"'), (ZeroDivisionError(), b'"internal_error"')]
)
async def test_an_error_is_an_event_before_the_end(error: Exception, code: bytes) -> None:
    out = await written([CHUNK], error)
    assert code in out[1] and out[1].startswith(b'data: {"error":')
    assert out[2:] == [sse.DONE]


CUT_OFF = "the server is shutting down; the reply was cut off"


@pytest.mark.parametrize(
    ("surface", "status"), [("chat", 503), ("completions", 503), ("responses", 503), ("messages", 529)]
)
async def test_a_reply_that_the_server_s_end_cuts_off_says_so_on_every_surface(
    serve: Serve, reply: Callable[..., Script], surface: str, status: int
) -> None:
    """It read like a crash of the engine, and clients did not try again elsewhere."""
    begun = [*reply("Hello there, you")[:3], ShuttingDown()]
    for script in (begun, [ShuttingDown()]):
        async with serve(script) as served:
            whole = await post(served, surface)
            assert whole.status_code == status and int(whole.headers["retry-after"]) >= 1, whole.text
            streamed = await post(served, surface, stream=True)
        assert streamed.status_code == (200 if script is begun else status)
        for text in (whole.text, streamed.text):
            assert CUT_OFF in text and "engine_died" not in text
            if surface in ("chat", "completions"):
                assert '"code":"shutting_down"' in text


async def test_an_error_in_the_middle_of_a_message_has_the_id_of_its_request(
    serve: Serve, reply: Callable[..., Script]
) -> None:
    """The envelope's `request_id` is what a user of Anthropic's client is asked for."""
    async with serve([*reply("Hello there, you")[:3], EngineDied("gone")]) as served:
        streamed = await post(served, "messages", stream=True)
    *_, last = streamed.text.strip().split("\n\n")
    body = json.loads(last.partition("data: ")[2])
    assert body["type"] == "error" and body["request_id"] == streamed.headers["request-id"] != ""


async def run(stream: sse.EventStream, send: Any) -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("nothing arrives")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await asyncio.wait_for(stream(scope, receive, send), 5)


async def test_a_client_that_takes_nothing_is_dropped_and_its_work_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that opens streams and never reads would hold memory for ever."""
    monkeypatch.setattr(sse, "STALL_TIMEOUT_S", 0.05)
    released = asyncio.Event()

    async def release() -> None:
        released.set()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    await run(sse.EventStream(steps([CHUNK], [CHUNK]), 10.0, release), send)
    assert released.is_set()


async def test_a_ping_never_waits_behind_another_write() -> None:
    """It would come out after `[DONE]` where a client takes nothing for a while, and clients stop reading there."""
    under_way, most = 0, 0

    async def send(message: dict[str, Any]) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.05)
        under_way -= 1

    async def release() -> None:
        return None

    await run(sse.EventStream(steps([CHUNK], [CHUNK]), 0.01, release), send)
    assert most == 1


async def test_work_is_released_even_if_the_first_byte_cannot_be_sent() -> None:
    """A generator that was never begun runs no `finally`."""
    released = asyncio.Event()

    async def release() -> None:
        released.set()

    async def send(_: dict[str, Any]) -> None:
        raise OSError("connection lost")

    with pytest.raises(OSError, match="lost"):
        await run(sse.EventStream(steps([CHUNK]), 10.0, release), send)
    assert released.is_set()


async def test_work_is_cancelled_when_the_client_leaves_and_only_then() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.disconnect"}

    cancelled = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def quick() -> int:
        return 7

    with pytest.raises(sse.ClientGone):
        await sse.unless_gone(receive, slow())
    assert cancelled.is_set()
    assert await sse.unless_gone(receive, quick()) == 7


class Counting(selectors.DefaultSelector):
    """Counts how often the event loop woke up."""

    num_wakes = 0

    def select(self, timeout: float | None = None) -> Any:
        self.num_wakes += 1
        return super().select(timeout)


def test_a_hundred_silent_streams_and_a_hundred_that_wait_wake_nobody() -> None:
    """Looking every few milliseconds whether a client is still there costs a core before the first token is written."""
    selector = Counting()

    async def silent() -> AsyncGenerator[list[Any], None]:
        yield [CHUNK]
        await asyncio.Event().wait()

    async def nothing() -> Any:
        await asyncio.Event().wait()

    async def idle() -> int:
        begun = asyncio.Semaphore(0)

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.body":
                begun.release()

        async def release() -> None:
            return None

        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        open_ones = [sse.EventStream(silent(), 3600.0, release)(scope, nothing, send) for _ in range(100)]
        tasks = [asyncio.ensure_future(one) for one in open_ones]
        tasks += [asyncio.ensure_future(sse.unless_gone(nothing, nothing())) for _ in range(100)]
        for _ in range(100):
            await begun.acquire()
        before = selector.num_wakes
        await asyncio.sleep(1)
        num_wakes = selector.num_wakes - before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return num_wakes

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        assert runner.run(idle()) <= 10  # one of the library's own, every half second, however many streams there are
