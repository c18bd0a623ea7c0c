"""Decode steps as CUDA graphs: captured once on static buffers, replayed with one copy and one launch.

A pure decode step (one token and one sampled id a row) is padded to the next captured number of rows. Its inputs are
copied to the device as one int32 buffer:

    [ ids | slots | tiles, TILE_FIELDS each | block tables ]      each part is sized for the largest batch

Padding rows read and write the pool's scratch block. Sampling (`graph_sampler.py`) is captured separately: with overlap
scheduling a step is launched before its sampling settings are final. A pool that moves its memory when
it is resized invalidates every graph; graphs are captured again when needed.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product, starmap
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from server.model.attention.gpu import CudaKvPool, TiledStep
from server.model.attention.tiles import TILE_FIELDS, TilePlan, Tiles, choose_num_splits, concat_block_tables
from server.model.batch import Row
from server.model.device import StagedBuffer, time_us
from server.model.graphs.graph_sampler import GraphSampler, SamplingVariant
from server.model.layers.decoder import OneRowStep
from server.model.loading.loaded_model import LoadedModel
from server.model.sampling.grammar import Masks
from server.model.sampling.sampler import SamplingRow, greedy_ids

log = logging.getLogger(__name__)

MAX_TABLE_ENTRIES = 1 << 20  # of all rows' block tables; steps with more do not use graphs
DECODING, SAMPLING = "decoding", "sampling"
Result = TypeVar("Result")
COMPARED_BLOCKS = 8  # that a step of one row reads when its kernels are compared
REPLAY_TOLERANCE = 0.05  # relative and absolute, between the logits of a replay and of the same step computed


@dataclass(frozen=True, slots=True)
class DecodeOutput:
    """Result of a decode step on the device, overwritten by the next one; may have more lines than rows, by padding."""

    logits: Tensor  # [lines, vocab]
    greedy_ids: Tensor  # [lines], as `sampler.greedy_ids`


def padded_sizes(most_rows: int) -> tuple[int, ...]:
    """Numbers of rows to capture: 1, 2, 4, multiples of 8, from 64 on multiples of 32, and the maximum."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, most_rows, 32)]
    return (*(size for size in sizes if size < most_rows), most_rows)


def is_pure_decode(rows: Sequence[Row]) -> bool:
    """Whether every row computes one token and samples one id."""
    return all(len(row.token_ids) == 1 and row.num_logits == 1 for row in rows)


class StaticDecode:
    """Decode steps on static buffers, computed without graphs."""

    def __init__(self, loaded: LoadedModel, pool: CudaKvPool, sizes: Sequence[int]) -> None:
        assert pool.kernels is not None, "attention without kernels has no static shapes"
        assert loaded.recurrent is None, "slots of recurrent state are not in a static buffer"
        self._loaded = loaded
        self._pool = pool
        self._kernels = pool.kernels
        self._layer_of = {index: i for i, index in enumerate(loaded.kv.layer_indices)}
        # Computes steps of one row, unless it is None. Its kernels write keys and values themselves, and no bytes.
        self.one_row = None if pool.shape.in_bytes else loaded.one_row
        self._sizes = tuple(sizes)
        most = max(sizes)
        self._inputs = StagedBuffer((most, most, TILE_FIELDS * most, MAX_TABLE_ENTRIES), loaded.device)
        self.sampler = GraphSampler(most, loaded.vocab_size, loaded.device)

    @property
    def max_positions(self) -> int:
        """Positions that the model knows."""
        return self._loaded.max_positions

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of rows that steps are padded to, smallest first."""
        return self._sizes

    def launch(self, rows: Sequence[Row], ids: Tensor | None = None) -> DecodeOutput | None:
        """Launch a pure decode step; None if it does not fit the buffers.

        `ids` [rows] on the device replace the rows' token ids where those are not known on the host yet.
        """
        size = self.stage(rows, ids)
        return None if size is None else self.compute(size)

    def sample(
        self, decoded: DecodeOutput, rows: Sequence[SamplingRow], num_lines: int, masks: Masks | None
    ) -> Tensor | None:
        """Ids for the lines of a launched step, int64; None if they must be sampled by `sampler.sample_ids`."""
        variant = self.sampler.stage(rows, num_lines, masks)
        return None if variant is None else self.sampler.sample(decoded.logits, variant)

    def compute(self, size: int) -> DecodeOutput:
        """Compute the staged step. No shape and no address depends on the rows."""
        ids, slots, flat, blocks = self._inputs.parts
        table = flat.view(-1, TILE_FIELDS)[:size]
        num_splits = choose_num_splits(size * self._loaded.kv.kv_heads, self._loaded.max_positions)
        tiles = Tiles(table, blocks, size, 1, num_splits)
        step = TiledStep(self._pool, self._layer_of, TilePlan(slots[:size], (tiles,)), self._kernels)
        if size == 1 and self.one_row is not None:
            logits = self.one_row(ids[:1], table[:, 2], step)
        else:
            logits = self._loaded.head(self._loaded.backbone(ids[:size], table[:, 2], step, None))
        return DecodeOutput(logits, greedy_ids(logits))

    def stage(self, rows: Sequence[Row], device_ids: Tensor | None = None) -> int | None:
        """Copy the step into the buffers; returns its padded number of rows, or None if it does not fit."""
        size = next((size for size in self._sizes if size >= len(rows)), None)
        block_size, scratch = self._pool.shape.block_size, self._pool.scratch_block
        blocks, begins = concat_block_tables([*(row.blocks for row in rows), (scratch,)])
        if size is None or len(blocks) > MAX_TABLE_ENTRIES:
            return None
        count = len(rows)
        ids, slots, flat, table = self._inputs.begin()
        starts = np.array([row.start for row in rows])
        ids[:count] = [row.token_ids[0] for row in rows]
        ids[count:size] = 0
        slots[:count] = [row.blocks[row.start // block_size] for row in rows]
        slots[:count] = slots[:count] * block_size + starts % block_size
        slots[count:size] = scratch * block_size
        tiles = flat.reshape(-1, TILE_FIELDS)[:size]
        tiles[:, 0], tiles[:, 1] = np.arange(size), 1
        tiles[:count, 2], tiles[count:, 2] = starts, 0
        tiles[:count, 3], tiles[count:, 3] = begins[:-1], begins[-1]
        table[: len(blocks)] = blocks
        self._inputs.upload(len(blocks))
        if device_ids is not None:
            self._inputs.parts[0][:count].copy_(device_ids)
        return size


@dataclass(frozen=True, slots=True)
class Recording(Generic[Result]):
    """A captured CUDA graph and the tensors that a replay writes."""

    graph: torch.cuda.CUDAGraph
    result: Result


class DecodeGraphs:
    """A `StaticDecode` captured as one CUDA graph for each padded number of rows."""

    def __init__(self, static: StaticDecode, pool: CudaKvPool) -> None:
        self._static = static
        self._pool = pool
        self._memory = torch.cuda.graph_pool_handle()  # shared: only one graph runs at a time
        self._steps: dict[int, Recording[DecodeOutput]] = {}
        self._samplers: dict[tuple[int, SamplingVariant], Recording[Tensor]] = {}
        self._num_moves = pool.num_moves
        self._num_blocks = pool.num_blocks
        self._disabled: set[str] = set()  # captures that failed, until the pool's size changes

    def launch(self, rows: Sequence[Row], ids: Tensor | None = None) -> DecodeOutput | None:
        """As `StaticDecode.launch`; None also where capturing failed."""
        if self._num_blocks != self._pool.num_blocks:  # there may be memory for what could not be captured
            self._num_blocks = self._pool.num_blocks
            self._disabled.clear()
        if self._num_moves != self._pool.num_moves:
            self._num_moves = self._pool.num_moves
            self._disabled.clear()
            self._steps.clear()
            self._samplers.clear()
            # torch refuses captures into a pool that no graph uses any more, until all of its memory is freed.
            self._memory = torch.cuda.graph_pool_handle()
        size = None if DECODING in self._disabled else self._static.stage(rows, ids)
        if size is None:
            return None
        recording = self._steps.get(size) or self._capture_step(size)
        if recording is None:
            return None
        recording.graph.replay()
        return recording.result

    def sample(
        self, decoded: DecodeOutput, rows: Sequence[SamplingRow], num_lines: int, masks: Masks | None
    ) -> Tensor | None:
        """As `StaticDecode.sample`; None also where capturing failed."""
        variant = None if self._disabled else self._static.sampler.stage(rows, num_lines, masks)
        if variant is None:
            return None
        recording = self._samplers.get((len(decoded.logits), variant)) or self._capture_sampler(decoded, variant)
        if recording is None:
            return None
        recording.graph.replay()
        return recording.result

    @property
    def is_usable(self) -> bool:
        """False once capturing a step failed, until the pool's size changes."""
        return DECODING not in self._disabled

    def capture_all(self) -> None:
        """Capture every size and compare each replay with the computed step; stops and disables graphs if one differs.

        Overwrites the content of the pool's first blocks.
        """
        one_row, self._static.one_row = self._static.one_row, None
        for size in reversed(self._static.sizes):  # largest first: smaller graphs reuse its memory
            rows = [Row((block,), 0, (block,), 1, None) for block in range(min(size, self._pool.num_blocks))]
            if self._static.stage(rows) is None or (recording := self._capture_step(size)) is None:
                return
            expected = self._static.compute(size).logits.clone()
            recording.graph.replay()
            if not torch.allclose(recording.result.logits, expected, rtol=REPLAY_TOLERANCE, atol=REPLAY_TOLERANCE):
                self._disable(DECODING, f"a replay of {size} rows differs from the computed step")
                return
            if size == 1 and one_row is not None:
                self._choose_for_one_row(one_row, recording)

    def _choose_for_one_row(self, one_row: OneRowStep, plain: Recording[DecodeOutput]) -> None:
        """Use the step of one row that has its own kernels, if its replay gives what it computes and is faster.

        At a position behind others, whose keys and values are random: kernels that are launched early in a replay must
        not read what an earlier one has yet to write.
        """
        from triton.errors import TritonError

        count = min(self._pool.num_blocks, COMPARED_BLOCKS)
        for part in (*self._pool.keys, *self._pool.values):
            part[:count].normal_()
        position = min(count * self._pool.shape.block_size, self._static.max_positions) - 1
        self._static.stage([Row((0,), position, range(count), 1, None)])
        self._static.one_row = one_row
        try:
            expected = self._static.compute(1).logits.clone()
            own = self._record(partial(self._static.compute, 1))
            own.graph.replay()
            difference = _difference(own.result.logits, expected)
            own_us, plain_us = time_us(own.graph.replay), time_us(plain.graph.replay)
            log.info(
                "a step of one row takes %.0f us with kernels of its own, %.0f us without; its replay differs by %.2g",
                *(own_us, plain_us, difference),
            )
            if difference <= REPLAY_TOLERANCE and own_us < plain_us:
                self._steps[1] = own
                return
        except (RuntimeError, TritonError) as error:
            log.warning("kernels for steps of one row are off: %s", str(error).strip().splitlines()[0])
        self._static.one_row = None

    def capture_samplers(self) -> None:
        """Capture every sampling variant for the largest step, so that the memory of captures is allocated."""
        largest = self._steps.get(max(self._static.sizes))
        for variant in starmap(SamplingVariant, product((False, True), repeat=3)):
            if largest is not None and variant != SamplingVariant():  # greedy ids are part of the step
                self._capture_sampler(largest.result, variant)

    def _capture_step(self, size: int) -> Recording[DecodeOutput] | None:
        recording = self._capture(DECODING, partial(self._static.compute, size))
        if recording is not None:
            self._steps[size] = recording
        return recording

    def _capture_sampler(self, decoded: DecodeOutput, variant: SamplingVariant) -> Recording[Tensor] | None:
        recording = self._capture(SAMPLING, partial(self._static.sampler.sample, decoded.logits, variant))
        if recording is not None:
            self._samplers[len(decoded.logits), variant] = recording
        return recording

    def _capture(self, what: str, compute: Callable[[], Result]) -> Recording[Result] | None:
        """As `_record`; None if it fails, which disables such captures until the pool's size changes."""
        try:
            return self._record(compute)
        except RuntimeError as error:  # out of memory, or an operation synchronizes
            self._disable(what, str(error).strip().splitlines()[0])
            return None

    def _record(self, compute: Callable[[], Result]) -> Recording[Result]:
        """Capture `compute`, after one call of it: compiling and autotuning cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        compute()
        # Of this thread alone: another one may copy an adapter to the device meanwhile.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            result = compute()
        return Recording(graph, result)

    def _disable(self, what: str, reason: str) -> None:
        log.warning("CUDA graphs for %s are off: %s", what, reason)
        self._disabled.add(what)
        self._samplers.clear()  # unused graphs hold memory
        if what == DECODING:
            self._steps.clear()


def _difference(found: Tensor, expected: Tensor) -> float:
    """Between logits, relative to their norm."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def open_graphs(loaded: LoadedModel, pool: CudaKvPool, sizes: Sequence[int]) -> DecodeGraphs | None:
    """Capture graphs of these numbers of rows; None where the model or device does not allow any."""
    if loaded.device.type != "cuda" or pool.kernels is None or loaded.recurrent is not None:
        return None
    graphs = DecodeGraphs(StaticDecode(loaded, pool, sizes), pool)
    graphs.capture_all()
    return graphs
