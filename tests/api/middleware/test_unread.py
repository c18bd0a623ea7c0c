"""Replies that nobody reads: over a real socket, the connection is aborted and its memory free."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.middleware import http_protocol
from server.api.middleware.http_protocol import BoundedHttpProtocol

REPLY_BYTES = 8 << 20


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(b"x" * REPLY_BYTES)(scope, receive, send)


async def test_a_whole_reply_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 such replies held 4 GB for ever, and a shutdown waited 36 s for them."""
    monkeypatch.setattr(http_protocol, "UNREAD_TIMEOUT_S", 0.2)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=BoundedHttpProtocol, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    client = socket.create_connection(listener.getsockname())
    with contextlib.closing(client):
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.1)
        (connection,) = server.server_state.connections
        assert connection.transport.get_write_buffer_size() > 0
        async with asyncio.timeout(2):
            while server.server_state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    server.should_exit = True
    await serving
