"""Start of `toolwire serve` before the slow imports: bind the port, and let the engine process import meanwhile."""

import gc
import signal
import socket
from types import FrameType

from server.backends.engine_process import EngineProcess
from server.errors import CannotStart
from server.runtime.heap import limit_arenas
from server.settings import Settings


class Interruption:
    """SIGINT and SIGTERM during the start: a KeyboardInterrupt, which `check` raises again where it was lost.

    Python discards what a signal's handler raises in a finalizer or in a weak reference's callback, and imports run
    many of both.
    """

    def __init__(self) -> None:
        self._received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self._received:
            raise KeyboardInterrupt

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._received = True
        raise KeyboardInterrupt


def start(settings: Settings) -> None:
    """Serve until a signal ends the process. Raises CannotStart."""
    interruption = Interruption()
    limit_arenas()
    with bind(settings.api.host, settings.api.port) as listener, EngineProcess() as engine:
        # The imports take a second here, and longer in the engine: both at once. What they create lives as long as
        # the process, so the garbage collector is not to search it, neither now nor while replies are written.
        gc.disable()
        from server.cli.serve import serve

        gc.freeze()
        gc.enable()
        interruption.check()
        serve(settings, listener, engine, interruption)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound before anything is loaded, so that a taken port is known at once. Raises CannotStart."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotStart(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --port"
        ) from error
    return listener
