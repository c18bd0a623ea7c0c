"""Counts that must return to zero, and outcomes that must be distinguished."""

import asyncio
from collections.abc import Callable

import pytest
from starlette.types import Message

from server.errors import ConstraintFailed
from server.messages import Generate
from tests.api.conftest import CALL, MODEL, WEATHER, Serve
from tests.backends.scripted import Script

Reply = Callable[..., Script]


def value(text: str, name: str) -> float:
    return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


async def test_a_stream_is_counted_once_and_is_open_no_more(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hello there")) as served:
        for stream in (True, False):
            assert (await served.chat(stream=stream)).status_code == 200
        assert (await served.chat(temperature=9)).status_code == 400
        text = (await served.http.get("/metrics")).text
    assert value(text, "toolwire_requests_open") == 0
    assert value(text, 'toolwire_requests_total{outcome="200"') == 2
    assert value(text, 'toolwire_requests_total{outcome="400"') == 1
    assert value(text, "toolwire_time_to_first_token_seconds_count") == 2


async def test_the_time_to_the_first_token_is_not_that_of_the_admission(serve: Serve, reply: Reply) -> None:
    """An engine admits a request at once and may compute its prompt for seconds."""
    admitted, *written = reply("Hello there")
    async with serve([admitted, 0.2, *written]) as served:
        await served.chat(stream=True)
        text = (await served.http.get("/metrics")).text
    assert value(text, "toolwire_time_to_first_token_seconds_sum") >= 0.2


@pytest.mark.parametrize("sends", [0, 1, 2])
async def test_a_client_that_leaves_at_once_does_not_stay_open(serve: Serve, reply: Reply, sends: int) -> None:
    """A client that left before the first chunk was counted as open until the server ended."""
    body = b'{"model": "%s", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}' % MODEL.encode()
    async with serve(reply("Hello there")) as served:
        mail: list[Message] = [{"type": "http.request", "body": body}]
        gone = asyncio.Event()
        sent = 0

        async def receive() -> Message:
            if mail:
                return mail.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal sent
            if sent >= sends:
                gone.set()
                raise OSError("the client is gone")
            sent += 1

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
            "headers": [], "client": ("10.0.0.1", 1), "server": ("x", 80), "scheme": "http", "http_version": "1.1",
            "root_path": "", "asgi": {"version": "3.0"},
        }  # fmt: skip
        try:
            await served.app(scope, receive, send)
        except OSError:
            assert sent <= sends
        text = (await served.http.get("/metrics")).text
    assert value(text, "toolwire_requests_open") == 0


async def test_grammars_are_counted_held_and_refused(serve: Serve, reply: Reply) -> None:
    """A model whose tools are quietly refused looks like a model that has no use for tools."""
    refusal = ConstraintFailed("too complex")

    def write(request: Generate) -> Script:
        return [refusal] if refuse else reply(CALL)

    refuse = False
    async with serve(write) as served:
        await served.chat(tools=[WEATHER], tool_choice="required")
        await served.chat()
        refuse = True
        assert (await served.chat(tools=[WEATHER], tool_choice="required")).status_code == 400
        text = (await served.http.get("/metrics")).text
    assert value(text, 'toolwire_grammars_total{dialect="hermes",outcome="held"}') == 1
    assert value(text, 'toolwire_grammars_total{dialect="hermes",outcome="refused"}') == 1
