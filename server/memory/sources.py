"""Which probe reads the memory that the model runs in."""

from typing import Literal

from server.errors import CannotStart
from server.memory.host import HostProbe
from server.memory.probe import GpuProbe, Wanted
from server.memory.watcher import Probe


def open_probe(device: str, choice: Literal["auto", "nvml", "host"], wanted: Wanted) -> Probe:
    """The probe for a model on `device` ("cpu" or "cuda"); `choice` overrules it, for a budget tied to another device.

    Raises CannotStart where NVML is asked for by name, gives nothing and torch has no figures either.
    """
    if choice == "host" or (choice == "auto" and device == "cpu"):
        return HostProbe()
    probe = GpuProbe(wanted)
    if not probe.read():
        raise CannotStart("--memory-probe nvml, but NVML shows no device; the warning above says why")
    return probe
