"""Measures the peak memory of the largest step on the loaded model, beyond weights and caches.

On CUDA a full-size step is run and the allocator's peak read. The CPU allocator reports no peak and a full-size step
takes long there, so the tensors of small steps are counted and scaled: every temporary tensor has one row for each
token, or one for each line of logits.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from server.messages import Sampling
from server.model.batch import Batch, PromptTargets, Row, RowSampling
from server.model.loading.loaded_model import LoadedModel
from server.model.runner import Runner

SAMPLE_TOKENS, SAMPLE_ROWS = 64, 64  # of the steps counted on a CPU; fewer rows would overstate sorting
WORST_CASE_SAMPLING = (  # the settings that take most memory: over the whole vocabulary, and sorted
    Sampling(max_tokens=2, num_logprobs=20, frequency_penalty=0.1),
    Sampling(max_tokens=2, num_logprobs=20, frequency_penalty=0.1, top_p=0.99),
)


@dataclass(frozen=True, slots=True)
class StepSize:
    """The largest step that the scheduler makes: tokens computed, and lines of logits sampled."""

    tokens: int
    rows: int
    block_size: int
    captured_rows: int = 0  # of the largest CUDA graph of a decode step


def measure_step(loaded: LoadedModel, largest: StepSize) -> int:
    """Peak bytes of the largest step. Raises MemoryError if it does not fit."""
    if loaded.device.type == "cuda":
        return _measure_on_cuda(loaded, largest)
    tokens, rows = min(largest.tokens, SAMPLE_TOKENS), min(largest.rows, SAMPLE_ROWS)
    prompt = _count(loaded, _prompt(tokens, largest.block_size), largest.block_size)
    scored = _count(loaded, _prompt(tokens, largest.block_size, scored=True), largest.block_size)
    decode = _count(loaded, _decode(rows), largest.block_size)
    return max(prompt * largest.tokens // tokens, scored, decode * largest.rows // rows)


class AllocationMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages allocated inside it and still referenced."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if new := {key: one for key, one in _storages(result) if key not in self._known}:
            inputs = {key for key, _ in _storages((args, kwargs))}
            for key, storage in new.items():
                if key not in inputs:
                    self._known[key] = storage.nbytes()
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._forget, key)
            self.peak = max(self.peak, self.live)
        return result

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key)


def _count(loaded: LoadedModel, batch: Batch, block_size: int) -> int:
    """Peak bytes of computing this batch and sampling from it."""
    runner = _runner(loaded, batch, block_size)
    with AllocationMeter() as meter:
        _run(runner, batch)
    peak: int = meter.peak  # TorchDispatchMode has no types
    return peak


def _measure_on_cuda(loaded: LoadedModel, largest: StepSize) -> int:
    peak = 0
    for batch in (_prompt(largest.tokens, largest.block_size, scored=True), _decode(largest.rows)):
        runner = _runner(loaded, batch, largest.block_size)
        torch.cuda.synchronize(loaded.device)
        torch.cuda.reset_peak_memory_stats(loaded.device)
        before = torch.cuda.memory_allocated(loaded.device)
        _run(runner, batch)
        torch.cuda.synchronize(loaded.device)
        peak = max(peak, torch.cuda.max_memory_allocated(loaded.device) - before)
        del runner
    torch.cuda.empty_cache()
    return peak + _measure_capture(loaded, largest)


def _measure_capture(loaded: LoadedModel, largest: StepSize) -> int:
    """CUDA graphs keep memory of their own; graphs of smaller steps reuse that of the largest."""
    if not largest.captured_rows:
        return 0
    runner = _runner(loaded, _decode(largest.captured_rows), largest.block_size)
    before = torch.cuda.memory_reserved(loaded.device)
    runner.capture_graphs((largest.captured_rows,), samplers=True)
    taken = torch.cuda.memory_reserved(loaded.device) - before
    del runner
    torch.cuda.empty_cache()
    return max(0, taken)


def _run(runner: Runner, batch: Batch) -> None:
    """Compute the batch once and sample from it with each of the worst-case settings."""
    ticket = runner.launch(batch)
    for sampling in WORST_CASE_SAMPLING:
        rows = tuple(replace(row, sampling=_row_sampling(sampling)) for row in batch.rows)
        runner.sample(ticket, Batch(rows), None).read()


def _runner(loaded: LoadedModel, batch: Batch, block_size: int) -> Runner:
    """A runner with just enough blocks and slots for this batch."""
    num_blocks = 1 + max(block for row in batch.rows for block in row.blocks)
    num_slots = len(batch.rows) if loaded.recurrent is not None else 0
    return Runner(loaded, num_blocks, block_size, num_slots)


def _prompt(num_tokens: int, block_size: int, scored: bool = False) -> Batch:
    blocks = range(-(-num_tokens // block_size))
    targets = PromptTargets(0, [0] * num_tokens, 20) if scored else None
    return Batch((Row([0] * num_tokens, 0, blocks, 1, _row_sampling(WORST_CASE_SAMPLING[0]), 0, targets),))


def _decode(num_rows: int) -> Batch:
    # With one cached token each: recurrent models compute rows that begin a prompt one by one.
    return Batch(
        tuple(Row([0], 1, [index], 1, _row_sampling(WORST_CASE_SAMPLING[0]), index) for index in range(num_rows))
    )


def _row_sampling(params: Sampling) -> RowSampling:
    return RowSampling(params, 1, [0], [0])


def _storages(tree: Any) -> Iterator[tuple[int, torch.UntypedStorage]]:
    """Storages of the tensors in an operation's arguments or results, with their identity."""
    if isinstance(tree, torch.Tensor):
        if not tree.is_mkldnn:
            storage = tree.untyped_storage()
            yield storage._cdata, storage
    elif isinstance(tree, tuple | list):
        for one in tree:
            yield from _storages(one)
    elif isinstance(tree, dict):
        yield from _storages(tuple(tree.values()))
