"""Parse and bound a JSON body."""

import codecs
import json
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
LONGEST_MATCH = 309  # bytes, of the patterns that a body is searched for
HALF_READ = "\N{REPLACEMENT CHARACTER}"
# Keywords of schemas whose value is a number.
BOUNDS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems",
    "maxItems", "minProperties", "maxProperties", "minContains", "maxContains",
)  # fmt: skip
_PAIR = rb"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rb"\\(?:" + _PAIR + rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_BAD_BYTES = re.compile("[\udc80-\udcff]+")  # as Python decodes them
_HALF = re.compile("[\ud800-\udfff]")
_ENDLESS = re.compile(rb"NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{309}")
_WRITTEN_HALF = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")


def read_body_object(raw: bytes, strict: bool, max_values: int = MAX_VALUES) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """`read_object` to the letter, `read_lenient` otherwise."""
    return (read_object(raw, max_values), ()) if strict else read_lenient(raw, max_values)


def read_lenient(raw: bytes, max_values: int = MAX_VALUES) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """The body as an object, with notes that name the places of what is read as something else.

    Half of a surrogate pair becomes U+FFFD: programs that cut texts by UTF-16 units send such halves, as escapes or
    encoded like other characters; so do bytes that are no UTF-8, as of a text that was cut within a character. A bound
    of a schema that is no finite double, as `Infinity` and `1e400`, is left out. UTF-16 and UTF-32 are decoded, and a
    byte order mark is dropped. Raises RequestRefused as `read_object` does for anything else.
    """
    raw = _as_utf8(raw)
    _check_num_values(raw, max_values)
    try:
        return read_object(raw, max_values), ()
    except RequestRefused as error:
        refused = error
    try:
        whole = _without_halves(raw, HALF_READ)
        if whole == raw and not _holds(_ENDLESS, raw):
            raise refused
        body = _parsed(whole, max_values, endless=True)
        # Another text differs where a half was, and nowhere else.
        other = body if whole == raw else _parsed(_without_halves(raw, 2 * HALF_READ), max_values, endless=True)
    except ValueError as error:
        raise RequestRefused(not_json(str(error))) from error
    if whole != raw:
        refused = RequestRefused(not_json("a number is no finite double"))
    text = "Half of a surrogate pair, or bytes that are no UTF-8, were read as U+FFFD."
    halves = [Note("half_surrogate", place, text) for place in _places_that_differ(body, other, "")]
    return body, (*halves, *_without_endless_bounds(body, "", refused))


def read_object(raw: bytes, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """The body as an object.

    Raises RequestRefused (400) for what is no JSON by RFC 8259 (NaN, invalid UTF-8, lone surrogates), for duplicate
    keys, for numbers no double holds, for nesting beyond MAX_DEPTH, for more than `max_values` values, and for anything
    but an object. An integer beyond 64 bits becomes a double.
    """
    try:
        return _parsed(raw, max_values)
    except ValueError as error:
        raise RequestRefused(not_json(str(error))) from error


def _parsed(raw: bytes, max_values: int, endless: bool = False) -> dict[str, Any]:
    """`read_object`, with numbers that are not finite where they may be `endless`. Raises ValueError too."""
    _check_num_values(raw, max_values)
    value = jiter.from_json(raw, allow_inf_nan=endless, catch_duplicate_keys=True)
    if not isinstance(value, dict):
        raise RequestRefused(not_json(f"the body must be an object, not {KINDS.get(type(value), 'null')}"))
    _check_values(value, endless)
    return value


def _as_utf8(raw: bytes) -> bytes:
    """The body in UTF-8, judging by its first bytes (RFC 4627 3). Raises RequestRefused."""
    coding = json.detect_encoding(raw[:4])
    if coding in ("utf-8", "utf-8-sig"):
        return raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode(coding, "surrogatepass")
    except ValueError as error:
        raise RequestRefused(not_json(f"its bytes begin as {coding.upper()}, and are not of it")) from error
    return text.encode("utf-8", "surrogatepass")


def _without_halves(raw: bytes, replacement: str) -> bytes:
    """The body with this character for each half of a surrogate pair, and for bytes that are no UTF-8."""
    try:
        if _holds(_WRITTEN_HALF, raw):
            paired = raw.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass")
            raw = _HALF.sub(replacement, paired.decode("utf-16", "surrogatepass")).encode()
        raw.decode()
    except UnicodeDecodeError:
        raw = _BAD_BYTES.sub(replacement, raw.decode("utf-8", "surrogateescape")).encode()
    if not _holds(_ESCAPED_HALF, raw):
        return raw
    return _ESCAPE.sub(lambda escape: replacement.encode() if escape[1] else escape[0], raw)


def _holds(pattern: re.Pattern[bytes], raw: bytes) -> bool:
    """Whether a pattern of at most LONGEST_MATCH bytes is found; other threads run between slices."""
    return any(pattern.search(raw, at, at + SLICE_BYTES + LONGEST_MATCH) for at in range(0, len(raw), SLICE_BYTES))


def _places_that_differ(value: Any, other: Any, path: str) -> Iterator[str]:
    """Paths of the strings that differ between two bodies of the same form, of keys those of their object."""
    if isinstance(value, list):
        for position, (item, other_item) in enumerate(zip(value, other, strict=True)):
            yield from _places_that_differ(item, other_item, f"{path}[{position}]")
    elif isinstance(value, dict):
        for (key, item), (other_key, other_item) in zip(value.items(), other.items(), strict=True):
            if key != other_key:
                yield path
            yield from _places_that_differ(item, other_item, f"{path}.{key}".removeprefix("."))
    elif isinstance(value, str) and value != other:
        yield path


def _without_endless_bounds(value: Any, path: str, refused: RequestRefused) -> Iterator[Note]:
    """Read a bound that is no finite double as null, with a note. Raises `refused` for other such numbers."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        place = f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}".removeprefix(".")
        if isinstance(item, dict | list):
            yield from _without_endless_bounds(item, place, refused)
        elif isinstance(item, float) and not math.isfinite(item):
            if key not in BOUNDS:
                raise refused
            value[key] = None
            yield Note("schema", place, "A bound that is no finite number is not enforced.")


def _check_num_values(raw: bytes, max_values: int) -> None:
    """Count commas and opening brackets outside strings, before anything is parsed. Raises RequestRefused."""
    if len(raw) <= max_values:  # so few bytes hold no more values
        return
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


def _check_values(body: dict[str, Any], endless: bool) -> None:
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
                elif isinstance(value, float) and not (endless or math.isfinite(value)):
                    raise RequestRefused(not_json("a number is too large for a double"))
                elif isinstance(value, int) and abs(value) > MAX_INTEGER:
                    container[key] = _as_double(value, endless)
        level = below


def _as_double(value: int, endless: bool) -> float:
    try:
        return float(value)
    except OverflowError as error:
        if endless:
            return math.inf if value > 0 else -math.inf
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
