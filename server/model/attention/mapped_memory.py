"""Device memory whose end can be returned and taken again, while its addresses stay the same.

CUDA's virtual memory management (driver API, "Virtual Memory Management"): a range of addresses is reserved once, and
chunks of physical memory are mapped to its begin. Tensors and captured graphs over the range stay valid, nothing is
copied, and what is unmapped is free for other processes at once. torch's own allocator knows nothing of this memory.
"""

import importlib.util
import logging
import threading
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MOST_CHUNKS = 256  # of a range, about; a chunk is a multiple of what the device demands, 2 MiB in general

_lock = threading.Lock()
_mapped_bytes: dict[int, int] = {}  # by device index


class MappedMemory:
    """`num_bytes` of addresses, with memory behind as many as `resize` has asked for. Accessed through `tensor`."""

    def __init__(self, num_bytes: int, device: int, driver: Any) -> None:
        """`driver`: the module `cuda.bindings.driver`. Raises RuntimeError where addresses cannot be reserved."""
        self._driver, self._device = driver, device
        self._properties = properties = driver.CUmemAllocationProp()
        properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = device
        smallest = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        granularity: int = self._call(driver.cuMemGetAllocationGranularity, properties, smallest)
        self._chunk: int = max(1, num_bytes // (MOST_CHUNKS * granularity)) * granularity
        self._num_bytes = num_bytes
        self._range_bytes = -(-num_bytes // self._chunk) * self._chunk
        self._handles: list[Any] = []
        self._address = int(self._call(driver.cuMemAddressReserve, self._range_bytes, 0, 0, 0))

    @property
    def mapped(self) -> int:
        """Bytes of memory behind the range's begin."""
        return len(self._handles) * self._chunk

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The whole range as bytes; tensors over it keep this object alive."""
        return {"shape": (self._num_bytes,), "typestr": "|u1", "data": (self._address, False), "version": 3}

    def tensor(self) -> Tensor:
        """The whole range, uint8 [num_bytes]; only its mapped begin may be accessed, which must not be empty."""
        return torch.as_tensor(self, device=torch.device("cuda", self._device))

    def resize(self, num_bytes: int) -> None:
        """Have memory behind the first `num_bytes`; no kernel may be using what is returned.

        Raises torch.OutOfMemoryError, and then there is as much as before.
        """
        count, before = -(-num_bytes // self._chunk), len(self._handles)
        try:
            while len(self._handles) < count:
                self._map_next()
            if count > before:
                self._allow_access(before, count)
        except torch.OutOfMemoryError:
            self._unmap_from(before)
            raise
        self._unmap_from(count)

    def close(self) -> None:
        """Return everything; nothing may access the range any more."""
        if self._address:
            self._unmap_from(0)
            self._call(self._driver.cuMemAddressFree, self._address, self._range_bytes)
            self._address = 0

    def __del__(self) -> None:
        """Runs when the last tensor over the range is gone; kernels may still be using it."""
        if getattr(self, "_address", 0) and torch.cuda.is_available():
            torch.cuda.synchronize(self._device)
            self.close()

    def _map_next(self) -> None:
        driver, place = self._driver, self._address + self.mapped
        handle = self._call(driver.cuMemCreate, self._chunk, self._properties, 0)
        try:
            self._call(driver.cuMemMap, place, self._chunk, 0, handle, 0)
        except BaseException:
            self._call(driver.cuMemRelease, handle)
            raise
        self._handles.append(handle)
        _count(self._device, self._chunk)

    def _allow_access(self, begin: int, end: int) -> None:
        access = self._driver.CUmemAccessDesc()
        access.location = self._properties.location
        access.flags = self._driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        place, size = self._address + begin * self._chunk, (end - begin) * self._chunk
        self._call(self._driver.cuMemSetAccess, place, size, [access], 1)

    def _unmap_from(self, first: int) -> None:
        while len(self._handles) > first:
            self._call(self._driver.cuMemUnmap, self._address + self.mapped - self._chunk, self._chunk)
            self._call(self._driver.cuMemRelease, self._handles.pop())
            _count(self._device, -self._chunk)

    def _call(self, function: Any, *arguments: Any) -> Any:
        """The function's result, if it has one. Raises RuntimeError, or torch.OutOfMemoryError."""
        status, *results = function(*arguments)
        if status == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(f"CUDA out of memory. {function.__name__} of {self._chunk} bytes")
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{function.__name__}: {status.name}")
        return results[0] if results else None


def open_mapped(num_bytes: int, count: int, device: torch.device) -> list[MappedMemory]:
    """Reserve `count` ranges; an empty list where the device or the installation has no such memory."""
    if device.type != "cuda" or importlib.util.find_spec("cuda") is None:
        return []
    try:
        from cuda.bindings import driver

        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.synchronize(index)  # the driver's calls need torch's context
        status, is_supported = driver.cuDeviceGetAttribute(
            driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED, index
        )
        if status != driver.CUresult.CUDA_SUCCESS or not is_supported:
            return []
        ranges = [MappedMemory(num_bytes, index, driver) for _ in range(count)]
        ranges[0].resize(1)
        ranges[0].resize(0)  # it can be mapped
        return ranges
    except (ImportError, RuntimeError) as error:
        log.warning("the KV cache is resized by copying: %s", str(error).splitlines()[0])
        return []


def mapped_bytes(device: torch.device) -> int:
    """Bytes that this process has mapped on a device, beside those of torch's allocator."""
    if device.type != "cuda":
        return 0
    return _mapped_bytes.get(torch.cuda.current_device() if device.index is None else device.index, 0)


def _count(device: int, change: int) -> None:
    with _lock:
        _mapped_bytes[device] = _mapped_bytes.get(device, 0) + change
