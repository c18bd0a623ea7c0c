"""Life of `toolwire engine`: open the checkpoint, start the engine process, serve other machines, drain, end."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from server.api.logs import configure_logging
from server.api.metrics import NAMES_AS_THEY_ARE, PulseGauges
from server.backends.engine_process import EngineProcess
from server.backends.engine_server import EngineServer
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.fingerprint import fingerprint
from server.checkpoint.shipped import choose_model
from server.checkpoint.template import RENDERER
from server.cli.banner import LoadingBar
from server.cli.interruption import Interruption
from server.cli.process import announce, loop_factory, raise_open_file_limit, reachable
from server.messages import Pulse
from server.settings import Settings
from server.startup import build_local_backend, read_checkpoint

logger = logging.getLogger("toolwire")


def serve_engine(
    settings: Settings, listener: socket.socket, engine: EngineProcess, interruption: Interruption
) -> None:
    """Serve until a signal ends it; returns after a drained shutdown. Raises CannotStart."""
    key = settings.remote.engine_key
    configure_logging(settings.api.log_format, secrets=lambda: [key] if key else [])
    settings = choose_model(settings)
    raise_open_file_limit()
    checkpoint = read_checkpoint(settings)
    RENDERER.close()  # no prompt is written here
    interruption.check()
    announce()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(settings, checkpoint, listener, engine, interruption))


async def _serve(
    settings: Settings,
    checkpoint: Checkpoint,
    listener: socket.socket,
    engine: EngineProcess,
    interruption: Interruption,
) -> None:
    identity = fingerprint(checkpoint.path, checkpoint.tokenizer, settings.engine.merge_adapter)
    server = EngineServer(identity, settings.remote.engine_key, _metrics_renderer())
    console = Console()
    bar = LoadingBar(console)
    backend = build_local_backend(settings, checkpoint, engine, bar.show, server.on_ready, server.on_loss)
    server.use(backend)
    signals = _Signals()
    try:
        host, port = listener.getsockname()[:2]
        await server.listen(listener)
        interruption.check()
        starting = asyncio.create_task(backend.start())
        ended = asyncio.create_task(signals.first.wait())
        with contextlib.closing(bar):
            await asyncio.wait({starting, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)  # a failure to start no longer matters
            return
        ready = await starting
        console.print(f"\nlistening on http://{reachable(host)}:{port}", highlight=False)
        console.print(f"an engine of {settings.model.model} on {ready.device}, {ready.dtype}", highlight=False)
        await ended
        draining = asyncio.create_task(server.drain(settings.api.drain_timeout_s))
        cut_off = asyncio.create_task(signals.second.wait())
        await asyncio.wait({draining, cut_off}, return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, cut_off):
            task.cancel()
    finally:
        await server.close()
        await backend.close()


def _metrics_renderer() -> Callable[[Pulse | None], str]:
    """A function that writes the engine's figures as `/metrics` of a server does, in Prometheus' older text format."""
    gauges, registry = PulseGauges(), CollectorRegistry()
    registry.register(gauges)

    def render(pulse: Pulse | None) -> str:
        gauges.pulse = pulse
        return generate_latest(registry, NAMES_AS_THEY_ARE).decode()

    return render


class _Signals:
    """The first signal drains, a second one ends at once."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
