"""Decode steps on buffers that never move: recorded once as CUDA graphs, replayed with one copy and one launch.

A step in which every row computes one token and draws one id is padded to the next recorded number of rows. What
changes from step to step goes to the device as one line of int32:

    [ ids | slots | tiles, TILE_FIELDS each | block tables ]      each part has room for the largest batch

Rows that only stage up read and write the pool's scratch block. Drawing from such a step (`static_draw.py`) is recorded
apart: what is drawn is not known yet where a step is launched ahead. A pool that has moved makes every recording
useless: it is made again when it is needed.
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
from server.model.graphs.graph_sampler import GraphSampler, SamplingVariant
from server.model.loading.loaded_model import LoadedModel
from server.model.sampling.grammar import Masks
from server.model.sampling.sampler import DrawRow, greedy_ids

log = logging.getLogger(__name__)

MAX_TABLE_ENTRIES = 1 << 20  # entries of all rows' block tables; steps with more are computed as any other
DECODING, DRAWING = "decoding", "drawing"
Result = TypeVar("Result")
REPLAY_TOLERANCE = 0.05  # of a logit's own size: how far a replay may be from what it records


@dataclass(frozen=True, slots=True)
class DecodeOutput:
    """A decode step's result on the device, overwritten by the next one. May hold more lines than there are rows."""

    logits: Tensor  # [lines, vocab]
    greedy_ids: Tensor  # [lines], as `greedy.greedy_ids`


def padded_sizes(most_rows: int) -> tuple[int, ...]:
    """The numbers of rows that are recorded: 1, 2, 4, then steps of 8, from 64 on of 32, and the most there can be."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, most_rows, 32)]
    return (*(size for size in sizes if size < most_rows), most_rows)


def is_pure_decode(rows: Sequence[Row]) -> bool:
    """Whether these rows are a pure decode step."""
    return all(len(row.token_ids) == 1 and row.num_logits == 1 for row in rows)


class StaticDecode:
    """Decode steps on fixed buffers, computed as they come."""

    def __init__(self, loaded: LoadedModel, pool: CudaKvPool, sizes: Sequence[int]) -> None:
        assert pool.kernels is not None, "the gathering attention has no fixed shapes"
        assert loaded.recurrent is None, "slots of recurrent state are not read through a buffer"
        self._loaded = loaded
        self._pool = pool
        self._kernels = pool.kernels
        self._layer_of = {index: i for i, index in enumerate(loaded.kv.layer_indices)}
        self._sizes = tuple(sizes)
        most = max(sizes)
        self._bounds = np.cumsum([most, most, TILE_FIELDS * most])
        length = int(self._bounds[-1]) + MAX_TABLE_ENTRIES
        # Pinned, so that the copy does not wait. Two, because a step may be filled in while the one before it is on its
        # way; what is older has been read back.
        on_cuda = loaded.device.type == "cuda"
        self._staging = [torch.zeros(length, dtype=torch.int32, pin_memory=on_cuda) for _ in range(2)]
        self._buffer = torch.zeros(length, dtype=torch.int32, device=loaded.device)
        self.sampler = GraphSampler(most, loaded.vocab_size, loaded.device)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of rows that steps are padded to, smallest first."""
        return self._sizes

    def launch(self, rows: Sequence[Row], ids: Tensor | None = None) -> DecodeOutput | None:
        """The step's result; None if it does not fit the buffers. `is_pure_decode(rows)` holds.

        `ids` [rows] on the device stand for the rows' own, where those are not known yet.
        """
        size = self.stage(rows, ids)
        return None if size is None else self.compute(size)

    def draw(
        self, decoded: DecodeOutput, rows: Sequence[DrawRow], num_lines: int, masks: Masks | None
    ) -> Tensor | None:
        """Ids for the lines of a launched step, int64; None if they must be drawn as any others."""
        variant = self.sampler.stage(rows, num_lines, masks)
        return None if variant is None else self.sampler.sample(decoded.logits, variant)

    def compute(self, size: int) -> DecodeOutput:
        """Everything between the filled buffers and the ids. No shape and no address in it depends on the rows."""
        ids, slots, flat, blocks = torch.tensor_split(self._buffer, self._bounds.tolist())
        table = flat.view(-1, TILE_FIELDS)[:size]
        num_splits = choose_num_splits(size * self._loaded.kv.kv_heads, self._loaded.max_positions)
        tiles = Tiles(table, blocks, size, 1, num_splits)
        step = TiledStep(self._pool, self._layer_of, TilePlan(slots[:size], (tiles,)), self._kernels)
        hidden = self._loaded.backbone(ids[:size], table[:, 2], step, None)
        logits = self._loaded.head(hidden)
        return DecodeOutput(logits, greedy_ids(logits))

    def stage(self, rows: Sequence[Row], known_ids: Tensor | None = None) -> int | None:
        """Write the step into the buffers: the number of rows it is padded to, or None if it does not fit."""
        size = next((size for size in self._sizes if size >= len(rows)), None)
        block_size, scratch = self._pool.shape.block_size, self._pool.scratch_block
        blocks, begins = concat_block_tables([*(row.blocks for row in rows), (scratch,)])
        if size is None or len(blocks) > MAX_TABLE_ENTRIES:
            return None
        self._staging.reverse()
        count, host = len(rows), self._staging[0].numpy()
        ids, slots, flat, table = np.split(host, self._bounds)
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
        used = int(self._bounds[-1]) + len(blocks)
        self._buffer[:used].copy_(self._staging[0][:used], non_blocking=True)
        if known_ids is not None:
            self._buffer[:count].copy_(known_ids)
        return size


@dataclass(frozen=True, slots=True)
class Recording(Generic[Result]):
    """One recording, and where its result appears."""

    graph: torch.cuda.CUDAGraph
    result: Result


class DecodeGraphs:
    """The same on CUDA, recorded for each padded number of rows and replayed."""

    def __init__(self, static: StaticDecode, pool: CudaKvPool) -> None:
        self._static = static
        self._pool = pool
        self._memory = torch.cuda.graph_pool_handle()  # one for all: only one of them runs at a time
        self._steps: dict[int, Recording[DecodeOutput]] = {}
        self._samplers: dict[tuple[int, SamplingVariant], Recording[Tensor]] = {}
        self._num_moves = pool.num_moves
        self._disabled: set[str] = set()  # what could not be recorded, until the pool moves

    def launch(self, rows: Sequence[Row], ids: Tensor | None = None) -> DecodeOutput | None:
        """As `StaticDecode.launch`; None also where nothing can be recorded."""
        if self._num_moves != self._pool.num_moves:
            self._num_moves = self._pool.num_moves
            self._disabled.clear()
            self._steps.clear()
            self._samplers.clear()
        size = None if DECODING in self._disabled else self._static.stage(rows, ids)
        if size is None:
            return None
        recorded = self._steps.get(size) or self._capture_step(size)
        if recorded is None:
            return None
        recorded.graph.replay()
        return recorded.result

    def draw(
        self, decoded: DecodeOutput, rows: Sequence[DrawRow], num_lines: int, masks: Masks | None
    ) -> Tensor | None:
        """As `StaticDecode.draw`; None also where nothing can be recorded."""
        variant = None if self._disabled else self._static.sampler.stage(rows, num_lines, masks)
        if variant is None:
            return None
        recorded = self._samplers.get((len(decoded.logits), variant)) or self._capture_sampler(decoded, variant)
        if recorded is None:
            return None
        recorded.graph.replay()
        return recorded.result

    @property
    def is_usable(self) -> bool:
        """False once a recording failed, until the pool moves."""
        return DECODING not in self._disabled

    def capture_all(self) -> None:
        """Record every size and hold each replay against what it records; gives up where one differs.

        Overwrites the content of the pool's first blocks.
        """
        for size in reversed(self._static.sizes):  # the largest first: the others then find memory to use again
            rows = [Row((place,), 0, (place,), 1, None) for place in range(min(size, self._pool.num_blocks))]
            if self._static.stage(rows) is None or (recorded := self._capture_step(size)) is None:
                return
            expected = self._static.compute(size).logits.clone()
            recorded.graph.replay()
            if not torch.allclose(recorded.result.logits, expected, rtol=REPLAY_TOLERANCE, atol=REPLAY_TOLERANCE):
                self._disable(DECODING, f"a replay of {size} rows differs from what was recorded")
                return

    def capture_samplers(self) -> None:
        """Record every way to draw from the largest step, so that what recordings take is taken."""
        largest = self._steps.get(max(self._static.sizes))
        for variant in starmap(SamplingVariant, product((False, True), repeat=3)):
            if largest is not None and variant != SamplingVariant():  # the greedy_ids ids are found in the step
                self._capture_sampler(largest.result, variant)

    def _capture_step(self, size: int) -> Recording[DecodeOutput] | None:
        recorded = self._capture(DECODING, partial(self._static.compute, size))
        if recorded is not None:
            self._steps[size] = recorded
        return recorded

    def _capture_sampler(self, decoded: DecodeOutput, variant: SamplingVariant) -> Recording[Tensor] | None:
        recorded = self._capture(DRAWING, partial(self._static.sampler.sample, decoded.logits, variant))
        if recorded is not None:
            self._samplers[len(decoded.logits), variant] = recorded
        return recorded

    def _capture(self, what: str, compute: Callable[[], Result]) -> Recording[Result] | None:
        """Record this, computed once before: compiling and measuring cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            compute()
            with torch.cuda.graph(graph, pool=self._memory):
                result = compute()
        except RuntimeError as error:  # out of memory, or something waits for the device within a step
            self._disable(what, str(error).strip().splitlines()[0])
            return None
        return Recording(graph, result)

    def _disable(self, what: str, reason: str) -> None:
        log.warning("%s goes on without CUDA graphs: %s", what, reason)
        self._disabled.add(what)
        self._samplers.clear()  # what is not used any more holds no memory
        if what == DECODING:
            self._steps.clear()


def open_graphs(loaded: LoadedModel, pool: CudaKvPool, sizes: Sequence[int]) -> DecodeGraphs | None:
    """Recordings of steps padded to these numbers of rows; None where this model or device cannot be recorded."""
    if loaded.device.type != "cuda" or pool.kernels is None or loaded.recurrent is not None:
        return None
    graphs = DecodeGraphs(StaticDecode(loaded, pool, sizes), pool)
    graphs.capture_all()
    return graphs
