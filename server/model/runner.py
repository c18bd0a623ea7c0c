"""Executes a Batch: tensors, one forward pass, sampled ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.errors import CannotStart
from server.model.adapters.step import AdaptedModel, step_adapters
from server.model.attention.base import PoolShape
from server.model.attention.cpu import BlockMemory, KvPool
from server.model.attention.gpu import CudaKvPool
from server.model.attention.step_plan import MAX_SHORT_TOKENS, RowPlan, concat_ranges
from server.model.attention.tiles import tile_sizes
from server.model.batch import Batch, Row
from server.model.cpu.native import NativeHead, NativePool, supports_pool
from server.model.device import as_memory_error, to_device
from server.model.graphs.decode_graphs import DecodeGraphs, DecodeOutput, is_pure_decode, open_graphs
from server.model.kernel_selection import choose_kernels, prefers_torch_for_prompts
from server.model.layers.recurrent import RecurrentStep, StatePool, StateRow
from server.model.loading.loaded_model import LoadedModel
from server.model.sampling.grammar import Masks
from server.model.sampling.prompt_scores import PromptScores, merge_scores, piece_lines, score_prompt
from server.model.sampling.sampler import (
    PendingSamples,
    SamplingRow,
    has_banned,
    is_greedy,
    sample_ids,
    takes_maximum,
)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A launched step. Lines are the tokens with logits, in row order."""

    logits: Tensor | None  # [lines, vocab]; None if they are computed when the sampling settings are known
    hidden: Tensor | None = None  # [lines, hidden], if logits is None
    decoded: DecodeOutput | None = None  # for a step on static buffers
    scores: Mapping[int, PromptScores] = field(default_factory=dict)  # by row


class DecodePath(Protocol):
    """Fast path for pure decode steps: `StaticDecode` or `DecodeGraphs`."""

    def launch(self, rows: Sequence[Row], ids: Tensor | None = None) -> DecodeOutput | None:
        """Launch a step of one token a row, `ids` if given; None if it must be computed by the general path."""

    def sample(
        self, decoded: DecodeOutput, rows: Sequence[SamplingRow], num_lines: int, masks: Masks | None
    ) -> Tensor | None:
        """Ids for the lines of such a step; None if they must be sampled by the general path."""


class Runner:
    """Implements the engine's `Model` and `Pool`: computes batches over one KV pool."""

    def __init__(self, loaded: LoadedModel, num_blocks: int, block_size: int, num_slots: int = 0) -> None:
        self._loaded = loaded
        self.pool = open_pool(loaded, num_blocks, block_size)
        self._layer_of = {index: i for i, index in enumerate(loaded.kv.layer_indices)}
        shape = loaded.recurrent
        self.states = StatePool(shape, num_slots, loaded.dtype, loaded.device) if shape else None
        self._decode: DecodePath | None = None
        self._adapters: dict[int, AdaptedModel] = {}

    def add_adapter(self, handle: int, adapter: AdaptedModel) -> None:
        """Compute rows of this handle with an adapter that the model's backbone has made."""
        assert handle > 0, "0 is the base model alone"
        self._adapters[handle] = adapter

    def drop_adapter(self, handle: int) -> None:
        """Free an adapter; no row of a later step has its handle."""
        del self._adapters[handle]

    def capture_graphs(self, sizes: Sequence[int], *, samplers: bool = False) -> bool:
        """Capture decode steps padded to these numbers of rows as CUDA graphs. Overwrites the pool's content.

        `samplers`: also capture sampling for the largest number, which is otherwise done on first use. Returns whether
        decode steps use graphs; False where the model or the device does not allow it.
        """
        if not isinstance(self.pool, CudaKvPool):
            return False
        with as_memory_error(), torch.inference_mode():
            self._decode = graphs = open_graphs(self._loaded, self.pool, sizes)
            if graphs is not None and samplers:
                graphs.capture_samplers()
        return graphs is not None and graphs.is_usable

    def describe(self) -> str:
        """Which attention and which decode steps are in use, for the log of an engine on CUDA."""
        kernels = isinstance(self.pool, CudaKvPool) and self.pool.kernels is not None
        captured = isinstance(self._decode, DecodeGraphs) and self._decode.is_usable
        return f"{'Triton kernels' if kernels else 'torch'}, {'CUDA graphs' if captured else 'no CUDA graphs'}"

    def launch(self, batch: Batch) -> Ticket:
        """Start computing the batch; on CUDA without waiting for it. Raises MemoryError."""
        return self._launch(batch.rows, None)

    def launch_after(self, batch: Batch, pending: PendingSamples, lines: Sequence[int]) -> Ticket:
        """As `launch`, for rows of one token each, taken from these lines of `pending` without reading it back."""
        with as_memory_error(), torch.inference_mode():
            ids = pending.ids.clamp(min=0)  # faults are negative; the result of their rows is discarded
            if list(lines) != list(range(len(ids))):
                ids = ids[to_device(lines, ids.device)]
        return self._launch(batch.rows, ids)

    def sample(self, ticket: Ticket, batch: Batch, masks: Masks | None) -> PendingSamples:
        """Sample for each row that has a RowSampling, in row order. Synchronizes only for top_p without top_k.

        `batch` is the launched one, with final sampling settings. Called once for a ticket, before the next launch.
        Raises MemoryError.
        """
        samples = self._sample(ticket, batch, masks)
        if ticket.scores:
            samples.add_scores = partial(merge_scores, batch.rows, ticket.scores)
        return samples

    def _sample(self, ticket: Ticket, batch: Batch, masks: Masks | None) -> PendingSamples:
        rows = _sampling_rows(batch.rows)
        is_plain = masks is None and all(is_greedy(row.sampling) for row in rows)
        with as_memory_error(), torch.inference_mode():
            if not rows:
                return PendingSamples(torch.empty(0, dtype=torch.int64), rows)
            if ticket.decoded is not None and self._decode is not None:
                decoded, num_lines = ticket.decoded, len(batch.rows)
                ids = decoded.greedy_ids if is_plain else self._decode.sample(decoded, rows, num_lines, masks)
                if ids is not None:
                    return PendingSamples(ids[:num_lines], rows)
            if ticket.logits is not None:
                return sample_ids(ticket.logits, rows, masks)
            head = self._loaded.head
            assert isinstance(head, NativeHead) and ticket.hidden is not None
            if masks is None and all(takes_maximum(row.sampling) for row in rows):
                ids = head.greedy_ids(ticket.hidden)  # saves storing the logits
                if not has_banned(ids, rows):
                    return PendingSamples(ids, rows)
            return sample_ids(head(ticket.hidden), rows, masks)

    def copy_state(self, source: int, target: int) -> None:
        """Copy recurrent state between slots (snapshots). Raises MemoryError."""
        assert self.states is not None, "this model has no recurrent state"
        with as_memory_error():
            self.states.copy(source, target)

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's keys and values (CPU pools only)."""
        assert isinstance(self.pool, BlockMemory), "blocks are copied on the CPU only"
        self.pool.copy(source, target)

    def move_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy keys and values of blocks to as many others, none of which is among the sources; needs no memory."""
        with torch.inference_mode():
            self.pool.move(sources, targets)

    def release(self, first_block: int) -> None:
        """Free the memory of all blocks from this one on; their content is lost."""
        self.pool.release(first_block)

    def restore(self, num_blocks: int) -> int:
        """Allocate memory for blocks up to this one again; returns how many there are."""
        return self.pool.restore(num_blocks)

    def _launch(self, rows: Sequence[Row], ids: Tensor | None) -> Ticket:
        """`ids` [rows] on the device replace the rows' token ids where the host does not know them yet."""
        # Recorded steps know the base model alone.
        if self._decode is not None and is_pure_decode(rows) and not any(row.adapter for row in rows):
            with as_memory_error(), torch.inference_mode():
                decoded = self._decode.launch(rows, ids)
            if decoded is not None:
                return Ticket(decoded.logits[: len(rows)], decoded=decoded)
        order = sorted(range(len(rows)), key=lambda i: _sort_key(rows[i]))
        with as_memory_error(), torch.inference_mode():
            hidden = self._compute([rows[i] for i in order], ids if ids is None else ids[to_device(order, ids.device)])
            scores = self._score(hidden, rows, order)
            lines = _logit_lines(rows, order)
            hidden = hidden if lines is None else hidden[to_device(lines, hidden.device)]
            if isinstance(self._loaded.head, NativeHead):
                return Ticket(None, hidden, scores=scores)
            return Ticket(self._loaded.head(hidden), scores=scores)

    def _score(self, hidden: Tensor, rows: Sequence[Row], order: Sequence[int]) -> dict[int, PromptScores]:
        """Log probabilities of the rows' targets; `hidden` has the rows in this order."""
        scores, end, size = dict[int, PromptScores](), 0, piece_lines(self._loaded.vocab_size)
        for i in order:
            begin, end = end, end + len(rows[i].token_ids)
            targets = rows[i].targets
            if targets is not None:
                lines = hidden[begin + targets.first : begin + targets.first + len(targets.ids)]
                scores[i] = score_prompt(lines, self._loaded.head, targets, size)
        return scores

    def _compute(self, rows: Sequence[Row], device_ids: Tensor | None) -> Tensor:
        """Hidden states of all tokens, [num_tokens, hidden]; `device_ids` as `ids` of `_launch`."""
        plans = [RowPlan(len(row.token_ids), row.start, row.blocks) for row in rows]
        lengths = np.array([plan.num_tokens for plan in plans])
        ids = np.fromiter(chain.from_iterable(row.token_ids for row in rows), np.int64, lengths.sum())
        positions = concat_ranges(np.array([plan.start for plan in plans]), lengths)
        device = self._loaded.device
        return self._loaded.backbone(
            to_device(ids, device) if device_ids is None else device_ids,
            to_device(positions, device),
            self.pool.arrange(plans, self._layer_of),
            self._plan_states(rows),
            step_adapters(rows, self._adapters),
        )

    def _plan_states(self, rows: Sequence[Row]) -> RecurrentStep | None:
        if self.states is None:
            return None
        plans = []
        for row in rows:
            assert row.slot is not None, "a row of a recurrent model has a slot"
            plans.append(StateRow(len(row.token_ids), row.start, row.slot))
        return RecurrentStep(self.states, plans)


def open_pool(loaded: LoadedModel, num_blocks: int, block_size: int) -> KvPool | NativePool | CudaKvPool:
    """Allocate the KV pool in the layout of the model's device.

    Raises CannotStart for a pool of bytes where no kernels read it.
    """
    shape = pool_shape(loaded, block_size)
    if loaded.device.type == "cpu":
        if loaded.kernels is not None and supports_pool(shape):
            return NativePool(shape, num_blocks, loaded.kernels)
        _refuse_bytes(shape, f"the CPU kernels, which do not compute heads of {shape.head_dim} in {shape.dtype}")
        return KvPool(shape, num_blocks)
    kernels = choose_kernels(shape, loaded.kv.heads, loaded.device)
    if kernels is None:
        _refuse_bytes(shape, "the Triton kernels, which are off here: the log says why")
    sizes = tile_sizes(shape, loaded.kv.heads)
    by_torch = kernels is not None and prefers_torch_for_prompts(kernels, shape, loaded.kv.heads, loaded.device)
    return CudaKvPool(shape, num_blocks, loaded.device, kernels, sizes, prompts_by_torch=by_torch)


def _refuse_bytes(shape: PoolShape, reason: str) -> None:
    if shape.in_bytes:
        raise CannotStart(f"--kv-dtype int8 takes {reason}; use --kv-dtype auto")


def pool_shape(loaded: LoadedModel, block_size: int) -> PoolShape:
    """The size of one of the model's KV blocks."""
    kv = loaded.kv
    layers = len(kv.layer_indices)
    return PoolShape(block_size, layers, kv.kv_heads, kv.head_dim, loaded.dtype, loaded.kv_in_bytes)


def _sort_key(row: Row) -> tuple[int, bool, int]:
    """The order that attention and recurrent layers expect: short rows first, by length, new sequences last.

    Of those, rows with the same adapter are together.
    """
    return min(len(row.token_ids), MAX_SHORT_TOKENS + 1), row.start == 0, row.adapter


def _logit_lines(rows: Sequence[Row], order: Sequence[int]) -> NDArray[np.int64] | None:
    """Indices of the tokens with logits in the reordered batch, in the original order of the rows.

    None if these are all tokens in their order.
    """
    if all(i == place and len(rows[i].token_ids) == rows[i].num_logits for place, i in enumerate(order)):
        return None
    ends = np.zeros(len(rows), dtype=np.int64)
    ends[list(order)] = np.cumsum([len(rows[i].token_ids) for i in order])
    counts = np.array([row.num_logits for row in rows])
    return concat_ranges(ends - counts, counts)


def _sampling_rows(rows: Sequence[Row]) -> tuple[SamplingRow, ...]:
    result: list[SamplingRow] = []
    first_line = 0
    for row in rows:
        if row.sampling is not None:
            drafts = tuple(row.token_ids[len(row.token_ids) - row.num_logits + 1 :])
            result.append(SamplingRow(row.sampling, drafts, first_line))
        first_line += row.num_logits
    return tuple(result)
