"""Host-to-device copies that do not synchronize, times on a GPU, and out-of-memory errors as MemoryError."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EARLY_CAPABILITY = (9, 0)  # from which on a kernel can be launched before the one before it has ended
TIMED_CALLS = 20
EARLY_DRIVER = 12030  # CUDA 12.3: also in graphs
OUT_OF_MEMORY = (  # in the text of a plain RuntimeError
    "can't allocate memory",  # torch's CPU allocator
    "CUDA error: out of memory",  # the driver, which loads kernels and uploads graphs when they are first used
    "[CUDA]: out of memory",  # the same through Triton
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def to_device(numbers: NDArray[Any] | Sequence[int], device: torch.device) -> Tensor:
    """Copy numbers to the device, in their own dtype; on the CPU the result is a view of them.

    Copies to a GPU go through pinned memory: a copy from pageable memory waits for all work queued before it.
    """
    host = torch.from_numpy(np.ascontiguousarray(numbers))
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


class StagedBuffer:
    """An int32 buffer at a fixed device address, filled from the host without waiting for the device.

    Two pinned staging buffers alternate: one may be filled while the copy of the other is still queued. The caller has
    read back the result of a step before it fills the buffer for the step after next.
    """

    def __init__(self, part_sizes: Sequence[int], device: torch.device) -> None:
        """`part_sizes`: elements of each part of the buffer."""
        self._bounds = np.cumsum(part_sizes[:-1])
        length, on_cuda = sum(part_sizes), device.type == "cuda"
        self._staging = [torch.zeros(length, dtype=torch.int32, pin_memory=on_cuda) for _ in range(2)]
        self._buffer = torch.zeros(length, dtype=torch.int32, device=device)
        self.parts = torch.tensor_split(self._buffer, self._bounds.tolist())  # on the device

    def begin(self) -> list[NDArray[np.int32]]:
        """The parts of the next staging buffer, to be written."""
        self._staging.reverse()
        return np.split(self._staging[0].numpy(), self._bounds)

    def upload(self, last_used: int) -> None:
        """Queue the copy of the staged parts, of the last part its first `last_used` elements."""
        used = int(self._bounds[-1]) + last_used
        self._buffer[:used].copy_(self._staging[0][:used], non_blocking=True)


@contextmanager
def as_memory_error() -> Iterator[None]:
    """Raise MemoryError where the code inside runs out of memory, on a GPU or on the CPU; other errors pass through."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        if not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        raise MemoryError(str(error)) from error


@cache
def launches_early(device: torch.device) -> bool:
    """Whether kernels on this device may be launched before the one before them has ended (`gdc_wait` in them)."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < EARLY_CAPABILITY:
        return False
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value >= EARLY_DRIVER


def time_us(compute: Callable[[], object]) -> float:
    """Microseconds that a GPU takes for one of TIMED_CALLS calls, after one that is not timed."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    compute()
    begin.record()
    for _ in range(TIMED_CALLS):
        compute()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return 1000 * milliseconds / TIMED_CALLS
