"""Device memory: host-to-device copies that do not synchronize, and torch's out-of-memory errors as MemoryError."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU_OUT_OF_MEMORY = "can't allocate memory"  # torch's CPU allocator raises a plain RuntimeError with this in its text


def to_device(numbers: NDArray[Any] | Sequence[int], device: torch.device) -> Tensor:
    """Copy numbers to the device, in their own dtype; on the CPU the result shares their memory.

    Copies to a GPU go through pinned memory: a copy from pageable memory waits for all work queued before it.
    """
    host = torch.from_numpy(np.ascontiguousarray(numbers))
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


@contextmanager
def as_memory_error() -> Iterator[None]:
    """Raise MemoryError where the code inside runs out of memory, on a GPU or on the CPU; other errors pass through."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        if CPU_OUT_OF_MEMORY not in str(error):
            raise
        raise MemoryError(str(error)) from error
