"""A cgroup of our own with a memory limit, for processes that shall share too little memory."""

import os
import time
from pathlib import Path
from types import TracebackType


class CannotLimit(Exception):
    """There is no memory controller here that may be written to."""


class Group:
    """Made on entering, removed on leaving when its processes have ended. Version 1 or 2, whichever is mounted."""

    def __init__(self, mount: Path = Path("/sys/fs/cgroup")) -> None:
        first = mount / "memory"
        self._is_first = first.is_dir() and (first / "memory.usage_in_bytes").exists()
        self._folder = (first if self._is_first else mount) / f"toolwire-soak-{os.getpid()}"

    def __enter__(self) -> "Group":
        try:
            self._folder.mkdir()
        except OSError as error:
            raise CannotLimit(str(error)) from error
        if not (self._folder / self._file("usage_in_bytes", "current")).exists():
            self._folder.rmdir()
            raise CannotLimit("the memory controller is not enabled for groups below the root")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in range(100):
            try:
                self._folder.rmdir()
                return
            except OSError:  # a process is still on its way out
                time.sleep(0.1)

    def add(self, process_id: int) -> None:
        """This process and all that it starts from now on."""
        (self._folder / "cgroup.procs").write_text(str(process_id))

    def limit(self, num_bytes: int) -> None:
        """The most that all of them may hold together."""
        (self._folder / self._file("limit_in_bytes", "max")).write_text(str(num_bytes))

    def used(self) -> int:
        """What they hold now, page cache aside."""
        lines = (self._folder / "memory.stat").read_text().splitlines()
        figures = dict(line.split() for line in lines)
        return int(figures.get("total_rss", figures.get("anon", "0")))

    def kills(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        path = self._folder / ("memory.oom_control" if self._is_first else "memory.events")
        figures = dict(line.split() for line in path.read_text().splitlines())
        return int(figures.get("oom_kill", "0"))

    def _file(self, first: str, second: str) -> str:
        return f"memory.{first if self._is_first else second}"
