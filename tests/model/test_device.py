"""Running out of memory has many names; one that is not known ends the engine instead of the step."""

import pytest
import torch

from server.model.device import as_memory_error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_to_run_out_of_memory_is_a_memory_error(error: RuntimeError) -> None:
    with pytest.raises(MemoryError), as_memory_error():
        raise error


def test_another_error_passes_through() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"), as_memory_error():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
