"""A container's limit is the memory there is, wherever above this process it is set."""

import mmap
from pathlib import Path

import psutil
import pytest

from server.memory.host import Group, HostProbe, Paths, limited_groups
from server.runtime.heap import trim_heap

MIB = 1 << 20


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text)


def paths(root: Path, membership: str) -> Paths:
    (root / "membership").write_text(membership)
    (root / "cgroup").mkdir(exist_ok=True)
    return Paths(root / "cgroup", root / "membership")


def test_version_2_reads_every_group_up_to_the_root(tmp_path: Path) -> None:
    """Kubernetes sets the limit on the pod's group, above the container's."""
    root = tmp_path / "cgroup"
    write_group(
        root / "pod", max=f"{600 * MIB}\n", current=f"{500 * MIB}\n", stat=f"anon 1\ninactive_file {100 * MIB}\n"
    )
    write_group(root / "pod/box", max="max\n", current=f"{300 * MIB}\n")
    found = limited_groups(paths(tmp_path, "0::/pod/box\n"))
    assert found == [Group(600 * MIB, 400 * MIB, 100 * MIB)]


def test_version_2_nested_limits_and_high(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write_group(root / "pod", max=f"{600 * MIB}", high="max", current=f"{10 * MIB}")
    write_group(root / "pod/box", max=f"{800 * MIB}", high=f"{700 * MIB}", current=f"{10 * MIB}")
    found = limited_groups(paths(tmp_path, "0::/pod/box\n"))
    assert [group.limit for group in found] == [700 * MIB, 600 * MIB]
    reading = HostProbe(paths(tmp_path, "0::/pod/box\n")).read()[0]
    assert (reading.source, reading.total, reading.free) == ("cgroup", 600 * MIB, 590 * MIB)
    assert reading.own is not None and reading.own > MIB


def test_version_1_says_no_limit_with_a_huge_number(tmp_path: Path) -> None:
    root = tmp_path / "cgroup" / "memory"
    write_group(root, limit_in_bytes="9223372036854771712\n", usage_in_bytes=f"{900 * MIB}\n")
    write_group(
        root / "docker/abc",
        limit_in_bytes=f"{512 * MIB}\n",
        usage_in_bytes=f"{300 * MIB}\n",
        stat=f"inactive_file 7\ntotal_inactive_file {50 * MIB}\n",
    )
    found = limited_groups(paths(tmp_path, "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"))
    assert found == [Group(512 * MIB, 250 * MIB, 50 * MIB)]


def test_files_that_this_process_has_mapped_are_not_free_as_well(tmp_path: Path) -> None:
    """Weights in the page cache would be counted as held and as free, and the KV cache be made larger by them."""
    stat = f"anon 1\ninactive_file {100 * MIB}\nactive_file {200 * MIB}\n"
    write_group(tmp_path / "cgroup", max=f"{600 * MIB}", current=f"{500 * MIB}", stat=stat)
    (group,) = limited_groups(paths(tmp_path, "0::/\n"))
    assert (group.used, group.cached) == (200 * MIB, 300 * MIB)
    assert group.free(mapped=0) == 400 * MIB
    assert group.free(mapped=250 * MIB) == 150 * MIB
    assert group.free(mapped=700 * MIB) == 100 * MIB  # mapped, but charged to another group
    mapped = psutil.Process().memory_info().shared
    assert HostProbe(paths(tmp_path, "0::/\n")).read()[0].free == group.free(mapped)


def test_a_path_from_outside_the_container_means_the_mount(tmp_path: Path) -> None:
    """Without a cgroup namespace the membership names a path that only the host has."""
    write_group(tmp_path / "cgroup", max=f"{256 * MIB}", current="0")
    assert limited_groups(paths(tmp_path, "0::/system.slice/docker-abc.scope\n")) == [Group(256 * MIB, 0)]


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write_group(root / "unified/a", max="max", current="1")
    write_group(root / "memory/a", limit_in_bytes=f"{128 * MIB}", usage_in_bytes="0")
    assert limited_groups(paths(tmp_path, "4:memory:/a\n0::/a\n")) == [Group(128 * MIB, 0)]


@pytest.mark.parametrize("membership", ["", "nonsense\n", "4:memory:/../../etc\n0::\n"])
def test_without_usable_groups_the_host_counts(tmp_path: Path, membership: str) -> None:
    reading = HostProbe(paths(tmp_path, membership)).read()[0]
    assert (reading.source, reading.total) == ("host", psutil.virtual_memory().total)
    assert HostProbe(Paths(tmp_path / "none", tmp_path / "none")).read()[0].source == "host"


def test_own_memory_follows_what_this_process_holds() -> None:
    probe = HostProbe()

    def own() -> int:
        return probe.read()[0].own or 0

    trim_heap()  # what earlier tests left must not be given back in the middle
    before = own()
    with mmap.mmap(-1, 64 * MIB) as held:
        held.write(bytes(64 * MIB))
        trim_heap()
        assert own() - before > 50 * MIB
    assert own() < before + 14 * MIB
