"""The life of the API process: open the checkpoint, order the engine, serve, drain, end."""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from server.api.app import create_app
from server.api.middleware.head_limits import HeadLimitedProtocol
from server.api.middleware.request_log import configure_logging
from server.api.middleware.tracing import send_traces
from server.backends.child import Child
from server.backends.local import ProcessBackend
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import served_name
from server.messages import Progress, Ready
from server.prompt.builder import PromptBuilder
from server.settings import Settings
from server.startup import build_backend, open_checkpoint

logger = logging.getLogger("toolwire")

ACCEPT_BACKLOG = 2048
MANY_FILES = 65_536


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the start-up message tells."""

    url: str
    model: str
    checkpoint: Checkpoint
    ready: Ready


@dataclass(frozen=True, slots=True)
class StartedEarly:
    """What was there before the rest was imported: a bound port, and an engine process that waits for its order."""

    listener: socket.socket
    engine: Child


def serve(
    settings: Settings,
    begun: StartedEarly,
    on_progress: Callable[[Progress], None],
    on_ready: Callable[[ServerInfo], None],
) -> None:
    """Serve until a signal ends it. Raises CannotStart; returns after a drained shutdown."""
    api = settings.api
    configure_logging(
        api.log_format, log_prompts=api.log_prompts, secrets=[key.strip() for key in api.api_key.split(",")]
    )
    warn_if_open_to_all(settings)
    _allow_many_connections()
    with contextlib.ExitStack() as at_the_end:
        if settings.api.traces:
            at_the_end.callback(send_traces())
        checkpoint = open_checkpoint(settings)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, checkpoint, begun, on_progress, on_ready))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one (not on Windows): a token takes a third less of the API process's time with it."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(
    settings: Settings,
    checkpoint: Checkpoint,
    begun: StartedEarly,
    on_progress: Callable[[Progress], None],
    on_ready: Callable[[ServerInfo], None],
) -> None:
    name = served_name(settings.model.model, settings.model.served_model_name)
    prompter = PromptBuilder(checkpoint, settings)

    def on_engine(ready: Ready) -> None:
        prompter.window.narrow(ready.max_model_len)

    backend = build_backend(settings, checkpoint, begun.engine, on_progress, on_engine)
    app = create_app(settings, checkpoint, prompter, backend, name)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            backlog=ACCEPT_BACKLOG,
            timeout_graceful_shutdown=int(settings.api.drain_timeout_s) + 5,
            server_header=False,
            http=HeadLimitedProtocol,
        )
    )
    http = asyncio.create_task(server.serve(sockets=[begun.listener]))
    try:
        await _until_listening(server, http)
        host, port = begun.listener.getsockname()[:2]  # now: whoever ends the server closes it
        _end_on_signals(server, backend, settings.api.drain_timeout_s)
        starting = asyncio.create_task(backend.start())
        await asyncio.wait({starting, http}, return_when=asyncio.FIRST_COMPLETED)
        if http.done():  # told to end, perhaps at the very moment when the engine was ready
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)  # why it failed, if it did, is of no use now
        else:
            on_ready(ServerInfo(f"http://{_reachable(host)}:{port}", name, checkpoint, await starting))
        await http
    finally:
        server.should_exit = True
        await backend.close()
        with contextlib.suppress(asyncio.CancelledError):
            await http


async def _until_listening(server: uvicorn.Server, http: asyncio.Task[None]) -> None:
    # uvicorn tells that it listens by this flag alone
    while not server.started and not http.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def _end_on_signals(server: uvicorn.Server, backend: ProcessBackend, drain_timeout_s: float) -> None:
    """The first signal drains, a second one ends at once. Takes the signals over from uvicorn, which re-raises them."""
    loop = asyncio.get_running_loop()
    cutoff: list[asyncio.Task[None]] = []

    async def cut_off() -> None:
        await asyncio.sleep(drain_timeout_s)
        logger.warning("still running after %.0f s: ending the replies", drain_timeout_s)
        await backend.close()

    def on_signal() -> None:
        if server.should_exit:
            server.force_exit = True
        else:
            server.should_exit = True
            cutoff.append(loop.create_task(cut_off()))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)


def warn_if_open_to_all(settings: Settings) -> None:
    """A server without a key is told of, unless only this machine can reach it."""
    api = settings.api
    loopback = api.host in ("localhost", "::1") or api.host.startswith("127.")
    if not loopback and not api.api_key and not api.api_key_file:
        logger.warning("listening on %s without a key: whoever reaches it may use it; set --api-key-file", api.host)


def _allow_many_connections() -> None:
    """More open files, as far as the system lets us: the usual 1024 are soon taken by streams, at one socket each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(MANY_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _reachable(host: str) -> str:
    """An address that a client on this machine can use."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{shown}]" if ":" in shown else shown
