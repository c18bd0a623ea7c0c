"""GPU readings through NVML; the only module that imports pynvml.

The model runs on one of the devices that CUDA shows, in CUDA's order; NVML lists all cards in the order of the bus.
So a device is found by its UUID: torch's if known, else from CUDA_VISIBLE_DEVICES.
If NVML is missing, broken or denied, one warning is logged and torch's figures are used instead.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import pynvml

from server.memory.cuda_order import Card, Slice, same_device, visible_uuids
from server.messages import DeviceReading

log = logging.getLogger(__name__)
DETAILS_EVERY = 10  # readings; temperature, health and the like change slowly and cost more
RETRY_EVERY = 50  # readings; a driver that was reset may answer again
HARMLESS_XIDS = (13, 31, 43, 45, 68, 109)  # caused by programs; NVIDIA's device plugin ignores the same
THROTTLES: Mapping[int, str] = {
    pynvml.nvmlClocksEventReasonSwPowerCap: "power cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "thermal",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hardware thermal",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
}
UNAVAILABLE = (  # a figure that this card, driver or user cannot read; others may be available
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_NO_DATA,
)


@dataclass(frozen=True, slots=True)
class TorchFigures:
    """One device as torch and the CUDA runtime see it, in bytes."""

    total: int
    free: int
    reserved: int  # by torch's allocator: handed out or cached


@dataclass(frozen=True, slots=True)
class DeviceSelector:
    """Identification of the model's device. `figures` is None if torch does not run on a GPU."""

    index: int = 0  # torch's number of it
    uuid: str = ""  # torch's, with or without a prefix
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    figures: Callable[[], TorchFigures] | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A device as NVML knows it; `card` is the whole card's handle, the same as `handle` without MIG."""

    handle: Any
    card: Any
    uuid: str
    name: str


@dataclass(frozen=True, slots=True)
class Details:
    """Figures that are read less often."""

    utilisation: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


class GpuProbe:
    """Reads the visible GPUs; `read` does not raise on errors of a card or driver."""

    def __init__(self, selector: DeviceSelector) -> None:
        self._selector = selector
        self._devices: list[Device] = []
        self._details: dict[str, Details] = {}
        self._xids: dict[str, int] = {}
        self._events: Any = None
        self._pid = psutil.Process().pid
        self._reads = 0
        self._fault = ""
        self._last: tuple[DeviceReading, ...] = ()

    def read(self) -> tuple[DeviceReading, ...]:
        """The model's device first. Without NVML: torch's figures, or else the last reading, marked unhealthy."""
        self._reads += 1
        try:
            if not self._devices and (self._reads - 1) % RETRY_EVERY == 0:
                self._open()
            if self._devices:
                self._collect_xids()
                self._last = tuple(self._read_device(device) for device in self._devices)
                return self._last
        except (pynvml.NVMLError, LookupError) as error:
            self._give_up(str(error))
        return self._without_nvml()

    def _open(self) -> None:
        """Find the visible devices; raises NVMLError, or LookupError where the model's is not among them."""
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(place) for place in range(pynvml.nvmlDeviceGetCount())]
        known: dict[str, Device] = {}
        cards = [_describe(handle, known) for handle in handles]
        shown = visible_uuids(cards, self._selector.visible)
        if self._selector.uuid:
            ours = same_device(cards, self._selector.uuid)
        else:
            ours = shown[self._selector.index] if self._selector.index < len(shown) else None
        if ours is None:
            raise LookupError(f"NVML lists no device {self._selector.uuid or self._selector.index} that CUDA shows")
        self._devices = [known[ours], *(known[uuid] for uuid in shown if uuid != ours)]
        self._watch_xids(handles)
        if self._fault:
            log.info("NVML answers again")
            self._fault = ""

    def _give_up(self, fault: str) -> None:
        if fault != self._fault:
            instead = "torch's own figures are" if self._selector.figures else "the last figures are"
            log.warning("the graphics card's state cannot be read (NVML: %s); %s used instead", fault, instead)
        self._fault, self._devices, self._events = fault, [], None

    def _without_nvml(self) -> tuple[DeviceReading, ...]:
        note = f"NVML: {self._fault}"
        lost = bool(self._last)  # it answered before: the card or its driver has failed
        if self._selector.figures is None:
            return tuple(_mark(reading, note) for reading in self._last)
        figures = self._selector.figures()
        name = self._last[0].name if self._last else f"cuda:{self._selector.index}"
        reading = DeviceReading(
            name=name,
            uuid=self._selector.uuid,
            source="torch",
            total=figures.total,
            used=figures.total - figures.free,
            free=figures.free,
            own=figures.reserved,
            healthy=not lost,
            note=note,
        )
        return (reading, *(_mark(other, note) for other in self._last[1:]))

    def _read_device(self, device: Device) -> DeviceReading:
        memory, own, processes = self._read_memory(device)
        if device.uuid not in self._details or self._reads % DETAILS_EVERY == 0:
            self._details[device.uuid] = _read_details(device)
        details = self._details[device.uuid]
        xid = self._xids.get(_uuid(device.card))
        faults = (*details.faults, *([f"Xid {xid}"] if xid else []))
        return DeviceReading(
            name=device.name,
            uuid=device.uuid,
            source="nvml",
            total=int(memory.total),
            used=int(memory.used),
            free=int(memory.free),
            own=own,
            utilisation=details.utilisation,
            temperature_c=details.temperature_c,
            throttled=details.throttled,
            healthy=not faults,
            note=", ".join(faults),
            processes=processes,
        )

    def _read_memory(self, device: Device) -> tuple[Any, int, tuple[tuple[int, int], ...]]:
        """Memory of the device, of this process and of all processes.

        Torch's figure comes before the list of processes: in a container NVML lists other process ids, or none.
        It is read on both sides of NVML's, so that memory allocated in between is not attributed to another process.
        """
        ours = device is self._devices[0]
        figures = self._selector.figures if ours else None
        for _ in range(3):
            before = figures().reserved if figures else 0
            memory = pynvml.nvmlDeviceGetMemoryInfo(device.handle)
            if figures is None or figures().reserved == before:
                break
        running = _query(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(device.handle)) or []
        processes = sorted(((int(p.pid), int(p.usedGpuMemory or 0)) for p in running), key=lambda pair: -pair[1])
        own = before if figures else sum(taken for pid, taken in processes if pid == self._pid)
        return memory, own, tuple(processes)

    def _watch_xids(self, handles: Sequence[Any]) -> None:
        """Subscribe to the cards' Xid events; many drivers refuse it in containers, then there are none."""
        self._events = _query(pynvml.nvmlEventSetCreate)
        if self._events is None:
            return
        for handle in handles:
            _query(partial(pynvml.nvmlDeviceRegisterEvents, handle, pynvml.nvmlEventTypeXidCriticalError, self._events))

    def _collect_xids(self) -> None:
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
            except pynvml.NVMLError as error:
                if error.value in (pynvml.NVML_ERROR_TIMEOUT, *UNAVAILABLE):
                    return
                raise
            if event.eventData not in HARMLESS_XIDS:
                self._xids[_uuid(event.device)] = int(event.eventData)
                log.warning("the graphics card reports Xid %d", event.eventData)


def _describe(handle: Any, known: dict[str, Device]) -> Card:
    """The card and its MIG slices; notes each of them in `known` by UUID."""
    uuid, name = _uuid(handle), str(pynvml.nvmlDeviceGetName(handle))
    known[uuid] = Device(handle, handle, uuid, name)
    slices = []
    mode = _query(lambda: pynvml.nvmlDeviceGetMigMode(handle))
    if mode and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
        for place in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            except pynvml.NVMLError_NotFound:
                continue  # places may be empty
            instance = pynvml.nvmlDeviceGetGpuInstanceId(part), pynvml.nvmlDeviceGetComputeInstanceId(part)
            slices.append(Slice(_uuid(part), f"MIG-{uuid}/{instance[0]}/{instance[1]}"))
            known[slices[-1].uuid] = Device(part, handle, slices[-1].uuid, f"{name} MIG {instance[0]}/{instance[1]}")
    return Card(uuid, tuple(slices))


def _read_details(device: Device) -> Details:
    """Utilisation, temperature, throttling and memory faults, None if unavailable."""
    card = device.card
    rates = _query(lambda: pynvml.nvmlDeviceGetUtilizationRates(device.handle))
    degrees = _query(lambda: pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU))
    reasons = _query(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(card)) or 0
    ecc = _query(
        lambda: pynvml.nvmlDeviceGetTotalEccErrors(
            card, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        )
    )
    remapped = _query(lambda: pynvml.nvmlDeviceGetRemappedRows(card)) or (0, 0, 0, 0)
    faults = []
    if ecc:
        faults.append(f"{ecc} uncorrected memory errors")
    if remapped[3]:
        faults.append("a memory row could not be remapped")
    return Details(
        utilisation=None if rates is None else rates.gpu / 100,
        temperature_c=None if degrees is None else float(degrees),
        throttled=tuple(name for bit, name in THROTTLES.items() if reasons & bit),
        faults=tuple(faults),
    )


def _query(call: Callable[[], Any]) -> Any:
    """Return the answer, or None if this figure is unavailable; a lost device raises NVMLError."""
    try:
        return call()
    except pynvml.NVMLError as error:
        if error.value in UNAVAILABLE:
            return None
        raise


def _uuid(handle: Any) -> str:
    return str(pynvml.nvmlDeviceGetUUID(handle))


def _mark(reading: DeviceReading, note: str) -> DeviceReading:
    """An outdated reading, marked unhealthy."""
    return DeviceReading(
        name=reading.name,
        uuid=reading.uuid,
        source=reading.source,
        total=reading.total,
        used=reading.used,
        free=reading.free,
        own=reading.own,
        healthy=False,
        note=note,
    )
