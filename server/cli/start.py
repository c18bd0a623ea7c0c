"""Start of `toolwire serve` before the slow imports: bind the port, and let the engine process import meanwhile."""

import gc
import socket

from server.backends.engine_process import EngineProcess
from server.cli.interruption import Interruption
from server.errors import CannotStart
from server.runtime.heap import limit_arenas
from server.settings import Settings


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
