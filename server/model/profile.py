"""How much memory a step takes beyond what is held at rest, measured on the loaded model.

On CUDA a step of full size is run and the allocator asked for its peak. A CPU's allocator tells no peak and a step of
full size takes long there, so the tensors of small steps are counted and the count is scaled: every temporary tensor
of a step has one row for each token, or one for each line of logits.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from server.messages import Sampling
from server.model.batch import Batch, Draw, Row
from server.model.loading.loaded_model import LoadedModel
from server.model.runner import Runner

SAMPLE_TOKENS, SAMPLE_ROWS = (
    64,
    64,
)  # of the steps that are counted on a CPU; fewer rows would overstate what sorting takes
WORST_CASE_SAMPLING = (  # draws that take the most: from the whole vocabulary, and from a sorted one
    Sampling(max_tokens=2, num_logprobs=20, frequency_penalty=0.1),
    Sampling(max_tokens=2, num_logprobs=20, frequency_penalty=0.1, top_p=0.99),
)


@dataclass(frozen=True, slots=True)
class StepSize:
    """The largest step that the scheduler makes: tokens computed, and lines of logits drawn from."""

    tokens: int
    rows: int
    block_size: int
    captured_rows: int = 0  # of the largest decode step that is recorded on CUDA


def measure_step(loaded: LoadedModel, largest: StepSize) -> int:
    """Bytes that the largest step takes at its peak. Raises MemoryError where it does not fit."""
    if loaded.device.type == "cuda":
        return _measure_on_cuda(loaded, largest)
    tokens, rows = min(largest.tokens, SAMPLE_TOKENS), min(largest.rows, SAMPLE_ROWS)
    prompt = _count(loaded, _prompt(tokens, largest.block_size), largest.block_size)
    drawn = _count(loaded, _decode(rows), largest.block_size)
    return max(prompt * largest.tokens // tokens, drawn * largest.rows // rows)


class AllocationMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operations inside it make, until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if new := {key: one for key, one in _storages(result) if key not in self._known}:
            given = {key for key, _ in _storages((args, kwargs))}
            for key, storage in new.items():
                if key not in given:
                    self._known[key] = storage.nbytes()
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._forget, key)
            self.peak = max(self.peak, self.live)
        return result

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key)


def _count(loaded: LoadedModel, batch: Batch, block_size: int) -> int:
    """Peak of computing this batch and drawing from it."""
    runner = _runner(loaded, batch, block_size)
    with AllocationMeter() as meter:
        _run(runner, batch)
    peak: int = meter.peak  # TorchDispatchMode has no types
    return peak


def _measure_on_cuda(loaded: LoadedModel, largest: StepSize) -> int:
    peak = 0
    for batch in (_prompt(largest.tokens, largest.block_size), _decode(largest.rows)):
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
    """Recordings keep their memory beside what other steps take; smaller ones use again what the largest has."""
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
    """Compute the batch once, and draw from it in every one of the hardest ways."""
    ticket = runner.launch(batch)
    for sampling in WORST_CASE_SAMPLING:
        rows = tuple(replace(row, draw=_draw(sampling)) for row in batch.rows)
        runner.draw(ticket, Batch(rows), None).read()


def _runner(loaded: LoadedModel, batch: Batch, block_size: int) -> Runner:
    """A runner with just enough blocks and slots for this batch."""
    num_blocks = 1 + max(block for row in batch.rows for block in row.blocks)
    num_slots = len(batch.rows) if loaded.recurrent is not None else 0
    return Runner(loaded, num_blocks, block_size, num_slots)


def _prompt(num_tokens: int, block_size: int) -> Batch:
    blocks = range(-(-num_tokens // block_size))
    return Batch((Row([0] * num_tokens, 0, blocks, 1, _draw(WORST_CASE_SAMPLING[0]), 0),))


def _decode(num_rows: int) -> Batch:
    # Each with one token before it: rows without a past are computed one by one where a model has recurrent states.
    return Batch(tuple(Row([0], 1, [place], 1, _draw(WORST_CASE_SAMPLING[0]), place) for place in range(num_rows)))


def _draw(sampling: Sampling) -> Draw:
    return Draw(sampling, 1, [0], [0])


def _storages(tree: Any) -> Iterator[tuple[int, torch.UntypedStorage]]:
    """Storages of the tensors among an operation's arguments or results, by what tells one from another."""
    if isinstance(tree, torch.Tensor):
        if not tree.is_mkldnn:
            storage = tree.untyped_storage()
            yield storage._cdata, storage
    elif isinstance(tree, tuple | list):
        for one in tree:
            yield from _storages(one)
    elif isinstance(tree, dict):
        yield from _storages(tuple(tree.values()))
