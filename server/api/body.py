"""Parse and bound a JSON body."""

import math
import re
from collections.abc import Iterator
from typing import Any

import jiter

from server.api.errors import ApiError, RequestRefused, not_json
from server.notes import Note

MAX_DEPTH = 100  # of nested arrays and objects in a whole body; jiter itself stops at 200
MAX_VALUES = 100_000  # of a whole body: parsing them takes some 20 ms in which no other thread runs
MAX_INTEGER = (1 << 63) - 1
SLICE_BYTES = 1 << 16
HALF_READ = "\N{REPLACEMENT CHARACTER}"
_PAIR = rb"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rb"\\(?:" + _PAIR + rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_WRITTEN_HALF = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")


def read_body_object(raw: bytes, strict: bool) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """`read_object` to the letter, `read_lenient` otherwise."""
    return (read_object(raw), ()) if strict else read_lenient(raw)


def read_lenient(raw: bytes) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """The body as an object, each half of a surrogate pair read as U+FFFD, with notes that name the places.

    Programs that cut texts by UTF-16 units send such halves, as escapes or encoded like other characters. Raises
    RequestRefused as `read_object` does for anything else.
    """
    try:
        return read_object(raw), ()
    except RequestRefused:
        whole = _without_halves(raw)
        if whole == raw:
            raise
    body = read_object(whole)
    text = "Half of a surrogate pair was read as U+FFFD."
    return body, tuple(Note("half_surrogate", place, text) for place in _places_of_halves(body, ""))


def read_object(raw: bytes, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """The body as an object.

    Raises RequestRefused (400) for what is no JSON by RFC 8259 (NaN, invalid UTF-8, lone surrogates), for duplicate
    keys, for numbers no double holds, for nesting beyond MAX_DEPTH, for more than `max_values` values, and for anything
    but an object. An integer beyond 64 bits becomes a double.
    """
    if len(raw) > max_values:  # fewer bytes hold no more values
        _check_num_values(raw, max_values)
    try:
        value = jiter.from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise RequestRefused(not_json(str(error))) from error
    if not isinstance(value, dict):
        raise RequestRefused(not_json(f"the body must be an object, not {KINDS.get(type(value), 'null')}"))
    _check_values(value)
    return value


def _without_halves(raw: bytes) -> bytes:
    if _WRITTEN_HALF.search(raw):
        try:
            text = raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise RequestRefused(not_json(str(error))) from error
        raw = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    if not _ESCAPED_HALF.search(raw):
        return raw
    return _ESCAPE.sub(lambda escape: b"\\ufffd" if escape[1] else escape[0], raw)


def _places_of_halves(value: Any, path: str) -> Iterator[str]:
    """Paths of the strings that hold U+FFFD, of keys those of their object."""
    if isinstance(value, str):
        if HALF_READ in value:
            yield path
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _places_of_halves(item, f"{path}[{position}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if HALF_READ in key:
                yield path
            yield from _places_of_halves(item, f"{path}.{key}".removeprefix("."))


def _check_num_values(raw: bytes, max_values: int) -> None:
    """Count commas and opening brackets outside strings, before anything is parsed. Raises RequestRefused."""
    num_values, in_string, at = 1, False, 0
    while at < len(raw):
        end = at + SLICE_BYTES
        part = raw[at:end]
        if (len(part) - len(part.rstrip(b"\\"))) % 2:  # the next byte is escaped
            end += 1
            part = raw[at:end]
        quoted = part.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(quoted[int(in_string) :: 2])
        num_values += sum(map(outside.count, (b",", b"[", b"{")))
        if num_values > max_values:
            raise RequestRefused(not_json(f"it holds more than {max_values} values"))
        in_string ^= len(quoted) % 2 == 0
        at = end


def _check_values(body: dict[str, Any]) -> None:
    """Walk the tree level by level, without recursion. Raises RequestRefused."""
    level: list[Any] = [body]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RequestRefused(not_json(f"nested deeper than {MAX_DEPTH} levels"))
        below: list[Any] = []
        for container in level:
            for key, value in container.items() if isinstance(container, dict) else enumerate(container):
                if isinstance(value, dict | list):
                    below.append(value)
                elif isinstance(value, float) and not math.isfinite(value):
                    raise RequestRefused(not_json("a number is too large for a double"))
                elif isinstance(value, int) and abs(value) > MAX_INTEGER:
                    container[key] = _as_double(value)
        level = below


def _as_double(value: int) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise RequestRefused(not_json("a number is too large for a double")) from error


KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a decimal",
    bool: "a boolean",
    type(None): "null",
}


def kind_of(value: object) -> str:
    """Name of a JSON value's type in OpenAI's error messages."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "an array of objects"
    return KINDS.get(type(value), "an unknown value")


def bad(message: str, param: str | None, code: str | None = None) -> RequestRefused:
    """A 400 to raise."""
    return RequestRefused(ApiError(400, message, param=param, code=code))
