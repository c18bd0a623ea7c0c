"""Life of the API process: open the checkpoint, start the engine, serve, drain, end."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import signal
import socket
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from server.api.hosting import host_api, log_as_configured
from server.api.middleware.auth import ApiKeys, keys_of
from server.api.middleware.http_protocol import BoundedHttpProtocol
from server.api.middleware.tracing import send_traces
from server.api.middleware.websocket_protocol import BoundedWebSocketProtocol
from server.backends.base import Backend
from server.backends.engine_process import EngineProcess
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.shipped import choose_model
from server.cli.banner import LoadingBar, print_ready
from server.cli.interruption import Interruption
from server.cli.process import announce, loop_factory, raise_open_file_limit, reachable
from server.errors import CannotStart
from server.runtime.byte_budget import ByteBudget
from server.settings import ApiSettings, Settings
from server.startup import open_checkpoint

logger = logging.getLogger("toolwire")

# An idle connection stays open for longer than clients (httpx: 5 s) and load balancers (60 s as a rule) use it: where
# the server closes it first, a request that was just sent is lost.
KEEP_ALIVE_S = 75
ACCEPT_BACKLOG = 2048
# uvloop accepts one connection from a socket in a turn of the event loop, so that a health check waited half a second
# behind a crowd of 300. Each copy of the listening socket is one more.
ACCEPTS_PER_TURN = 32
START_POLL_S = 0.01


def serve(
    settings: Settings, listener: socket.socket, engine: EngineProcess | None, interruption: Interruption
) -> None:
    """Serve until a signal ends it; returns after a drained shutdown. Raises CannotStart.

    `listener` is bound, `engine` a process that waits for its configuration, None where engines are elsewhere;
    `interruption` has the signals until the event loop has them.
    """
    api = settings.api
    keys = keys_of(api)
    log_as_configured(settings, keys)
    settings = choose_model(settings)
    warn_if_open_to_all(api)
    raise_open_file_limit()
    with contextlib.ExitStack() as at_the_end:
        if api.traces:
            at_the_end.callback(send_traces())
        checkpoint = open_checkpoint(settings)
        interruption.check()
        announce()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(settings, checkpoint, keys, listener, engine, interruption))


async def _serve(
    settings: Settings,
    checkpoint: Checkpoint,
    keys: ApiKeys,
    listener: socket.socket,
    engine: EngineProcess | None,
    interruption: Interruption,
) -> None:
    console = Console()
    bar = LoadingBar(console)
    hosted = host_api(settings, checkpoint, keys, engine, bar.show)
    backend = hosted.backend
    server = http_server(hosted.app, settings.api)
    sockets = [listener, *(listener.dup() for _ in range(ACCEPTS_PER_TURN - 1))]
    http = asyncio.create_task(server.serve(sockets=sockets))
    try:
        await _until_listening(server, http)
        host, port = listener.getsockname()[:2]  # before a signal: the server closes its sockets when it ends
        _end_on_signals(server, backend, settings.api.drain_timeout_s)
        interruption.check()
        starting = asyncio.create_task(backend.start())
        with contextlib.closing(bar):
            await asyncio.wait({starting, http}, return_when=asyncio.FIRST_COMPLETED)
        if http.done():  # a signal ended the server, perhaps at the very moment when the engine was ready
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)  # a failure to start no longer matters
        else:
            ready = await starting
            _freeze_heap()
            adapters = [option.partition("=")[0] for option in settings.engine.adapter]
            print_ready(console, f"http://{reachable(host)}:{port}", hosted.name, ready, checkpoint.notes, adapters)
        await http
        await hosted.state.runs.drained(settings.api.drain_timeout_s)
    finally:
        server.should_exit = True
        await backend.close()
        with contextlib.suppress(asyncio.CancelledError):
            await http
        await hosted.close()


def _freeze_heap() -> None:
    """Keep what lives as long as the process from the garbage collector: a full collection took 50 to 130 ms."""
    gc.collect()
    gc.freeze()


def http_server(app: FastAPI, api: ApiSettings) -> uvicorn.Server:
    """The HTTP server of an app, which has WebSockets unless the settings say that there are none."""
    incomplete = ByteBudget(max(api.max_pending_bytes, api.max_body_bytes))
    websockets: Any = partial(BoundedWebSocketProtocol, incomplete) if api.max_websockets else "none"
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            backlog=ACCEPT_BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(api.drain_timeout_s) + 5,
            server_header=False,
            http=BoundedHttpProtocol,
            ws=websockets,
            ws_max_size=api.max_body_bytes,
            ws_per_message_deflate=False,
            proxy_headers=bool(api.forwarded_allow_ips),
            forwarded_allow_ips=_networks(api.forwarded_allow_ips),
        )
    )


def _networks(listed: str) -> list[str]:
    """Addresses and networks of a list; `*` is every one. Raises CannotStart for anything else."""
    items = [item.strip() for item in listed.split(",") if item.strip()]
    for item in items:
        try:
            ipaddress.ip_network("0.0.0.0/0" if item == "*" else item)
        except ValueError as error:
            raise CannotStart(f"forwarded_allow_ips: {error}") from error
    return items


async def _until_listening(server: uvicorn.Server, http: asyncio.Task[None]) -> None:
    # uvicorn has no event for it, only this flag
    while not server.started and not http.done():  # noqa: ASYNC110
        await asyncio.sleep(START_POLL_S)


def _end_on_signals(server: uvicorn.Server, backend: Backend, drain_timeout_s: float) -> None:
    """Drain on the first signal, end at once on a second. Replaces uvicorn's handlers, which re-raise the signals."""
    loop = asyncio.get_running_loop()
    cutoff: list[asyncio.Task[None]] = []

    async def cut_off() -> None:
        await asyncio.sleep(drain_timeout_s)
        logger.warning("replies still running after %.0f s are cut off (--drain-timeout-s)", drain_timeout_s)
        await backend.close()

    def on_signal() -> None:
        if server.should_exit:
            server.force_exit = True
            cutoff.append(loop.create_task(backend.close()))  # background responses outlive the HTTP server
        else:
            server.should_exit = True
            cutoff.append(loop.create_task(cut_off()))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)


def warn_if_open_to_all(api: ApiSettings) -> None:
    """Log a warning for a server without a key that other machines can reach."""
    loopback = api.host in ("localhost", "::1") or api.host.startswith("127.")
    if not loopback and not api.api_key and not api.api_key_file:
        logger.warning(
            "listening on %s without an API key: any client that reaches it may use it; set --api-key-file", api.host
        )
