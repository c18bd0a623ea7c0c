"""Log of requests: one line each, however it ends; prompts and replies where asked for."""

import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.api.errors import ApiError
from server.api.middleware.auth import ApiKeys, AuthMiddleware
from server.api.middleware.request_log import RequestLogMiddleware
from tests.api.conftest import MODEL, Serve
from tests.backends.scripted import Script

JSON = {"format": "json"}


async def receive() -> Message:
    return {"type": "http.disconnect"}


@pytest.mark.parametrize("lines", [JSON], indirect=True)
@pytest.mark.parametrize("whole", [True, False])
async def test_a_request_is_one_line_however_it_ends(lines: StringIO, whole: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        if not whole:
            raise OSError("the client is gone")
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        assert message["type"].startswith("http.response")

    scope = {"type": "http", "method": "POST", "path": "/v1/x", "query_string": b"api_key=secret", "headers": []}
    counted = []
    middleware = RequestLogMiddleware(app, lambda path, outcome: counted.append((path, outcome)))
    if whole:
        await middleware(scope, receive, send)
    else:
        with pytest.raises(OSError, match="gone"):
            await middleware(scope, receive, send)
    record = json.loads(lines.getvalue())
    assert (record["path"], record["status"], record["bytes"]) == ("/v1/x", 200, 5)
    assert record["outcome"] == ("complete" if whole else "cut off")
    assert counted == [("/v1/x", "200" if whole else "cancelled")]
    assert "secret" not in lines.getvalue()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("lines", "written"), [(JSON, False), ({**JSON, "log_prompts": True}, True)], indirect=["lines"]
)
async def test_prompt_and_reply_are_logged_with_the_request_id(
    lines: StringIO, written: bool, stream: bool, serve: Serve, reply: Callable[..., Script]
) -> None:
    async with serve(reply("a secret answer")) as served:
        answer = await served.chat(messages=[{"role": "user", "content": "a secret question"}], stream=stream)
    records = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert {record["request_id"] for record in records} == {answer.headers["x-request-id"]}
    texts = [record for record in records if record["logger"] == "toolwire.prompts"]
    assert ("secret" in lines.getvalue()) is written
    assert [record["message"] for record in texts] == (["prompt", "reply"] if written else [])
    if written:
        assert texts[0]["messages"][0]["content"] == "a secret question"
        assert texts[1]["choices"][0]["message"]["content"] == "a secret answer"


@pytest.mark.parametrize("lines", [{**JSON, "log_prompts": True}], indirect=True)
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "question"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "question"}], "max_tokens": 99}),
        ("/v1/responses", {"input": "question"}),
    ],
)
async def test_every_surface_logs_prompt_and_reply(
    lines: StringIO, path: str, fields: dict[str, Any], serve: Serve, reply: Callable[..., Script]
) -> None:
    """Replies of Completions were missing."""
    async with serve(reply("answer")) as served:
        await served.http.post(path, json={"model": MODEL, **fields})
    texts = [line for line in lines.getvalue().splitlines() if "toolwire.prompts" in line]
    assert [word in line for word, line in zip(("question", "answer"), texts, strict=True)] == [True, True]


@pytest.mark.parametrize("own", [True, False])
async def test_an_error_is_in_the_envelope_of_its_surface(own: bool) -> None:
    """Refusals by middleware came as OpenAI's object on every path."""

    def envelope(error: ApiError, request_id: str) -> Response:
        return Response(f"{error.code} {request_id}", error.status, error.headers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("refused before")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    within = AuthMiddleware(app, ApiKeys("secret", ""), 1024, open_metrics=False)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/x",
        "headers": [(b"x-request-id", b"r1"), (b"x-api-key", b"y")],
    }
    middleware = RequestLogMiddleware(within, lambda *_: None, lambda _: envelope if own else None)
    await middleware(scope, receive, send)
    assert sent[0]["status"] == 401
    replied = dict(sent[0]["headers"])
    assert replied[b"www-authenticate"] == b"Bearer" and replied[b"x-request-id"] == b"r1"
    assert (sent[1]["body"] == b"invalid_api_key r1") is own and (b'"error"' in sent[1]["body"]) is not own
