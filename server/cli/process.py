"""Process of a command that serves: its event loop, its limit of open files, its first line, its address as shown."""

import asyncio
import os
import resource
from collections.abc import Callable

from server.errors import CannotStart
from server.version import version

MAX_OPEN_FILES = 65_536
STDOUT = 1


def announce() -> None:
    """Write the first line, past Python's buffer. Raises CannotStart where that fails, as on a full disk."""
    try:
        os.write(STDOUT, f"toolwire {version()}\n".encode())
    except OSError as error:
        raise CannotStart(f"cannot write to standard output: {error.strerror}") from error


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed (not on Windows): a token takes a third less of the API process's time with it."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def raise_open_file_limit() -> None:
    """Raise the limit of open files as far as the system permits: streams, at one socket each, soon take 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def reachable(host: str) -> str:
    """An address that a client on this machine can use."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{shown}]" if ":" in shown else shown
