"""Ingress deployment: the API in a Serve replica, over the engines that the registry lists."""

import asyncio
import contextlib
import logging
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError
from starlette.types import Receive, Scope, Send

from deploy.ray.engine_table import REPORT_INTERVAL_S
from deploy.ray.options import Options
from deploy.ray.registry import open_registry, own_key
from server.api.hosting import running_app
from server.errors import CannotStart
from server.settings import read_environment, resolve

logger = logging.getLogger("ray.serve")


class Api:
    """ASGI application that Serve starts and ends through its lifespan: everything in it is made in the replica."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._app: FastAPI | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or live through the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        assert self._app is not None, "Serve sends requests behind lifespan.startup"
        await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with running(self._options) as self._app:
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except CannotStart as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})


@contextlib.asynccontextmanager
async def running(options: Options) -> AsyncIterator[FastAPI]:
    """The application over the engines of the registry, which it follows. Raises CannotStart."""
    registry = open_registry(serve.get_replica_context().app_name)
    proposed = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory(prefix="toolwire-engines-") as folder:
        file = Path(folder) / "engines.txt"
        name = secrets.token_hex(8)
        key, engines = "", list[str]()
        while not engines:  # the key may become another one with the first engine
            await asyncio.sleep(REPORT_INTERVAL_S)
            key = own_key() or await registry.key.remote(proposed)
            engines = await registry.engines.remote(name, key) if key else []
        _write(file, engines)
        own = {"model": options.model, "engines_file": str(file), "engine_key": key}
        given = {"drain_timeout_s": options.drain_timeout_s, **options.api}
        settings = resolve({**given, **own}, read_environment(), {}).settings
        following = asyncio.create_task(_follow(registry, (name, key), file, engines), name="engines of the registry")
        try:
            async with running_app(settings) as app:
                yield app
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def _follow(registry: ActorHandle, reader: tuple[str, str], file: Path, engines: Sequence[str]) -> None:
    """Keep the file equal to the registry. An empty one changes nothing: it has been restarted, or all are lost.

    `reader`: the name and the key of this replica.
    """
    written = list(engines)
    while True:
        await asyncio.sleep(REPORT_INTERVAL_S)
        try:
            listed = await registry.engines.remote(*reader)
            if listed and listed != written:
                _write(file, listed)
                written = listed
        except (RayError, OSError):  # the next second is another one
            logger.exception("the list of engines cannot be followed")


def _write(file: Path, engines: Sequence[str]) -> None:
    """Write the list in one step: the backend never reads half of it."""
    new = file.with_suffix(".new")
    new.write_text("".join(f"{one}\n" for one in engines), encoding="utf-8")
    new.replace(file)
