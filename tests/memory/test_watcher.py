"""The device is looked at beside the steps."""

import threading

from server.memory.watcher import Watcher
from server.messages import DeviceReading


class SlowProbe:
    """Blocks on its second look until the test lets it go on."""

    def __init__(self) -> None:
        self.looks = 0
        self.go_on = threading.Event()
        self.waiting = threading.Event()

    def read(self) -> tuple[DeviceReading, ...]:
        self.looks += 1
        if self.looks == 2:
            self.waiting.set()
            self.go_on.wait(10)
        return (DeviceReading("card", "", "nvml", self.looks, 0, 0),)


def test_a_driver_that_hangs_does_not_delay_whoever_asks() -> None:
    probe = SlowProbe()
    watcher = Watcher(probe, interval_s=0.001)
    assert probe.waiting.wait(10)
    assert watcher.latest()[0].total == 1 and watcher.latest() is watcher.latest()
    probe.go_on.set()
    for _ in range(1000):
        if watcher.latest()[0].total > 2:
            break
        threading.Event().wait(0.01)
    assert watcher.latest()[0].total > 2
    watcher.close()
    looks = probe.looks
    threading.Event().wait(0.05)
    assert probe.looks == looks
