"""The device is looked at beside the steps."""

import threading

import pytest

from server.memory.watcher import Watcher, is_pressing
from server.messages import DeviceReading


class SlowProbe:
    """Blocks on its second look until the test lets it go on."""

    def __init__(self) -> None:
        self.looks = 0
        self.finish_in_flight = threading.Event()
        self.waiting = threading.Event()

    def read(self) -> tuple[DeviceReading, ...]:
        self.looks += 1
        if self.looks == 2:
            self.waiting.set()
            self.finish_in_flight.wait(10)
        return (DeviceReading("card", "", "nvml", self.looks, 0, 0),)


def test_a_driver_that_hangs_delays_no_caller() -> None:
    probe = SlowProbe()
    watcher = Watcher(probe, interval_s=0.001)
    assert probe.waiting.wait(10)
    assert watcher.latest()[0].total == 1 and watcher.latest() is watcher.latest()
    probe.finish_in_flight.set()
    for _ in range(1000):
        if watcher.latest()[0].total > 2:
            break
        threading.Event().wait(0.01)
    assert watcher.latest()[0].total > 2
    watcher.close()
    looks = probe.looks
    threading.Event().wait(0.05)
    assert probe.looks == looks


class FailingProbe:
    """Raises at every reading but the first, until it is repaired."""

    def __init__(self) -> None:
        self.reads = 0
        self.is_repaired = False

    def read(self) -> tuple[DeviceReading, ...]:
        self.reads += 1
        if self.reads > 1 and not self.is_repaired:
            raise RuntimeError("the driver is gone")
        return (DeviceReading("card", "", "nvml", self.reads, 0, 0),)


def test_a_probe_that_raises_is_read_again() -> None:
    """One exception ended the thread, and the guard judged the same reading for ever."""
    probe = FailingProbe()
    watcher = Watcher(probe, interval_s=0.001)
    for _ in range(200):
        if probe.reads >= 5:
            break
        threading.Event().wait(0.01)
    assert probe.reads >= 5
    assert watcher.latest()[0].total == 1
    probe.is_repaired = True
    for _ in range(1000):
        if watcher.latest()[0].total > 1:
            break
        threading.Event().wait(0.01)
    assert watcher.latest()[0].total > 1
    watcher.close()


@pytest.mark.parametrize(
    ("free_before", "free_now", "pressing"),
    [(500, 500, False), (500, 495, False), (500, 480, True), (480, 500, False), (99, 99, True), (90, 99, True)],
)
def test_it_looks_more_often_while_memory_is_short_or_being_taken(
    free_before: int, free_now: int, pressing: bool
) -> None:
    """A tenth of a second is enough to take 100 MiB of a container's last 150."""
    before, now = (DeviceReading("main memory", "", "cgroup", 1000, 0, free) for free in (free_before, free_now))
    assert is_pressing(before, now) is pressing
