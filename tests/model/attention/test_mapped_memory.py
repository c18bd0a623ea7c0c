"""Ranges of device memory that shrink and grow in place: with a driver that keeps books, and on a card."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.model.attention.base import PoolShape
from server.model.attention.gpu import CudaKvPool
from server.model.attention.mapped_memory import MappedMemory, mapped_bytes, open_mapped

CPU = torch.device("cpu")
MIB = 1 << 20
CHUNK = 2 * MIB  # of a small range


class Driver:
    """What `cuda.bindings.driver` does with addresses and handles, for a device of `chunks` chunks."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0, CUDA_ERROR_OUT_OF_MEMORY=2)
    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
    CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_MINIMUM=0)
    CUmemAccess_flags = SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE=3)

    def __init__(self, chunks: int) -> None:
        self.chunks_left = chunks
        self.handles: set[int] = set()
        self.mapped: dict[int, int] = {}  # address -> handle
        self.accessible: set[int] = set()
        self.num_made = self.num_ranges = 0

    def CUmemAllocationProp(self) -> Any:
        return SimpleNamespace(location=SimpleNamespace())

    def CUmemAccessDesc(self) -> Any:
        return SimpleNamespace()

    def cuMemGetAllocationGranularity(self, properties: Any, option: int) -> tuple[int, int]:
        return 0, 2 * MIB

    def cuMemAddressReserve(self, size: int, alignment: int, address: int, flags: int) -> tuple[int, int]:
        assert size % CHUNK == 0
        self.num_ranges += 1
        return 0, self.num_ranges << 40

    def cuMemCreate(self, size: int, properties: Any, flags: int) -> tuple[int, int | None]:
        if not self.chunks_left:
            return 2, None
        self.chunks_left -= 1
        self.num_made += 1
        self.handles.add(self.num_made)
        return 0, self.num_made

    def cuMemMap(self, address: int, size: int, offset: int, handle: int, flags: int) -> tuple[int]:
        assert address not in self.mapped and handle in self.handles
        self.mapped[address] = handle
        return (0,)

    def cuMemSetAccess(self, address: int, size: int, access: list[Any], count: int) -> tuple[int]:
        chunks = range(address, address + size, CHUNK)
        assert all(place in self.mapped for place in chunks)
        self.accessible.update(chunks)
        return (0,)

    def cuMemUnmap(self, address: int, size: int) -> tuple[int]:
        del self.mapped[address]
        self.accessible.discard(address)
        return (0,)

    def cuMemRelease(self, handle: int) -> tuple[int]:
        self.handles.remove(handle)
        self.chunks_left += 1
        return (0,)

    def cuMemAddressFree(self, address: int, size: int) -> tuple[int]:
        assert not any(address <= place < address + size for place in self.mapped)
        return (0,)


def test_memory_is_behind_the_begin_of_the_range_and_all_of_it_can_be_accessed() -> None:
    driver = Driver(chunks=30)
    memory = MappedMemory(50 * MIB, 7, driver)
    for num_bytes, count in ((50 * MIB, 25), (17 * MIB, 9), (16 * MIB, 8), (33 * MIB, 17)):
        memory.resize(num_bytes)
        assert sorted(driver.mapped) == [(1 << 40) + i * CHUNK for i in range(count)]
        assert driver.accessible == set(driver.mapped)
        assert memory.mapped == count * CHUNK == mapped_bytes(torch.device("cuda", 7))
        assert driver.chunks_left == 30 - count, "what is unmapped is returned"
    memory.close()
    assert not driver.handles and mapped_bytes(torch.device("cuda", 7)) == 0


def test_what_cannot_be_had_changes_nothing() -> None:
    """A range that grew by half would hold memory that nobody uses, while the device has none left."""
    driver = Driver(chunks=4)
    memory = MappedMemory(100 * MIB, 7, driver)
    memory.resize(2 * CHUNK)
    with pytest.raises(torch.OutOfMemoryError, match="cuMemCreate"):
        memory.resize(5 * CHUNK)
    assert memory.mapped == 2 * CHUNK and driver.chunks_left == 2
    memory.resize(4 * CHUNK)
    memory.close()


def test_a_pool_for_which_there_is_no_memory_stays_as_it_is() -> None:
    """The first layer's blocks have room and the second's have none: both must have as many as before."""
    driver = Driver(chunks=9)
    shape = PoolShape(32, 1, 8, 128, torch.bfloat16)  # 64 KiB a block
    pool = CudaKvPool(shape, 127, CPU)
    pool._mapped = [MappedMemory(128 * (64 << 10), 7, driver) for _ in range(2)]
    pool._map(128)  # eight chunks
    pool.num_blocks = 127
    pool._most_blocks = 500
    assert pool.restore(159) == 127, "a chunk more for each, and one is left"
    assert [memory.mapped for memory in pool._mapped] == [4 * CHUNK, 4 * CHUNK] and driver.chunks_left == 1
    pool._map(64)
    assert driver.chunks_left == 5
    for memory in pool._mapped:
        memory.close()


def test_a_fault_of_the_driver_is_named() -> None:
    driver = Driver(chunks=4)
    driver.cuMemMap = lambda *_: (SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE"),)  # type: ignore[method-assign, assignment]
    memory = MappedMemory(CHUNK, 7, driver)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        memory.resize(1)
    assert not driver.handles, "the chunk is returned"
    memory.close()


def test_devices_without_it_have_none() -> None:
    assert open_mapped(CHUNK, 2, torch.device("cpu")) == []


@pytest.mark.gpu
def test_on_the_gpu_a_pool_keeps_its_place_and_what_its_blocks_hold() -> None:
    device = torch.device("cuda", 0)
    others = mapped_bytes(device)  # of pools that other tests still hold
    pool = CudaKvPool(PoolShape(16, 3, 8, 128, torch.bfloat16), 2048, device)
    assert pool._mapped, "this device maps memory"
    for number, part in enumerate((*pool.keys, *pool.values)):
        part[:1025].fill_(number + 1)
        part[1025:].fill_(torch.nan)
    addresses = [part.data_ptr() for part in (*pool.keys, *pool.values)]
    full = torch.cuda.mem_get_info(device)[0]
    pool.release(1024)
    assert torch.cuda.mem_get_info(device)[0] - full >= 6 * 30 * MIB
    assert pool.restore(4096) == 2048 and pool.num_moves == 0
    assert [part.data_ptr() for part in (*pool.keys, *pool.values)] == addresses
    for number, part in enumerate((*pool.keys, *pool.values)):
        assert (part[:1024] == number + 1).all() and (part[1024:] == 0).all(), "new blocks are zeros"
    own = mapped_bytes(device) - others
    del pool, part
    assert mapped_bytes(device) == others and own > 0, "a pool that is gone holds nothing"
