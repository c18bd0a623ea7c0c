"""Log lines: one a record, with the request id, without keys, and never forged."""

import json
import logging
from io import StringIO

import pytest

from server.api.logs import LineFormatter, request_id_in_logs

JSON = {"format": "json", "secrets": lambda: ["sesame"]}


@pytest.mark.parametrize("lines", [JSON], indirect=True)
def test_a_json_line_has_level_name_text_fields_and_request_id(lines: StringIO) -> None:
    with request_id_in_logs("req_1"):
        logging.getLogger("toolwire.api").warning("two\nlines", extra={"status": 429})
    logging.getLogger("toolwire.api").info("no request")
    first, second = map(json.loads, lines.getvalue().splitlines())
    assert first["message"] == "two\nlines"
    assert (first["level"], first["logger"], first["status"]) == ("warning", "toolwire.api", 429)
    assert first["request_id"] == "req_1"
    assert "request_id" not in second


@pytest.mark.parametrize("lines", [{"format": "human"}], indirect=True)
def test_a_human_line_is_one_line(lines: StringIO) -> None:
    """A line break in what a client sent must not forge a line of the log."""
    with request_id_in_logs("req_2"):
        logging.getLogger("toolwire.api").info("path %s", "/x\n12:00:00 INFO forged")
    (line,) = lines.getvalue().splitlines()
    assert line.endswith("[req_2]")


@pytest.mark.parametrize("lines", [JSON, {"format": "human", "secrets": lambda: ["sesame"]}], indirect=True)
@pytest.mark.parametrize(
    "text",
    ["key is sesame", "Authorization: Bearer abc123", '{"x-api-key": "abc123"}', "/v1/models?api_key=abc123&x=1"],
)
def test_no_key_is_ever_written(lines: StringIO, text: str) -> None:
    logging.getLogger("toolwire").info(text, extra={"also": text})
    assert "sesame" not in lines.getvalue()
    assert "abc123" not in lines.getvalue()
    assert "********" in lines.getvalue()


@pytest.mark.parametrize("lines", [JSON], indirect=True)
def test_a_key_in_a_traceback_is_redacted(lines: StringIO) -> None:
    try:
        raise ValueError("cannot open with sesame")
    except ValueError:
        logging.getLogger("toolwire").exception("failed")
    record = json.loads(lines.getvalue())
    assert "sesame" not in lines.getvalue()
    assert "Traceback" in record["message"]


def test_fields_that_json_cannot_hold_are_written_as_text() -> None:
    record = logging.makeLogRecord({"msg": "x", "name": "toolwire", "levelname": "INFO", "path": ValueError("odd")})
    assert json.loads(LineFormatter("json").format(record))["path"] == "odd"


@pytest.mark.parametrize("lines", [{"format": "human"}], indirect=True)
def test_a_human_line_has_no_forged_fields(lines: StringIO) -> None:
    """A path wrote `status=200` and a request id of its own into the line."""
    with request_id_in_logs("req_3"):
        fields = {"path": '/x status=200 [req_1] "y\\', "status": 404, "method": "GET"}
        logging.getLogger("toolwire.access").info("request", extra=fields)
    (line,) = lines.getvalue().splitlines()
    assert line.endswith(r'request path="/x status=200 [req_1] \"y\\" status=404 method=GET [req_3]')


@pytest.mark.parametrize("lines", [JSON, {"format": "human"}], indirect=True)
def test_a_line_is_printable_and_its_fields_are_short(lines: StringIO) -> None:
    """Escape sequences reached the operator's terminal, U+2028 and U+0085 split lines of other programs."""
    hostile = "\x1b]52;c;eA==\x07\x9b2J\u2028\u2029\x85\u202e\x00\r\n\x7f\U000e0001"
    logging.getLogger("toolwire.access").info("text %s", hostile, extra={"path": hostile + "x" * 30_000})
    line = lines.getvalue().removesuffix("\n")
    assert line.isprintable() and len(line) < 1000
    if line.startswith("{"):
        record = json.loads(line)
        assert record["message"] == f"text {hostile}" and record["path"].startswith(hostile + "xxx")
