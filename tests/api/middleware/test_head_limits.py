"""Heads of requests over a real socket: too long, too slow, and valid."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from server.api.middleware import head_limits

OK = {"type": "http.response.start", "status": 204, "headers": [(b"content-length", b"0")]}
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        continue
    await send(OK)
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head timeout that tests can wait for."""
    monkeypatch.setattr(head_limits, "HEAD_TIMEOUT_S", 0.3)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A connection to a server that answers every request with 204."""
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: head_limits.HeadLimitedProtocol(config, state, {}, asyncio.get_running_loop()), "127.0.0.1", 0
    )
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()
        await writer.wait_closed()


async def test_a_head_without_an_end_is_not_buffered(peer: Peer) -> None:
    """Heads arrive before keys are checked: one connection could take all memory."""
    reader, writer = peer
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n")
    for _ in range(9):
        writer.write(b"x-more: " + b"a" * 8000 + b"\r\n")
    await writer.drain()
    head, body = (await reader.read()).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ") and b"x-request-id: req_" in head
    assert json.loads(body)["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhos", b"POST /v1/chat/completions HTTP/1.1\r\nx: y\r\n"])
async def test_a_connection_without_a_complete_head_is_closed(short_timeout: None, peer: Peer, sent: bytes) -> None:
    """Silent connections would hold every file descriptor."""
    reader, writer = peer
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), 20) == b""


async def test_long_bodies_and_further_requests_do_not_count_as_heads(peer: Peer) -> None:
    reader, writer = peer
    for _ in range(3):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\n\r\n" + b"b" * 500_000)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 30_000 + b"\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
