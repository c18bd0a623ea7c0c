"""Log lines: one a record, the request id in it, no key and no forged line ever."""

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.api.middleware.request_log import (
    LineFormatter,
    RequestLogMiddleware,
    configure_logging,
    prompt_logger,
    request_id_in_logs,
)
from tests.api.conftest import Serve
from tests.backends.scripted import Script


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What `configure_logging` with the fixture's parameters lets through; the root logger is restored afterwards."""
    root, names = logging.getLogger(), ("toolwire", "toolwire.prompts")
    before = root.handlers[:], root.level, [logging.getLogger(name).level for name in names]
    configure_logging(**request.param)
    out = io.StringIO()
    root.handlers[0].setStream(out)  # type: ignore[attr-defined]
    yield out
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    for name, level in zip(names, before[2], strict=True):
        logging.getLogger(name).setLevel(level)


JSON = {"format": "json", "secrets": ["sesame"]}


@pytest.mark.parametrize("lines", [JSON], indirect=True)
def test_a_json_line_has_level_name_text_fields_and_request_id(lines: io.StringIO) -> None:
    with request_id_in_logs("req_1"):
        logging.getLogger("toolwire.api").warning("two\nlines", extra={"status": 429})
    logging.getLogger("toolwire.api").info("no request")
    first, second = map(json.loads, lines.getvalue().splitlines())
    assert first["message"] == "two\nlines"
    assert (first["level"], first["logger"], first["status"]) == ("warning", "toolwire.api", 429)
    assert first["request_id"] == "req_1"
    assert "request_id" not in second


@pytest.mark.parametrize("lines", [{"format": "human"}], indirect=True)
def test_a_human_line_is_one_line(lines: io.StringIO) -> None:
    """A line break in what a client sent must not forge a line of the log."""
    with request_id_in_logs("req_2"):
        logging.getLogger("toolwire.api").info("path %s", "/x\n12:00:00 INFO forged")
    (line,) = lines.getvalue().splitlines()
    assert line.endswith("[req_2]")


@pytest.mark.parametrize("lines", [JSON, {"format": "human", "secrets": ["sesame"]}], indirect=True)
@pytest.mark.parametrize(
    "text",
    ["key is sesame", "Authorization: Bearer abc123", '{"x-api-key": "abc123"}', "/v1/models?api_key=abc123&x=1"],
)
def test_no_key_is_ever_written(lines: io.StringIO, text: str) -> None:
    logging.getLogger("toolwire").info(text, extra={"also": text})
    assert "sesame" not in lines.getvalue()
    assert "abc123" not in lines.getvalue()
    assert "********" in lines.getvalue()


@pytest.mark.parametrize("lines", [JSON], indirect=True)
def test_a_key_in_a_traceback_is_struck_out(lines: io.StringIO) -> None:
    try:
        raise ValueError("cannot open with sesame")
    except ValueError:
        logging.getLogger("toolwire").exception("failed")
    record = json.loads(lines.getvalue())
    assert "sesame" not in lines.getvalue()
    assert "Traceback" in record["message"]


@pytest.mark.parametrize(
    ("lines", "written"), [(JSON, False), ({**JSON, "log_prompts": True}, True)], indirect=["lines"]
)
def test_prompts_are_written_only_where_asked_for(lines: io.StringIO, written: bool) -> None:
    prompt_logger.info("prompt", extra={"text": "my diary"})
    assert ("my diary" in lines.getvalue()) is written


async def no_mail() -> Message:
    return {"type": "http.disconnect"}


@pytest.mark.parametrize("lines", [JSON], indirect=True)
@pytest.mark.parametrize("whole", [True, False])
async def test_a_request_is_one_line_however_it_ends(lines: io.StringIO, whole: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        if not whole:
            raise OSError("the client is gone")
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        assert message["type"].startswith("http.response")

    scope = {"type": "http", "method": "POST", "path": "/v1/x", "query_string": b"api_key=abc", "headers": []}
    room = RequestLogMiddleware(app)
    if whole:
        await room(scope, no_mail, send)
    else:
        with pytest.raises(OSError, match="gone"):
            await room(scope, no_mail, send)
    record = json.loads(lines.getvalue())
    assert (record["path"], record["status"], record["bytes"]) == ("/v1/x", 200, 5)
    assert record["outcome"] == ("complete" if whole else "cut off")
    assert "abc" not in lines.getvalue()


def test_fields_that_json_has_no_word_for_are_written_as_text() -> None:
    record = logging.makeLogRecord({"msg": "x", "name": "toolwire", "levelname": "INFO", "path": ValueError("odd")})
    assert json.loads(LineFormatter("json").format(record))["path"] == "odd"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("lines", "written"), [(JSON, False), ({**JSON, "log_prompts": True}, True)], indirect=["lines"]
)
async def test_prompt_and_reply_are_logged_with_the_request_id(
    lines: io.StringIO, written: bool, stream: bool, serve: Serve, reply: Callable[..., Script]
) -> None:
    async with serve(reply("a secret answer")) as served:
        answer = await served.chat(messages=[{"role": "user", "content": "a secret question"}], stream=stream)
    records = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert {record["request_id"] for record in records} == {answer.headers["x-request-id"]}
    told = [record for record in records if record["logger"] == "toolwire.prompts"]
    assert ("secret" in lines.getvalue()) is written
    assert [record["message"] for record in told] == (["prompt", "reply"] if written else [])
    if written:
        assert told[0]["messages"][0]["content"] == "a secret question"
        assert told[1]["choices"][0]["message"]["content"] == "a secret answer"
