"""Memory in huge pages: tensors that share an area do not touch each other, and it goes with the last of them."""

import re
from pathlib import Path

import pytest
import torch

from server.model import huge_pages

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 1 << 20


def memory_mib(kind: str) -> int:
    """Of this process: `Rss` or `AnonHugePages`."""
    found = re.search(rf"^{kind}: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) >> 10


def test_tensors_of_an_area_are_apart_and_aligned() -> None:
    shapes = [(3, 5), (1,), (257, 16), (64 * MIB,), (2, 2)]
    tensors = [huge_pages.empty(shape, torch.uint8).fill_(index) for index, shape in enumerate(shapes)]
    half = huge_pages.empty((5,), torch.float16).fill_(0.5)
    for index, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tensor.shape == shape and bool((tensor == index).all())
        assert tensor.data_ptr() % huge_pages.ALIGNMENT == 0
    assert half.tolist() == [0.5] * 5


def test_memory_is_returned_with_the_last_tensor_of_its_area() -> None:
    """An area that something else held would keep the weights of a model that failed to load."""
    before = memory_mib("Rss")
    tensors = [huge_pages.empty((4 * MIB,), torch.uint8).fill_(1) for _ in range(64)]
    assert memory_mib("Rss") > before + 240
    del tensors[:-1]
    assert memory_mib("Rss") < before + 80  # the last one's area, and the one that is being filled


@pytest.mark.skipif(not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="the system gives no huge pages")
def test_small_tensors_lie_in_huge_pages() -> None:
    """Matrices of less than two MiB, which have none of their own: half of the gain of one token (lablog)."""
    before = memory_mib("AnonHugePages")
    tensors = [huge_pages.empty((MIB,), torch.uint8).fill_(1) for _ in range(128)]
    assert memory_mib("AnonHugePages") > before + len(tensors) // 2
