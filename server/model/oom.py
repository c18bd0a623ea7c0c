"""torch's ways of saying that memory ran out, as one: MemoryError."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU_SHORTAGE = "can't allocate memory"  # torch's CPU allocator raises a plain RuntimeError with this in its text


@contextmanager
def as_memory_error() -> Iterator[None]:
    """Raises MemoryError where what runs inside finds no memory, on a card or on the CPU; other errors as they are."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        if CPU_SHORTAGE not in str(error):
            raise
        raise MemoryError(str(error)) from error
