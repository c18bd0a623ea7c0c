"""Engines for tests of what is between the API process and them: everything is real but the model.

An engine is the server of `toolwire engine` in this process over the stand-in engine process. A foreign server is a
WebSocket server that a test scripts.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec
from websockets.asyncio.server import ServerConnection, serve

from server.backends.connection import NotToolwire, connect_toolwire
from server.backends.engine_list import EngineList
from server.backends.engine_server import EngineServer
from server.backends.local import EngineCommand, LocalBackend
from server.backends.protocol import PROTOCOL, Welcome
from server.backends.remote import Connection, EngineRefused
from server.backends.routing import RoutingBackend
from server.checkpoint.fingerprint import Fingerprint
from server.messages import Generate, Ready, Sampling
from tests.backends.test_local import STAND_IN

KEY = "engine key"
MODEL = Fingerprint("config", "vocabulary", "weights")
READY = Ready("cpu", "float32", 100_000, 64, 10, 16, 0, 0.0)
WELCOME = Welcome(PROTOCOL, "0", MODEL, READY, 0.0)


@dataclass(slots=True)
class Engine:
    """A running engine."""

    url: str
    server: EngineServer
    backend: LocalBackend


@contextlib.asynccontextmanager
async def running_engine(fingerprint: Fingerprint = MODEL, key: str = KEY) -> AsyncIterator[Engine]:
    """An engine that is ready."""
    server = EngineServer(fingerprint, key, lambda pulse: f"running {pulse.running if pulse else -1}\n")
    backend = LocalBackend(EngineCommand("", STAND_IN, pause_s=0.02), on_ready=server.on_ready, on_loss=server.on_loss)
    server.use(backend)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        await server.listen(listener)
        try:
            await backend.start()
            yield Engine(url, server, backend)
        finally:
            await server.close()
            await backend.close()


@contextlib.asynccontextmanager
async def foreign_server(handle: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    """The address of a server that speaks WebSocket and whatever `handle` says."""
    async with serve(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def routing(
    *urls: str, file: str = "", key: str = KEY, silence_s: float = 10.0, expected: Fingerprint = MODEL
) -> AsyncIterator[RoutingBackend]:
    """A backend over these engines, which has found one."""

    async def connect(url: str) -> Connection:
        try:
            return await connect_toolwire(url, key, silence_s)
        except NotToolwire as error:
            raise EngineRefused(str(error)) from error

    backend = RoutingBackend(EngineList(urls, file), connect, expected)
    try:
        await asyncio.wait_for(backend.start(), 20)
        yield backend
    finally:
        await backend.close()


async def say(connection: ServerConnection, welcome: Welcome) -> None:
    """Send a Welcome."""
    await connection.send(msgspec.json.encode(welcome).decode())


def counting(name: str, first: int, count: int, prompt: tuple[int, ...] = ()) -> Generate:
    """A request that the stand-in answers by counting up from `first`."""
    return Generate(name, [*prompt, first], Sampling(max_tokens=count))


async def ids_of(backend: RoutingBackend, request: Generate) -> list[int]:
    """The whole reply."""
    return [id async for delta in backend.generate(request) for id in delta.token_ids]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; fails after ten seconds."""
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came to that")


def use(backend: RoutingBackend, engines: dict[str, bool]) -> None:
    """Change the list of engines, as if a file had changed; the values say which are drained."""
    backend._list._listed = engines
    backend._list.refresh()
    backend._apply_list()


def states(backend: RoutingBackend) -> dict[str, str]:
    """The state of each engine by its address."""
    return {one.url: one.state for one in backend.engines()}
