"""The memory of a real card: what NVML and torch say of it, and what the engine's figures are worth there."""

import subprocess
import sys

import pytest
import torch

from server.engine.assemble import _select_device
from server.memory.start import open_probe
from server.model.attention.base import PoolShape
from server.model.attention.gpu import CudaKvPool

GIB = 1 << 30
OTHER_PROCESS = """
import sys, torch
held = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.gpu
def test_on_the_gpu_what_another_process_takes_is_seen_and_is_not_ours() -> None:
    """A guard that counts a neighbour's memory as its own would never give any back."""
    probe = open_probe("cuda", "auto", _select_device(torch.device("cuda", 0)))
    before = probe.read()[0]
    other = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    during = probe.read()[0]
    other.communicate()
    after = probe.read()[0]
    assert 4 * GIB <= before.free - during.free < 6 * GIB, "its tensor, its context and nothing else"
    assert abs((during.own or 0) - (before.own or 0)) < GIB // 4
    assert abs(after.free - before.free) < GIB // 4


@pytest.mark.gpu
def test_on_the_gpu_what_this_process_takes_is_seen_as_its_own() -> None:
    probe = open_probe("cuda", "auto", _select_device(torch.device("cuda", 0)))
    torch.zeros(1, device="cuda")
    before = probe.read()[0]
    held = torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    during = probe.read()[0]
    assert 2 * GIB <= before.free - during.free < 2 * GIB + GIB // 4
    assert 2 * GIB <= (during.own or 0) - (before.own or 0) < 2 * GIB + GIB // 4
    del held
    torch.cuda.empty_cache()


@pytest.mark.gpu
def test_on_the_gpu_released_blocks_are_free_for_other_processes() -> None:
    """torch cut the smaller tensors out of the larger ones' segments, and could return next to nothing."""
    device = torch.device("cuda", 0)
    pool = CudaKvPool(PoolShape(32, 8, 8, 128, torch.bfloat16), 4096, device)
    torch.cuda.empty_cache()
    full = torch.cuda.mem_get_info(device)[0]
    pool.release(3072)
    assert torch.cuda.mem_get_info(device)[0] - full > 0.9 * GIB, "a quarter of 4 GiB"
    assert pool.restore(4096) == 4096
    assert abs(torch.cuda.mem_get_info(device)[0] - full) < GIB // 8
    pool.release(1024)
    assert torch.cuda.mem_get_info(device)[0] - full > 2.8 * GIB
