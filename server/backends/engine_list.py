"""Addresses of engines: those of the command line, and those of a file that may change while the server runs.

A line of the file is an address, behind which `drain` may stand; `#` begins a comment. `dns+http://NAME:PORT` is one
engine at each IP address that the name has, now and later.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from server.errors import CannotStart

logger = logging.getLogger("toolwire.engine")
DRAIN = "drain"
DNS = "dns+http"
RESOLVE_INTERVAL_S = 5.0
MAX_ENGINES = 4096


def resolve(name: str, port: int) -> list[str]:
    """The IP addresses that a name has now. Raises OSError."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


class EngineList:
    """Engines by their address, and whether each is to be drained. Raises CannotStart for what is no address."""

    def __init__(
        self, addresses: Iterable[str], path: str = "", resolve: Callable[[str, int], list[str]] = resolve
    ) -> None:
        self._fixed = {address_of(text): False for text in addresses}
        self._path = Path(path) if path else None
        self._resolve = resolve
        self._resolved: dict[str, list[str]] = {}  # engines by an address whose name has several
        self._resolved_s = 0.0
        self._stamp: tuple[int, ...] | None = None
        self._listed: Mapping[str, bool] = self._fixed
        if self._path is not None:
            self._stamp = _stamp(self._path)
            self._listed = self._fixed | read_engines(self._path)
        if not self._listed:
            raise CannotStart(f"{path} names no engine; write one address a line, such as http://10.0.0.5:8100")
        self.engines = self._expanded()

    def refresh(self) -> bool:
        """Read the file and resolve the names again; returns whether the engines are other ones. Blocks.

        A file that cannot be read or has a mistake, and a name that cannot be resolved, leave theirs as they were.
        """
        if self._path is not None:
            self._read(self._path)
        before, self.engines = self.engines, self._expanded()
        return self.engines != before

    def _read(self, path: Path) -> None:
        try:
            stamp = _stamp(path)
        except CannotStart as error:
            if self._stamp is not None:
                logger.warning("the list of engines stays as it was: %s", error)
            self._stamp = None
            return
        if stamp == self._stamp:
            return
        self._stamp, self._resolved_s = stamp, 0.0
        try:
            self._listed = self._fixed | read_engines(path)
        except CannotStart as error:
            logger.warning("the list of engines stays as it was: %s", error)

    def _expanded(self) -> dict[str, bool]:
        """The engines, names resolved."""
        if time.monotonic() - self._resolved_s >= RESOLVE_INTERVAL_S:
            self._resolved_s = time.monotonic()
            names = [address for address in self._listed if address.startswith(DNS)]
            self._resolved = {address: self._engines_at(address) for address in names}
        engines: dict[str, bool] = {}
        for address, is_drained in self._listed.items():
            engines |= dict.fromkeys(self._resolved.get(address, [address]), is_drained)
        return engines

    def _engines_at(self, address: str) -> list[str]:
        parts = urlsplit(address)
        port = parts.port or 80
        try:
            hosts = self._resolve(parts.hostname or "", port)
        except (OSError, UnicodeError) as error:  # the latter for parts of a name that are too long
            known = self._resolved.get(address, [])
            if known or address not in self._resolved:
                logger.warning("%s cannot be resolved: %s; engines known by it: %d", address, error, len(known))
            return known
        return [f"http://{f'[{host}]' if ':' in host else host}:{port}{parts.path}" for host in hosts]


def read_engines(path: Path) -> dict[str, bool]:
    """The addresses in a file, and whether each is to be drained. Raises CannotStart."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"cannot read the list of engines {path}: {error}") from error
    found: dict[str, bool] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 2 or words[1:] not in ([], [DRAIN]):
            raise CannotStart(f"{path}, line {number}: write an address, and `{DRAIN}` behind it or nothing")
        found[address_of(words[0])] = len(words) == 2
    if len(found) > MAX_ENGINES:
        raise CannotStart(f"{path} names {len(found)} engines; at most {MAX_ENGINES}")
    return found


def address_of(text: str) -> str:
    """The address in its one form. Raises CannotStart for anything but http(s)://HOST[:PORT][/PATH] and dns+http://..."""
    try:
        parts = urlsplit(text.strip())
        is_address = parts.scheme in ("http", "https", DNS) and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.query or parts.fragment or parts.username is not None:
        raise CannotStart(f"{text} is no address of an engine; write it as http://10.0.0.5:8100")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError as error:
        raise CannotStart(f"cannot read the list of engines {path}: {error}") from error
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
