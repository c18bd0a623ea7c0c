"""Attention over the GPU cache layout, on the CPU, and on a GPU if there is one."""

import weakref
from pathlib import Path

import pytest
import torch

from server.messages import Sampling
from server.model.attention import gpu
from server.model.attention.gpu import CudaKvPool
from server.model.loading.loader import load
from server.model.runner import Runner, pool_shape
from server.settings import EngineSettings
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.drive import BLOCK_SIZE, Stream, generate, loaded, prompt_of, run, step


def greedy(count: int) -> Sampling:
    return Sampling(max_tokens=count, temperature=0.0)


def runner_in_gpu_layout(kind: Kind, num_blocks: int) -> Runner:
    model = loaded(kind, kernels=False)
    runner = Runner(model, 1, BLOCK_SIZE, num_slots=4)
    runner.pool = CudaKvPool(pool_shape(model, BLOCK_SIZE), num_blocks, torch.device("cpu"))
    return runner


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "qwen3_5"])
def test_greedy_equals_generate_with_chunks_decode_and_new_rows_in_one_step(kind: Kind) -> None:
    runner = runner_in_gpu_layout(kind, 64)
    streams = [
        Stream(prompt_of(20 + 31 * i, i), range(12 * i, 12 * i + 12), greedy(8 + i), slot=i, chunk=40) for i in range(4)
    ]
    for arrived in range(1, 5):
        step(runner, streams[:arrived])
    run(runner, streams)
    for stream in streams:
        assert stream.written == generate(kind, stream.prompt, stream.sampling.max_tokens)


def test_stale_data_in_a_block_does_not_leak() -> None:
    runner = runner_in_gpu_layout("qwen3", 16)
    for part in (*runner.pool.keys, *runner.pool.values):
        part.fill_(torch.nan)
    stream = Stream(prompt_of(30), range(2, 8), greedy(8))
    run(runner, [stream])
    assert stream.written == generate("qwen3", stream.prompt, 8)


def test_moved_blocks_keep_their_content() -> None:
    """Runs that are consecutive among sources and targets are copied at once; others block by block."""
    runner = runner_in_gpu_layout("qwen3", 32)
    stream = Stream(prompt_of(70), [20, 21, 22, 25, 30, 31], greedy(10))
    for _ in range(3):
        step(runner, [stream])
    runner.move_blocks([20, 21, 22, 25, 30, 31], [2, 3, 9, 4, 5, 6])
    stream.blocks = [2, 3, 9, 4, 5, 6]
    runner.release(10)
    run(runner, [stream])
    assert stream.written == generate("qwen3", stream.prompt, 10)


def test_released_blocks_are_freed_and_can_be_restored() -> None:
    runner = runner_in_gpu_layout("qwen3", 32)
    low = Stream(prompt_of(40), range(6), greedy(10))
    step(runner, [low])
    runner.release(8)
    assert runner.pool.keys[0].shape[0] == 9  # and the scratch block
    assert runner.restore(100) == 32 and runner.pool.values[-1].shape[0] == 33
    high = Stream(prompt_of(40), range(20, 26), greedy(10))
    run(runner, [low, high])
    assert low.written == high.written == generate("qwen3", low.prompt, 10)


class Device:
    """Stands for the memory of a GPU with `num_left` bytes free; refuses what does not fit."""

    def __init__(self) -> None:
        self.num_left = 0

    def hold(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count this tensor until it is freed."""
        size = tensor.numel() * tensor.element_size()
        self.num_left -= size
        weakref.finalize(tensor, self._free, size)
        return tensor

    def _free(self, size: int) -> None:
        self.num_left += size

    def allocate(self, like: torch.Tensor, num_blocks: int) -> torch.Tensor:
        """In place of the pool's own allocation."""
        made = like.new_zeros((num_blocks, *like.shape[1:]))
        if self.num_left < made.numel() * made.element_size():
            raise torch.OutOfMemoryError("no memory left")
        return self.hold(made)


@pytest.mark.parametrize("num_tensors_left", [0, 1, 3])
def test_blocks_are_released_and_kept_on_a_device_without_memory(
    monkeypatch: pytest.MonkeyPatch, num_tensors_left: int
) -> None:
    """The smaller tensor was allocated before the larger one was freed, just when memory was short."""
    runner = runner_in_gpu_layout("qwen3", 32)
    low = Stream(prompt_of(40), range(6), greedy(10))
    step(runner, [low])
    one = runner.pool.keys[0]
    device = Device()
    monkeypatch.setattr(gpu, "_allocate", device.allocate)
    for part in (*runner.pool.keys, *runner.pool.values):
        device.hold(part)
    del part
    device.num_left = num_tensors_left * one.numel() * one.element_size()
    del one
    runner.release(8)
    assert {part.shape[0] for part in (*runner.pool.keys, *runner.pool.values)} == {9}
    device.num_left = 0
    assert runner.restore(100) == 8, "nothing was restored, and nothing lost"
    device.num_left = 1 << 40
    assert runner.restore(100) == 32
    run(runner, [low])
    assert low.written == generate("qwen3", low.prompt, 10)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "qwen3_5"])
def test_on_the_gpu_greedy_equals_generate(kind: Kind) -> None:
    path: Path = tiny_checkpoint(kind)
    model = load(path, EngineSettings(device="cuda"), lambda fraction: None)
    runner = Runner(model, 64, BLOCK_SIZE, num_slots=4)
    streams = [
        Stream(prompt_of(30 + 17 * i, i), range(8 * i, 8 * i + 8), greedy(10), slot=i, chunk=40) for i in range(4)
    ]
    run(runner, streams)
    for stream in streams:
        assert stream.written == generate(kind, stream.prompt, 10)
