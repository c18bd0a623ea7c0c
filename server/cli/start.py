"""Start of `toolwire serve` and `toolwire engine` before the slow imports: bind the port, and start the engine process.

It imports meanwhile.
"""

import contextlib
import dataclasses
import gc
import socket
from collections.abc import Iterator

from server.backends.engine_process import EngineProcess
from server.cli.interruption import Interruption
from server.errors import CannotStart
from server.runtime.heap import limit_arenas
from server.settings import EngineSettings, Resolved, Settings

MAX_PORT = 65_535


def start(resolved: Resolved) -> None:
    """Serve until a signal ends the process. Raises CannotStart."""
    interruption, settings = Interruption(), resolved.settings
    limit_arenas()
    refuse_options_of_engines_elsewhere(resolved)
    with contextlib.ExitStack() as at_the_end:
        listener = at_the_end.enter_context(bind(settings.api.host, settings.api.port))
        engine = None if settings.remote.is_used else at_the_end.enter_context(EngineProcess())
        with _permanent_imports():
            from server.cli.serve import serve

        interruption.check()
        serve(settings, listener, engine, interruption)


def start_engine(settings: Settings, listen: str) -> None:
    """Compute tokens for servers elsewhere until a signal ends the process. Raises CannotStart."""
    interruption = Interruption()
    limit_arenas()
    host, port = _host_and_port(listen)
    refuse_open_engine(host, settings.remote.engine_key)
    if settings.engine.adapter:
        raise CannotStart("--adapter: an engine for servers elsewhere serves the model alone; use `toolwire serve`")
    with bind(host, port, "--listen") as listener, EngineProcess() as engine:
        with _permanent_imports():
            from server.cli.engine import serve_engine

        interruption.check()
        serve_engine(settings, listener, engine, interruption)


@contextlib.contextmanager
def _permanent_imports() -> Iterator[None]:
    """Import inside. That takes a second here, and longer in the engine: both at once.

    What imports create lives as long as the process, so the garbage collector is not to search it, neither now nor
    while replies are written.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def refuse_options_of_engines_elsewhere(resolved: Resolved) -> None:
    """Raise CannotStart for options of an engine where there is none in this process, rather than ignore them."""
    if not resolved.settings.remote.is_used:
        return
    if resolved.settings.engine.adapter:
        raise CannotStart("--adapter: adapters need an engine here; engines elsewhere serve the model alone")
    # An adapter that is merged is part of the model, whose engines are compared with it.
    fields = (field.name for field in dataclasses.fields(EngineSettings) if field.name not in ("seed", "merge_adapter"))
    if given := [name for name in fields if resolved.origins[name] == "command line"]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise CannotStart(f"{options}: an option of the engine, which is elsewhere; give it to `toolwire engine`")


def refuse_open_engine(host: str, key: str) -> None:
    """Raise CannotStart for an engine without a key that other machines can reach."""
    if not key and not (host in ("localhost", "::1") or host.startswith("127.")):
        raise CannotStart(f"--listen {host} without a key: every client that reaches it could use it; set --engine-key")


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
        raise CannotStart(f"--listen {text} is no address; write it as 127.0.0.1:8100")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket bound before anything is loaded, so that a taken port is known at once. Raises CannotStart."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotStart(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with {option}"
        ) from error
    return listener
