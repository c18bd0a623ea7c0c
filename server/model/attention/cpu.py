"""KV cache on the CPU and torch attention over it.

Layout of each layer:

    keys    [num_blocks, kv_heads, head_dim, block_size]    transposed: q @ keys reads them sequentially
    values  [num_blocks, kv_heads, block_size, head_dim]

Short rows are computed over all their (row, block) pairs at once in two batched products. Chunks are split into tiles;
each tile attends to the row's keys up to its own end.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.model.attention.base import AttentionStep, PoolShape
from server.model.attention.step_plan import (
    BlockRun,
    PairReduction,
    QueryChunk,
    RowPlan,
    ShortRows,
    StepPlan,
    plan_step,
)


class BlockMemory:
    """Contiguous memory of `num_blocks` blocks; pages are committed by the system when first written.

    keys, values: one tensor a layer, [num_blocks, elements]; subclasses define the layout within a block.
    """

    def __init__(self, shape: PoolShape, num_blocks: int, tail_bytes: int = 0) -> None:
        """`tail_bytes`: readable bytes after the last block."""
        self.shape = shape
        self.num_blocks = num_blocks
        self._memory = mmap.mmap(
            -1, max(1, num_blocks * shape.bytes_per_block + tail_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        storage = torch.frombuffer(self._memory, dtype=shape.stored)[
            : num_blocks * 2 * shape.layers * shape.part_elements
        ]
        parts = storage.view(shape.layers, 2, num_blocks, shape.part_elements)
        self.keys = [part[0] for part in parts]
        self.values = [part[1] for part in parts]

    def copy(self, source: int, target: int) -> None:
        """Copy a block in every layer."""
        for part in (*self.keys, *self.values):
            part[target].copy_(part[source])

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy blocks to as many others, none of which is among the sources."""
        for source, target in zip(sources, targets, strict=True):
            self.copy(source, target)

    def release(self, first_block: int) -> None:
        """Return the pages of all blocks from this one on to the system; they read as zeros afterwards."""
        part_bytes = self.shape.part_elements * self.shape.stored.itemsize
        page = mmap.PAGESIZE
        for part in range(2 * self.shape.layers):
            begin = (part * self.num_blocks + first_block) * part_bytes
            end = (part + 1) * self.num_blocks * part_bytes
            begin, end = -(-begin // page) * page, end // page * page
            if end > begin:
                self._memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def restore(self, num_blocks: int) -> int:
        """Make blocks up to this one usable again. Nothing to do: pages are committed again when written."""
        return self.num_blocks


class KvPool(BlockMemory):
    """KV cache in the layout for torch."""

    def __init__(self, shape: PoolShape, num_blocks: int) -> None:
        assert not shape.in_bytes, "torch reads elements"
        super().__init__(shape, num_blocks)
        each = (num_blocks, shape.kv_heads)
        self.keys = [part.view(*each, shape.head_dim, shape.block_size) for part in self.keys]
        self.values = [part.view(*each, shape.block_size, shape.head_dim) for part in self.values]
        # Views of the same memory as [num_blocks, block_size, kv_heads, head_dim], to write one token at a slot.
        self.key_slots = [keys.permute(0, 3, 1, 2) for keys in self.keys]
        self.value_slots = [values.transpose(1, 2) for values in self.values]

    def arrange(self, rows: Sequence[RowPlan], layer_of: dict[int, int]) -> AttentionStep:
        """Plan one step. `rows` are in the order of their tokens, short ones first, equal lengths together."""
        return PagedStep(self, layer_of, plan_step(rows, self.shape.block_size, self.shape.layer_bytes))


@dataclass(frozen=True, slots=True)
class PagedStep:
    """Attention of one step over a `KvPool`."""

    pool: KvPool
    layer_of: dict[int, int]  # the model's layer index -> the pool's
    plan: StepPlan

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `AttentionStep.attend`."""
        layer = self.layer_of[layer_index]
        plan = self.plan
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        if plan.partially_written is not None:
            # Stale NaNs would spread: 0 * NaN is NaN.
            keys.index_fill_(0, plan.partially_written, 0)
            values.index_fill_(0, plan.partially_written, 0)
        locations = (plan.write_blocks, plan.write_offsets)
        self.pool.key_slots[layer].index_put_(locations, key)
        self.pool.value_slots[layer].index_put_(locations, value)
        parts = [_attend_short(rows, query, keys, values, scaling) for rows in plan.short]
        for chunk in plan.chunks:
            own = slice(chunk.first_token, chunk.first_token + chunk.num_tokens)
            parts.append(_attend_chunk(chunk, query[own], keys, values, scaling))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_short(rows: ShortRows, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """[num_tokens, heads, head_dim] -> [num_rows * tokens of a row, heads, head_dim]."""
    kv_heads, head_dim = keys.shape[1:3]
    num_tokens = rows.num_rows * rows.num_tokens
    if num_tokens != query.shape[0]:
        query = query[rows.first_token : rows.first_token + num_tokens]
    # [rows, KV heads, query heads of a group, tokens, head_dim]: queries that share a KV head are rows of one product.
    own = query.reshape(rows.num_rows, rows.num_tokens, kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4)
    if rows.reduction is None:
        result = _attend_one_row(rows, own, keys, values, scaling)
    else:
        result = _attend_many_rows(rows, rows.reduction, own, keys, values, scaling)
    return result.transpose(1, 2).reshape(num_tokens, -1, head_dim)


def _attend_one_row(rows: ShortRows, own: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """One softmax over all blocks. Returns [1, heads, tokens, head_dim]."""
    _, kv_heads, head_dim, block_size = keys.shape
    _, _, groups, tokens, _ = own.shape
    pairs = rows.bias.shape[0]
    spread = own.reshape(1, kv_heads, groups * tokens, head_dim).expand(pairs, -1, -1, -1)
    scores = _products(spread, keys, rows.runs)
    # One pass that scales, masks, converts to float32 and transposes, so that a row's blocks are contiguous.
    row = torch.empty((kv_heads, groups, tokens, pairs, block_size))
    torch.add(
        rows.bias,
        scores.view(pairs, kv_heads, groups, tokens, block_size),
        alpha=scaling,
        out=row.permute(3, 0, 1, 2, 4),
    )
    weights = torch.softmax(row.view(kv_heads, groups * tokens, -1), -1).view(kv_heads, -1, pairs, block_size)
    pair_weights = torch.empty((pairs, kv_heads, groups * tokens, block_size), dtype=values.dtype)
    products = _products(pair_weights.copy_(weights.permute(2, 0, 1, 3)), values, rows.runs)
    result = products.sum(0, dtype=torch.float32).to(values.dtype)
    return result.view(1, kv_heads * groups, tokens, head_dim)


def _attend_many_rows(
    rows: ShortRows, reduction: PairReduction, own: Tensor, keys: Tensor, values: Tensor, scaling: float
) -> Tensor:
    """Softmax over each row's pairs: maxima, sums and products of blocks, reduced row by row.

    Returns [rows, heads, tokens, head_dim].
    """
    _, kv_heads, head_dim, block_size = keys.shape
    num_rows, _, groups, tokens, _ = own.shape
    pairs, grouped = rows.bias.shape[0], groups * tokens
    queries = own.reshape(num_rows, -1)
    if rows.has_foreign_blocks:
        queries = torch.cat((queries, queries[:1]))
    spread = queries.index_select(0, reduction.row_of).view(pairs, kv_heads, grouped, head_dim)
    scores = _products(spread, keys, rows.runs)
    scores = torch.add(rows.bias, scores.view(pairs, kv_heads, -1, tokens, block_size), alpha=scaling)
    scores = scores.view(pairs, kv_heads * grouped, block_size)
    weights = scores.sub_(_reduce_max(scores.amax(-1), reduction).unsqueeze(-1)).exp_()
    totals = _reduce_sum(weights.sum(-1), reduction)
    products = _products(weights.to(values.dtype).view(pairs, kv_heads, grouped, block_size), values, rows.runs)
    result = _reduce_sum(products.view(pairs, kv_heads * grouped, head_dim), reduction).div_(totals.unsqueeze(-1))
    return result[:num_rows].view(num_rows, kv_heads * groups, tokens, head_dim).to(values.dtype)


def _products(left: Tensor, cache: Tensor, runs: Sequence[BlockRun]) -> Tensor:
    """Multiply each pair's matrix by its block's: [pairs, KV heads, m, k] @ [blocks, KV heads, k, n]."""
    if len(runs) == 1:
        return torch.matmul(left, _read_blocks(cache, runs[0]))
    result = torch.empty((*left.shape[:3], cache.shape[3]), dtype=left.dtype)
    for run in runs:
        torch.matmul(left[run.pairs], _read_blocks(cache, run), out=result[run.pairs])
    return result


def _read_blocks(cache: Tensor, run: BlockRun) -> Tensor:
    if isinstance(run.blocks, slice):
        return cache[run.blocks]
    return cache.index_select(0, run.blocks)


def _reduce_max(of_pairs: Tensor, reduction: PairReduction) -> Tensor:
    """[pairs, n] -> each pair's row maximum, [pairs, n]."""
    of_rows = of_pairs.index_select(0, reduction.pairs_of.flatten()).view(*reduction.pairs_of.shape, -1).amax(1)
    return of_rows.index_select(0, reduction.row_of)


def _reduce_sum(of_pairs: Tensor, reduction: PairReduction) -> Tensor:
    """[pairs, ...] -> [rows, ...] in float32."""
    of_rows = torch.zeros((reduction.pairs_of.shape[0], *of_pairs.shape[1:]), dtype=torch.float32)
    return of_rows.index_add_(0, reduction.row_of, of_pairs.float())


def _attend_chunk(chunk: QueryChunk, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """[num_tokens, heads, head_dim] -> the same.

    A tile of queries attends to all keys up to its own end in two plain products: four times as fast as torch's fused
    attention on CPUs, and the scores of one tile stay in the CPU's caches.
    """
    num_blocks, kv_heads, head_dim, _ = keys.shape
    # [KV heads, head_dim, tokens] and [KV heads, tokens, head_dim], each in one pass: with the blocks as the third of
    # four dimensions, index_select copies contiguous memory.
    keys = keys.permute(1, 2, 0, 3).index_select(2, chunk.blocks).flatten(2)
    values = values.view(num_blocks, kv_heads, 1, -1).permute(1, 2, 0, 3).index_select(2, chunk.blocks)
    values = values.view(kv_heads, -1, head_dim)
    groups = query.shape[1] // kv_heads
    result = torch.empty_like(query)
    for first in range(0, chunk.num_tokens, chunk.tile):
        tile = slice(first, min(first + chunk.tile, chunk.num_tokens))
        begin, end = chunk.start + tile.start, chunk.start + tile.stop
        # [KV heads, tokens of the tile, heads of a group, head_dim]
        own = (query[tile] * scaling).view(-1, kv_heads, groups, head_dim).transpose(0, 1)
        scores = torch.bmm(own.reshape(kv_heads, -1, head_dim), keys[:, :, :end])
        scores.view(kv_heads, -1, groups, end)[..., begin:].masked_fill_(_future_mask(end - begin), -torch.inf)
        attended = torch.bmm(torch.softmax(scores, -1), values[:, :end])
        result[tile] = attended.view(kv_heads, -1, groups, head_dim).transpose(0, 1).flatten(1, 2)
    return result


def _future_mask(num_tokens: int) -> Tensor:
    """True where one of a tile's tokens comes after another: [num_tokens, 1, num_tokens]."""
    return torch.ones((num_tokens, num_tokens), dtype=torch.bool).triu_(1).unsqueeze(1)
