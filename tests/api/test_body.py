"""Malformed bodies: a 400 each, never a 500."""

import json

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


@pytest.mark.parametrize(
    "raw",
    [b'{"a": [' + b"{}," * 60_000 + b"{}]}", b'{"a": [' + b'{"b":"\\\\"},' * 60_000 + b"{}]}", b"[" + b"1," * 200_000],
    ids=["objects", "escapes", "numbers"],
)
def test_too_many_values_are_refused_before_they_are_parsed(raw: bytes) -> None:
    """14 MiB of small parts stopped every stream for two seconds."""
    with pytest.raises(RequestRefused, match="more than 100000 values"):
        read_object(raw)


@pytest.mark.parametrize("text", [",[{" * 300_000, '\\",' * 300_000, "\\" * 200_001 + ",[" * 100_000])
def test_commas_and_brackets_in_texts_are_no_values(text: str) -> None:
    assert read_object(json.dumps({"a": text}).encode()) == {"a": text}
