"""A PostgreSQL server of the test's own, from Debian's package `postgresql`, on a socket in a temporary folder."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Debian keeps the programs of each version in a folder of their own.
FOLDERS = (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/bin"))
UNPRIVILEGED = "nobody"  # postgres refuses to run as root


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server; `url` names its one database."""

    url: str
    data: Path
    folder: Path

    def stop(self) -> None:
        """End it as a crash would."""
        _run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def start(self) -> None:
        """Start it, or start it again."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        _run("pg_ctl", "-D", str(self.data), "-w", "-o", options, "-l", str(self.folder / "log"), "start")


def is_installed() -> bool:
    """Whether the programs are there."""
    return all(_program(name) for name in ("initdb", "pg_ctl", "postgres"))


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A started server, removed with all its data afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="toolwire-pg-"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, UNPRIVILEGED)
        data = folder / "data"
        _run("initdb", "-D", str(data), "-A", "trust", "-U", "toolwire", "--no-sync")
        server = Postgres(f"postgresql://toolwire@/postgres?host={folder}", data, folder)
        server.start()
        try:
            yield server
        finally:
            if (data / "postmaster.pid").exists():
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _program(name: str) -> str:
    return next((str(folder / name) for folder in FOLDERS if (folder / name).exists()), "")


def _run(program: str, *arguments: str) -> None:
    command: Sequence[str] = [_program(program), *arguments]
    user = UNPRIVILEGED if os.getuid() == 0 else None
    done = subprocess.run(
        command, user=user, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/",
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{program}: {done.stderr.decode()}"
