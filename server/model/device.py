"""Numbers of the host on their way to the device, without the host waiting for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(numbers: NDArray[Any] | Sequence[int], device: torch.device) -> Tensor:
    """The numbers there, in their own type; on the CPU the same memory.

    To a GPU through pinned memory: from any other a copy waits until all is done that the GPU was given before.
    """
    host = torch.from_numpy(np.ascontiguousarray(numbers))
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
