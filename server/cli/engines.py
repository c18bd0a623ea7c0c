"""`toolwire engines`: the engines of a running server, and changes of the file that it reads them from."""

import argparse
import json
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clients.terminal import printable
from server.backends.engine_list import DRAIN, address_of, read_engines
from server.errors import CannotStart

TIMEOUT_S = 5.0
COLUMNS = ("url", "kind", "state", "requests", "routed", "running", "waiting", "cache_use", "detail")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="toolwire engines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("list", help="the engines of a running server")
    show.add_argument("--url", default="http://127.0.0.1:8000", help="the server's address (default: %(default)s)")
    show.add_argument("--key", default="", help="its monitoring key, or an API key")
    show.add_argument("--json", action="store_true", help="as the server answers it")
    for name, text in (
        ("add", "use an engine, or use a drained one again"),
        ("drain", "give an engine no new request"),
        ("remove", "the same, and forget it when its replies have ended"),
    ):
        change = commands.add_parser(name, help=text)
        change.add_argument("address", help="http://HOST:PORT")
        change.add_argument("--file", required=True, type=Path, help="the server's --engines-file")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            show_engines(options.url, options.key, as_json=options.json)
        else:
            change_file(options.file, options.command, address_of(options.address))
    except CannotStart as error:
        print(f"toolwire: {error}", file=sys.stderr)
        return 2
    return 0


def show_engines(url: str, key: str, *, as_json: bool) -> None:
    """Print the engines of the server at this address. Raises CannotStart."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/engines", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            text = reply.read().decode()
            engines: list[Mapping[str, Any]] = json.loads(text)["data"]
    except urllib.error.HTTPError as error:
        hint = {401: "; name a key with --key", 404: "; it computes tokens itself, without engines elsewhere"}
        raise CannotStart(f"{url} answers {error.code}{hint.get(error.code, '')}") from error
    except (OSError, ValueError, KeyError) as error:
        raise CannotStart(f"{url} cannot be asked for its engines: {error}") from error
    if as_json:
        print(text)
        return
    rows = [COLUMNS, *(tuple(printable(_shown(engine.get(name, ""))) for name in COLUMNS) for engine in engines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def change_file(path: Path, command: str, address: str) -> None:
    """Add, drain or remove an engine, and replace the file in one step: a server never reads half of it."""
    engines = read_engines(path) if path.exists() else {}
    if command == "remove":
        if engines.pop(address, None) is None:
            raise CannotStart(f"{path} does not name {address}")
    elif command == "drain":
        if address not in engines:
            raise CannotStart(f"{path} does not name {address}")
        engines[address] = True
    else:
        engines[address] = False
    lines = "".join(f"{one} {DRAIN}\n" if is_drained else f"{one}\n" for one, is_drained in engines.items())
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(lines)
        if path.exists():
            Path(file.name).chmod(path.stat().st_mode & 0o777)
        Path(file.name).replace(path)
    except OSError as error:
        raise CannotStart(f"cannot write {path}: {error}") from error


def _shown(value: object) -> str:
    return f"{value:.0%}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
