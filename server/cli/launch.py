"""Start of `toolwire serve` before the slow imports: bind the port, and let the engine process import meanwhile."""

import ctypes
import gc
import signal
import socket

from server.backends.engine_process import EngineProcess
from server.errors import CannotStart
from server.settings import Settings

M_ARENA_MAX = -8  # glibc's malloc.h


def launch(settings: Settings) -> None:
    """Serve until a signal ends the process. Raises CannotStart."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # during the start both signals are a KeyboardInterrupt
    limit_malloc_arenas()
    with bind(settings.api.host, settings.api.port) as listener, EngineProcess() as engine:
        # The imports take a second here, and longer in the engine: both at once. What they create lives as long as
        # the process, so the garbage collector is not to search it, neither now nor while replies are written.
        gc.disable()
        from server.cli.serve import serve

        gc.freeze()
        gc.enable()
        serve(settings, listener, engine)


def limit_malloc_arenas() -> None:
    """Have all threads allocate from one arena, where the C library can (glibc); before the first thread starts.

    An arena for each thread that tokenizes keeps what its largest prompt took: over 10,000 hostile requests the
    process grew by 6 to 9 MiB, with one arena not at all.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


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
