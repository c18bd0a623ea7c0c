"""Malformed bodies: a 400 each, never a 500, in time proportional to their size."""

import json
import time

import pytest

from server.api.body import read_object
from server.api.errors import RequestRefused


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b'"x"',
        b"7",
        b"null",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": 99999999999999999999}',
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"a": "\x01"}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": 1} x',
        b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_is_refused_in_the_envelope(raw: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        read_object(raw)
    error = refused.value.error
    assert (error.status, error.type, error.param, error.code) == (400, "invalid_request_error", None, None)
    assert error.message.startswith("We could not parse the JSON body of your request.")


def test_valid_json_is_read_unchanged() -> None:
    value = {"text": "Grüße 🏔 \u0000", "deep": [[[[1.5, -2, True, None]]]], "": {}}
    assert read_object(json.dumps(value).encode()) == value


def test_a_large_body_is_read_in_time_proportional_to_its_size() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 100}] * 50_000}).encode()
    began_s = time.process_time()
    read_object(body)
    assert time.process_time() - began_s < 5
