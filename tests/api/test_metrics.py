"""Counts that must return to zero, and outcomes that must be distinguished."""

import asyncio
import contextlib
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message

from server.errors import ConstraintFailed, EngineDied
from server.messages import Generate
from tests.api.conftest import CALL, MODEL, WEATHER, Serve
from tests.backends.scripted import Script

Reply = Callable[..., Script]
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
SCOPE = {
    "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
    "headers": [(b"host", b"x")], "client": ("10.0.0.1", 1), "server": ("x", 80), "scheme": "http",
    "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"},
}  # fmt: skip


def value(text: str, name: str) -> float:
    return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


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

        with contextlib.suppress(OSError):
            await served.app({**SCOPE}, receive, send)
        assert gone.is_set(), "it was sent more than it took"
        text = (await served.http.get("/metrics")).text
    assert value(text, "toolwire_requests_open") == 0


@pytest.mark.parametrize("lines", [{"format": "json"}], indirect=True)
async def test_every_refusal_is_counted_and_logged_with_its_status(
    lines: io.StringIO, serve: Serve, reply: Reply
) -> None:
    """Replies of the authentication, the limits and the error boundary passed by the counter and by the log."""
    script: list[Any] = [*reply("Hello there")]
    limits: dict[str, Any] = {"api_key": "k", "max_body_bytes": 2048, "rate_limit_rpm": 4, "cors_origins": "http://a.b"}
    async with serve(lambda _: script, **limits) as served:
        path, key, origin = "/v1/chat/completions", {"authorization": "Bearer k"}, {"origin": "http://a.b"}
        assert (await served.http.post(path, json={})).status_code == 401
        assert (await served.http.get("/metrics")).status_code == 401
        assert (await served.http.post(path, content=b" " * 4096, headers=key)).status_code == 413
        served.http.headers.update(key)
        assert (await served.chat(model="gpt-4o")).status_code == 404
        assert (await served.chat()).status_code == 200
        script[:] = [RuntimeError("a fault of the server")]
        failed = await served.http.post(path, json=BODY, headers=origin)
        assert failed.status_code == 500 and failed.headers["access-control-allow-origin"] == "http://a.b"
        script[:] = [*reply("Hello")[:1], EngineDied("gone")]
        assert (await served.chat(stream=True)).status_code == 200
        assert (await served.chat()).status_code == 429
        assert (await served.http.get("/v1/models")).status_code == 200
        assert (await served.http.get("/invented/by/a/client")).status_code == 404
        text = (await served.http.get("/metrics")).text
    expected = {"200": 1, "401": 1, "404": 1, "413": 1, "429": 1, "500": 1, "failed": 1}
    for outcome, times in expected.items():
        assert value(text, f'toolwire_requests_total{{outcome="{outcome}",path="{path}"}}') == times, outcome
    for series in ('outcome="401",path="/metrics"', 'outcome="200",path="/v1/models"', 'outcome="404",path="other"'):
        assert value(text, f"toolwire_requests_total{{{series}}}") == 1
    records = [json.loads(line) for line in lines.getvalue().splitlines()]
    logged = [(one["status"], one["outcome"]) for one in records if one["message"] == "request"]
    statuses = [401, 401, 413, 404, 200, 500, 200, 429, 200, 404]
    assert logged == [(status, "failed" if i == 6 else "complete") for i, status in enumerate(statuses)]


async def test_a_client_that_leaves_before_the_reply_is_counted(serve: Serve) -> None:
    async with serve([30.0]) as served:
        mail: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": json.dumps(BODY).encode()}]

        async def receive() -> Message:
            return mail.pop()

        async def send(_: Message) -> None:
            return None

        await served.app({**SCOPE}, receive, send)
        text = (await served.http.get("/metrics")).text
    assert value(text, 'toolwire_requests_total{outcome="499",path="/v1/chat/completions"}') == 1


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
