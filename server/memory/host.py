"""Main memory of this process: the host's through psutil, and the limits of every enclosing cgroup.

    total = the smallest of host and limits        free = the smallest of what each still has

A container's limit is often set on a group above the one that the process is in, so all groups up to the root are
read. Page cache is free, since the kernel drops it before memory runs out; but what this process has mapped of it,
weights and libraries, counts as its own, and so is not free a second time.

Version 2 keeps `memory.max`, `memory.current` and `memory.stat`; version 1 `memory.limit_in_bytes`,
`memory.usage_in_bytes` and `memory.stat`. See the kernel's cgroup-v2 and cgroup-v1/memory documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from server.messages import DeviceReading

UNLIMITED = 1 << 60  # version 1 says "no limit" with a number near 2**63


@dataclass(frozen=True, slots=True)
class Paths:
    """File system locations of cgroups; tests use their own."""

    groups: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Group:
    """One limited cgroup, in bytes; `used` without the page cache, which goes first when memory is short."""

    limit: int
    used: int
    cached: int = 0  # page cache

    def free(self, mapped: int) -> int:
        """What is left, of which a process that has `mapped` bytes of files in memory may count nothing twice."""
        return max(0, self.limit - self.used - min(mapped, self.cached))


class HostProbe:
    """Probe of main memory within the limits of this process."""

    def __init__(self, paths: Paths | None = None) -> None:
        self._paths = paths or Paths()
        self._process = psutil.Process()

    def read(self) -> tuple[DeviceReading, ...]:
        """One reading; `own` is this process's resident memory."""
        host, own = psutil.virtual_memory(), self._process.memory_info()
        mapped = getattr(own, "shared", 0)  # of files; Linux only
        groups = limited_groups(self._paths)
        total = min([host.total, *(group.limit for group in groups)])
        free = min([max(0, host.available - mapped), *(group.free(mapped) for group in groups)])
        reading = DeviceReading(
            name="main memory" if total == host.total else "main memory, limited by a cgroup",
            uuid="",
            source="host" if total == host.total else "cgroup",
            total=total,
            used=total - free,
            free=free,
            own=own.rss,
        )
        return (reading,)


def limited_groups(paths: Paths) -> list[Group]:
    """The groups around this process that have a limit, innermost first; none where there are no cgroups."""
    return [group for folder in _folders(paths) if (group := _read_group(folder)) is not None]


def _folders(paths: Paths) -> Iterator[Path]:
    """This process's memory groups and all groups above, for both versions."""
    try:
        lines = paths.membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if "memory" in controllers.split(","):
            yield from _upwards(paths.groups / "memory", inside)
        elif not controllers:
            unified = paths.groups / "unified"  # where both versions are mounted side by side
            yield from _upwards(unified if unified.is_dir() else paths.groups, inside)


def _upwards(mount: Path, inside: str) -> Iterator[Path]:
    """The group and its parents up to the mount. A path outside the container becomes the mount."""
    folder = mount / inside.strip("/")
    if not folder.is_dir() or ".." in folder.parts:
        folder = mount
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder


def _read_group(folder: Path) -> Group | None:
    """The group's limit and use, or None if it has no limit that can be read."""
    limits = [
        limit
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        if (limit := _number(folder / name)) is not None and limit < UNLIMITED
    ]
    used = _number(folder / "memory.current")
    if used is None:
        used = _number(folder / "memory.usage_in_bytes")
    if not limits or used is None:
        return None
    cached = min(used, _page_cache(folder / "memory.stat"))
    return Group(min(limits), used - cached, cached)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _page_cache(path: Path) -> int:
    """Page cache, which the kernel drops first; version 1 counts the groups below under `total_`."""
    try:
        pairs = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return 0
    figures = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    names = ("inactive_file", "active_file")
    return sum(figures.get(f"total_{name}", figures.get(name, 0)) for name in names)
