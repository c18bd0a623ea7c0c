"""HTTP over real sockets: too long, too slow, malformed, half-closed, and valid."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from server.api.middleware import http_protocol
from server.api.middleware.http_protocol import BoundedHttpProtocol
from tests.api.conftest import MODEL, Serve
from tests.backends.scripted import Script

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout that tests can wait for."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.3)


@pytest.fixture
async def peer(serve: Serve, reply: Callable[..., Script]) -> AsyncIterator[Peer]:
    """A connection to a server with the whole application behind it."""
    async with serve(reply("Hi"), max_body_bytes=1_000_000) as served:
        config = uvicorn.Config(served.app, lifespan="off", log_config=None)
        config.load()
        loop, state = asyncio.get_running_loop(), ServerState()
        server = await loop.create_server(lambda: BoundedHttpProtocol(config, state, {}, loop), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            yield reader, writer
            writer.close()


async def reply_to(peer: Peer, sent: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of the reply to these bytes."""
    reader, writer = peer
    writer.write(sent)
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode()
    headers = {name.lower(): value for name, value in re.findall(r"([\w-]+): (.*)\r\n", head)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head.split()[1]), headers, json.loads(body) if body else None


def chat_request() -> bytes:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    return head % len(body) + body


async def is_closed(peer: Peer) -> bool:
    try:
        await asyncio.wait_for(peer[0].read(), 20)
    except (ConnectionError, TimeoutError) as error:
        return isinstance(error, ConnectionError)
    return True


async def test_a_head_without_an_end_is_not_buffered(peer: Peer) -> None:
    """Heads arrive before keys are checked: one connection could take all memory."""
    sent = b"GET / HTTP/1.1\r\nhost: x\r\n" + (b"x-more: " + b"a" * 8000 + b"\r\n") * 9
    status, headers, body = await reply_to(peer, sent)
    assert status == 431 and headers["x-request-id"].startswith("req_")
    assert body["error"]["code"] == "headers_too_large"
    assert await is_closed(peer)


@pytest.mark.parametrize("trailer", [b"a:\r\n", b"a: " + b"b" * 4096], ids=["many", "one long"])
@pytest.mark.parametrize("head", [CHUNKED, CHUNKED.replace(b"POST /v1/chat/completions", b"GET /health")], ids=str)
async def test_trailers_without_an_end_are_not_buffered(peer: Peer, head: bytes, trailer: bytes) -> None:
    """48 MiB of trailers, without a key, took 1.4 GB; they were appended to the headers of the request."""
    peer[1].write(head + b"2\r\n{}\r\n0\r\n" + trailer)
    await asyncio.sleep(0.02)  # the bytes of a read that holds a part of the body do not count
    status, _, _ = await reply_to(peer, trailer * (100_000 // len(trailer)))
    assert status == (431 if head is CHUNKED else 200)
    assert await is_closed(peer)


async def test_trailers_are_no_headers_of_the_request(peer: Peer) -> None:
    body = chat_request().partition(b"\r\n\r\n")[2]
    chunk = b"%x\r\n%b\r\n0\r\nx-request-timeout: never\r\n\r\n" % (len(body), body)
    status, _, _ = await reply_to(peer, CHUNKED + chunk)
    assert status == 200
    assert (await reply_to(peer, HEALTH))[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhos", b"POST /v1/chat/completions HTTP/1.1\r\nx: y\r\n"])
async def test_a_connection_without_a_complete_head_is_closed(short_timeout: None, peer: Peer, sent: bytes) -> None:
    """Silent connections would hold every file descriptor."""
    reader, writer = peer
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), 20) == b""


@pytest.mark.parametrize("rest", [b"\r\n", b"G", b"GET /health"], ids=str)
@pytest.mark.parametrize(
    "request_head",
    [
        HEALTH,
        b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n",
    ],
    ids=["200", "404", "413"],
)
async def test_a_connection_is_closed_although_bytes_follow_a_reply(
    short_timeout: None, peer: Peer, request_head: bytes, rest: bytes
) -> None:
    """One byte after a reply stopped the keep-alive timeout for ever: 65,000 of them, and nobody could connect."""
    await reply_to(peer, request_head)
    peer[1].write(rest)
    assert await is_closed(peer)


async def test_long_bodies_and_further_requests_do_not_count_as_heads(peer: Peer) -> None:
    for _ in range(3):
        status, _, _ = await reply_to(
            peer, b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\n\r\n" + b"b" * 500_000
        )
        assert status == 404
    status, _, _ = await reply_to(peer, b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 30_000 + b"\r\n\r\n")
    assert status == 200


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "malformed_http"),
        (b"GET /health HTTP/9.9\r\n\r\n", "malformed_http"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n", "malformed_http"),
        (b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", "malformed_http"),
        (CHUNKED + b"zz\r\n", "malformed_http"),
        (CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-length: 3\r\n\r\n"), "malformed_http"),
        (b"GET /health HTTP/1.1\r\n\r\n", "invalid_host"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", "invalid_host"),
        (
            b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            "upgrade_not_supported",
        ),
    ],
    ids=str,
)
async def test_the_http_layer_refuses_in_the_shape_of_other_errors(peer: Peer, sent: bytes, code: str) -> None:
    """They were plain text, without an id, in no log and no metric."""
    status, headers, body = await reply_to(peer, sent)
    assert status == 400 and body["error"]["code"] == code
    assert headers["x-request-id"].startswith("req_") and headers["content-type"] == "application/json"


async def test_a_malformed_request_behind_another_does_not_cut_its_reply(peer: Peer) -> None:
    """The 400 was written into the middle of the reply."""
    status, _, body = await reply_to(peer, chat_request() + b"\0garbage\r\n\r\n")
    assert status == 200 and body["choices"][0]["message"]["content"] == "Hi"
    assert await is_closed(peer)


async def test_a_half_closed_client_gets_its_reply(peer: Peer) -> None:
    """`nc -N` and others close their side once they have sent the request; they got nothing."""
    reader, writer = peer
    writer.write(chat_request())
    writer.write_eof()
    received = await asyncio.wait_for(reader.read(), 20)
    assert b"HTTP/1.1 200 OK\r\n" in received and b'"content":"Hi"' in received
