"""Malformed requests as bytes on a socket, and the check of the replies to them.

Each kind is a function of a random generator, so that request `number` of a seed is always the same bytes.
"""

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

REPLY_TIMEOUT_S = 60.0
CHAT = "/v1/chat/completions"
Tolerance = Literal[
    "reply",  # a reply in OpenAI's format
    "http",  # the HTTP parser may also answer in plain text or close the connection
    "none",  # the client disconnected before the request was complete: no reply is possible
]


@dataclass(frozen=True, slots=True)
class Malformed:
    """One request. With `half_close` the sending side is closed after `raw`."""

    kind: str
    raw: bytes
    tolerance: Tolerance = "reply"
    half_close: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """A reply as received; status 0 if the server closed the connection without one."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def valid_body() -> dict[str, Any]:
    """Return the valid body that faults are put into; cheap to answer where it stays valid."""
    tool = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    return {
        "model": "toolwire-demo",
        "max_tokens": 2,
        "temperature": 0,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [{"type": "function", "function": tool}],
    }


def request_bytes(body: bytes, path: str = CHAT, method: str = "POST", length: int | None = None) -> bytes:
    """Return an HTTP/1.1 request with `Connection: close`."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


WRONG_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3.5, "", "auto", [], {}, [[]], [None], {"type": {}}, "x" * 70_000, [{}] * 300, 10**30, -(2**63),
)  # fmt: skip
FIELDS = (
    "model", "messages", "tools", "tool_choice", "max_tokens", "temperature", "top_p", "n", "stop", "stream", "seed",
    "logit_bias", "logprobs", "top_logprobs", "response_format", "parallel_tool_calls", "stream_options", "functions",
    "function_call", "user", "metadata", "presence_penalty", "frequency_penalty", "reasoning_effort", "top_k", "min_p",
)  # fmt: skip
HUGE = ("1e400", "-1e400", "1" * 5000, "9" * 19, "1e308", "NaN", "Infinity", "-Infinity", "0." + "0" * 4000 + "1")


def fuzzed_json(rng: random.Random) -> Malformed:
    """Delete, repeat or replace bytes of a valid body."""
    text = bytearray(json.dumps(valid_body()).encode())
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(text))
        match rng.randrange(3):
            case 0:
                del text[at]
            case 1:
                text[at:at] = text[at : at + rng.randint(1, 30)]
            case _:
                text[at] = rng.choice(b'{}[]",:\\0-eE.ntfu \x00\x7f')
    return Malformed("fuzzed JSON", request_bytes(bytes(text)))


def wrong_types(rng: random.Random) -> Malformed:
    """Give a field of the body, a message or a tool another type."""
    body = valid_body()
    target: dict[str, Any] = rng.choice([body, body["messages"][0], body["tools"][0], body["tools"][0]["function"]])
    name = rng.choice(FIELDS) if target is body else rng.choice([*target, "tool_calls", "tool_call_id", "strict"])
    target[name] = rng.choice(WRONG_VALUES)
    return Malformed("wrong types", request_bytes(json.dumps(body).encode()))


def huge_numbers(rng: random.Random) -> Malformed:
    """Set numbers that exceed a double, 64 bits, or a reasonable length."""
    numeric = ("max_tokens", "temperature", "top_p", "n", "seed", "top_logprobs", "presence_penalty", "top_k")
    text = json.dumps({**valid_body(), rng.choice(numeric): 424242}).replace("424242", rng.choice(HUGE))
    return Malformed("huge numbers", request_bytes(text.encode()))


def deep_nesting(rng: random.Random) -> Malformed:
    """Nest arrays or objects deeper than a parser's stack."""
    depth = rng.choice((90, 130, 250, 1_000, 20_000, 100_000))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}"), ('{"anyOf":[', "]}")))
    nested = opened * depth + "1" + closed * rng.choice((depth, depth, 0))
    position = rng.choice(('"parameters": {"x": @}', '"parameters": @', '"description": @'))
    body = json.dumps(valid_body())
    start = body.index('"parameters"')
    text = body[:start] + position.replace("@", nested) + "}}]}"
    return Malformed("deep nesting", request_bytes(text.encode()))


def invalid_utf8(rng: random.Random) -> Malformed:
    """Insert invalid bytes, lone surrogates or control characters."""
    bad = rng.choice((b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\\ud800", b"\x00", b"\\u0000"))
    body = json.dumps(valid_body()).encode().replace(b"Paris", b"Pa" + bad + b"ris")
    return Malformed("invalid UTF-8", request_bytes(body))


def truncated_body(rng: random.Random) -> Malformed:
    """Disconnect before the announced length is sent."""
    body = json.dumps(valid_body()).encode()
    raw = request_bytes(body[: rng.randrange(len(body))], length=len(body) + rng.randrange(100))
    return Malformed("truncated body", raw, "none", half_close=True)


def odd_bodies(rng: random.Random) -> Malformed:
    """Send a complete body that is no request: empty, other JSON, or other formats."""
    body = rng.choice(
        (
            b"", b"null", b"[]", b'"text"', b"1", b"{}", b'{"messages": []}', b'{"model": "a", "model": "b"}',
            b'{"messages": [{"role": "tool"}]}', b"\xef\xbb\xbf{}", b"{" + b'"a": 1, ' * 20_000 + b'"b": 1}',
            b'{"messages": "' + b"x" * 1_000_000 + b'"}', b"<xml/>", b"model=x&messages=y",
        )
    )  # fmt: skip
    return Malformed("odd bodies", request_bytes(body))


def odd_tools(rng: random.Random) -> Malformed:
    """Send invalid, infinitely recursive or expensive schemas."""
    parameters: Any = rng.choice(
        (
            {"$ref": "#"}, {"type": "nonsense"}, {"type": "object", "properties": []}, {"pattern": "((a+)+)+$"},
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, {"enum": ["x" * 50] * 2000},
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, True, [], 7,
            {"type": "string", "pattern": "("}, {"type": "object", "minProperties": 10**9}, {"not": {}},
            {"type": "array", "items": {"type": "integer"}, "minItems": 10**8}, {"allOf": [False]},
        )
    )  # fmt: skip
    body = valid_body()
    body["tools"][0]["function"]["parameters"] = parameters
    body["tool_choice"] = rng.choice(("auto", "required"))
    return Malformed("odd tools", request_bytes(json.dumps(body).encode()))


def odd_urls(rng: random.Random) -> Malformed:
    """Use paths that do not exist and methods that are not allowed."""
    path = rng.choice(
        (
            "/",
            "/v1",
            "/v1/",
            "//v1/chat/completions",
            CHAT + "/",
            "/v1/models/%00",
            "/%ff",
            "/v1/../x",
            "/?" + "a" * 9000,
        )
    )
    method = rng.choice(("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"))
    return Malformed("odd URLs", request_bytes(b"{}", path, method), "http")


def broken_http(rng: random.Random) -> Malformed:
    """Send bytes that are not HTTP, or contradictory HTTP."""
    raw = rng.choice(
        (
            b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"\r\n" * 50, b"\x00" * 500,
            b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n{}",
            b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
            b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
            b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        )
    )  # fmt: skip
    return Malformed("broken HTTP", raw, "none", half_close=True)


KINDS: tuple[Callable[[random.Random], Malformed], ...] = (
    fuzzed_json, wrong_types, huge_numbers, deep_nesting, invalid_utf8, truncated_body, odd_bodies, odd_tools,
    odd_urls, broken_http,
)  # fmt: skip


def malformed(number: int, seed: int) -> Malformed:
    """Return request `number` of a seed; the kinds alternate."""
    return KINDS[number % len(KINDS)](random.Random(f"{seed}/{number}"))


async def send_raw(url: str, request: Malformed) -> Raw:
    """Send a request and read until the server closes. Raises TimeoutError if it does not."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            try:
                writer.write(request.raw)
                await writer.drain()
                if request.half_close:
                    writer.write_eof()
                received = await reader.read(-1)
            except OSError:
                return Raw(0, {}, b"")  # the server closed while the request was being sent
    finally:
        writer.close()
    return _parse(received)


def fault_in(request: Malformed, reply: Raw) -> str:
    """Return what is wrong with the reply, or an empty string."""
    if reply.status == 0:
        return "" if request.tolerance != "reply" else "closed the connection without a reply"
    if reply.status >= 500 and reply.status != 503:
        return f"answered {reply.status}: {reply.body[:300]!r}"
    if request.tolerance != "reply" and reply.headers.get("content-type", "").startswith("text/plain"):
        return ""
    if reply.status < 400:
        return ""
    if not reply.headers.get("x-request-id"):
        return f"{reply.status} without x-request-id"
    try:
        error = json.loads(reply.body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{reply.status} is no error object: {reply.body[:300]!r}"
    required = {"message", "type", "param", "code"}
    return "" if required <= error.keys() and error["message"] else f"{reply.status} lacks {required - error.keys()}"


def _parse(received: bytes) -> Raw:
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0].startswith("HTTP/1."):
        return Raw(0, {}, b"")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Raw(int(lines[0].split()[1]), headers, body)
