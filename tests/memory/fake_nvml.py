"""Builds the fake NVML library and writes the figures it tells; structures as in fake_nvml.c."""

import ctypes
import mmap
import subprocess
from pathlib import Path

CALLING_PROCESS = 0xFFFFFFFF  # stands for the calling process
ENABLED, GIB = 1, 1 << 30
GPU_IS_LOST, NO_PERMISSION, DRIVER_NOT_LOADED = 15, 4, 9
LIBRARY = "libnvidia-ml.so.1"


class Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("bytes", ctypes.c_uint64)]


class Slice(ctypes.Structure):
    _fields_ = [
        ("uuid", ctypes.c_char * 96),
        ("instance", ctypes.c_uint32),
        ("compute", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
    ]


class Card(ctypes.Structure):
    _fields_ = [
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 64),
        *((name, ctypes.c_uint64) for name in ("total", "used", "throttle", "memory_errors")),
        *((name, ctypes.c_uint32) for name in ("fault", "utilisation", "temperature", "remap_failed")),
        *((name, ctypes.c_uint32) for name in ("xid", "mig", "num_slices", "num_processes")),
        ("slices", Slice * 4),
        ("processes", Process * 8),
    ]


class Figures(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("init_fault", "num_cards", "no_process_list", "reads")),
        ("cards", Card * 4),
    ]


class FakeNvml:
    """One folder with the library and its figures; what is set here is what the library tells from then on."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        source = Path(__file__).parent / "fake_nvml.c"
        command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{LIBRARY}", *options]
        subprocess.run([*command, "-o", str(folder / LIBRARY), str(source)], check=True)
        path = folder / "figures"
        path.write_bytes(bytes(ctypes.sizeof(Figures)))
        with path.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), 0)
        self.figures = Figures.from_buffer(self._mapped)

    @property
    def environment(self) -> dict[str, str]:
        """For the process that is to find this library instead of the driver's."""
        return {"LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML": str(self.folder / "figures")}

    def add_card(self, uuid: str, total: int, *, used: int = 0, own: int = 0, name: str = "Fake H1") -> Card:
        """A card behind those that are there; `own` of the used bytes belong to the process that asks."""
        card: Card = self.figures.cards[self.figures.num_cards]
        self.figures.num_cards += 1
        card.uuid, card.name, card.total, card.used = uuid.encode(), name.encode(), total, used
        card.temperature, card.utilisation = 55, 40
        if own:
            card.num_processes = 1
            card.processes[0].pid, card.processes[0].bytes = CALLING_PROCESS, own
        return card

    def take(self, card: Card, num_bytes: int, pid: int = 4242) -> None:
        """Another process takes this much (a negative number: frees)."""
        card.used += num_bytes
        place = next((i for i in range(card.num_processes) if card.processes[i].pid == pid), card.num_processes)
        card.num_processes = max(card.num_processes, place + 1)
        card.processes[place].pid = pid
        card.processes[place].bytes += num_bytes
