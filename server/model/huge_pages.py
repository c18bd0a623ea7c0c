"""Memory in huge pages, where the system gives them, for weights that every step reads from one end to the other.

With pages of 4 KB the CPU looks up an address for each, and its prefetchers stop at their ends: four bits of one token
were multiplied at 32 GB/s instead of 39 (docs/internals/lablog.md).
"""

import contextlib
import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

AREA_BYTES = 32 << 20  # that tensors smaller than this share
ALIGNMENT = 64


class _Areas:
    """Places tensors one behind the other; an area is returned to the system with the last of its tensors."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._area = mmap.mmap(-1, mmap.PAGESIZE)
        self._used = mmap.PAGESIZE

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        count = math.prod(shape)
        with self._lock:
            area, offset = self._place(max(1, count * dtype.itemsize))
        return torch.frombuffer(area, dtype=dtype, count=count, offset=offset).view(*shape)

    def _place(self, num_bytes: int) -> tuple[mmap.mmap, int]:
        if num_bytes >= AREA_BYTES:
            return _map(num_bytes), 0
        if self._used + num_bytes > len(self._area):
            self._area, self._used = _map(AREA_BYTES), 0
        offset = self._used
        self._used = -(-(offset + num_bytes) // ALIGNMENT) * ALIGNMENT
        return self._area, offset


def _map(num_bytes: int) -> mmap.mmap:
    area = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without them
        area.madvise(mmap.MADV_HUGEPAGE)
    return area


empty = _Areas().empty
