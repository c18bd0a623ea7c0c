"""The KV cache on the CPU and the attention that reads it: same layout, same file.

    keys    [num_blocks, kv_heads, head_dim, block_size]    transposed: q @ keys streams them as they lie
    values  [num_blocks, kv_heads, block_size, head_dim]

of each layer. A step's rows are of two kinds. Short ones (decode, and a few verified tokens) are computed over all
(row, block) pairs at once in two batched products; blocks that lie together are read in place, others are gathered.
Long ones (prompt chunks) attend to their own tokens causally and to the cached ones before them, and the two parts
are merged by their log-sum-exp.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHORT_TOKENS = 16  # rows with more tokens than this are chunks
DENSE_ENOUGH = 0.7  # share of a range of blocks that must be ours to be read in place: a gather costs 0.6 of a read
HUGE_PAGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class PoolShape:
    """The size of one block, over all attention layers."""

    block_size: int  # tokens
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def part_elements(self) -> int:
        """Elements of one block's keys, or values, in one layer."""
        return self.kv_heads * self.head_dim * self.block_size

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block: keys and values in every layer."""
        return 2 * self.layers * self.part_elements * self.dtype.itemsize


class KvPool:
    """Keys and values of `num_blocks` blocks in one stretch of memory, committed page by page as it is written."""

    def __init__(self, shape: PoolShape, num_blocks: int) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        self._memory = mmap.mmap(
            -1, max(1, num_blocks * shape.bytes_per_block), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        storage = torch.frombuffer(self._memory, dtype=shape.dtype)[
            : num_blocks * 2 * shape.layers * shape.part_elements
        ]
        parts = storage.view(shape.layers, 2, num_blocks, shape.kv_heads, -1)
        self.keys = [part[0].view(num_blocks, shape.kv_heads, shape.head_dim, shape.block_size) for part in parts]
        self.values = [part[1].view(num_blocks, shape.kv_heads, shape.block_size, shape.head_dim) for part in parts]

    def release(self, first_block: int) -> None:
        """Give the pages behind all blocks from this one on back to the system; they read as zeros afterwards."""
        part_bytes = self.shape.part_elements * self.shape.dtype.itemsize
        page = mmap.PAGESIZE
        for part in range(2 * self.shape.layers):
            begin = (part * self.num_blocks + first_block) * part_bytes
            end = (part + 1) * self.num_blocks * part_bytes
            begin, end = -(-begin // page) * page, end // page * page
            if end > begin:
                self._memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def restore(self, num_blocks: int) -> int:
        """Blocks up to this one may be used again: nothing to do here, pages come back when they are written."""
        return self.num_blocks


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Where one row's tokens are: `num_tokens` new ones after `start` cached ones, in these blocks."""

    num_tokens: int
    start: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class ShortRows:
    """Neighbouring rows with the same small number of tokens, and every block that one of them reads.

    A pair is one row reading one block. Pairs are in the order of the blocks; `blocks` is a slice where they lie
    together. Blocks of others inside such a slice belong to one more row, `num_rows`, whose result is dropped.
    """

    first_token: int
    num_rows: int
    num_tokens: int  # of each row
    strangers: bool  # whether the slice holds blocks of others
    blocks: slice | Tensor  # [pairs]
    row_of: Tensor | None  # [pairs]; None: one row owns all
    pairs_of: Tensor | None  # [rows, most pairs of a row]: the pairs of each row, the first one repeated at the end
    bias: Tensor  # [pairs, 1, 1, num_tokens, block_size], 0 or -inf


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row with many tokens."""

    first_token: int
    num_tokens: int
    start: int
    blocks: Tensor  # [blocks that hold the cached tokens before it]


@dataclass(frozen=True, slots=True)
class PagedStep:
    """What attention must know about one step; handed through the model's forward to every layer."""

    pool: KvPool
    layer_of: dict[int, int]  # the model's layer index -> the pool's
    write_blocks: Tensor  # [num_tokens]
    write_offsets: Tensor  # [num_tokens]
    fresh_blocks: Tensor | None  # begun but not filled in this step: what others left there must not be read
    short: tuple[ShortRows, ...]
    chunks: tuple[Chunk, ...]

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Write the new keys and values, then attend to all that each token may see.

        query [heads, num_tokens, head_dim], key and value [kv_heads, num_tokens, head_dim];
        returns [num_tokens, heads, head_dim].
        """
        layer = self.layer_of[layer_index]
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        if self.fresh_blocks is not None:
            # A weight of 0 does not hide a NaN that a broken sequence left behind.
            keys.index_fill_(0, self.fresh_blocks, 0)
            values.index_fill_(0, self.fresh_blocks, 0)
        keys.permute(0, 3, 1, 2).index_put_((self.write_blocks, self.write_offsets), key.transpose(0, 1))
        values.transpose(1, 2).index_put_((self.write_blocks, self.write_offsets), value.transpose(0, 1))
        parts = [_attend_short(rows, query, keys, values, scaling) for rows in self.short]
        for chunk in self.chunks:
            own = slice(chunk.first_token, chunk.first_token + chunk.num_tokens)
            parts.append(_attend_chunk(chunk, query[:, own], (key[:, own], value[:, own]), (keys, values), scaling))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def plan_step(rows: Sequence[RowPlan], pool: KvPool, layer_of: dict[int, int]) -> PagedStep:
    """Arrange one step. `rows` are in the order of their tokens, short ones first, equal lengths together."""
    block_size = pool.shape.block_size
    write_blocks, write_offsets = _write_places(rows, block_size)
    short: list[ShortRows] = []
    chunks: list[Chunk] = []
    first_token = i = 0
    while i < len(rows):
        num_tokens = rows[i].num_tokens
        if num_tokens > SHORT_TOKENS:
            cached = rows[i].blocks[: -(-rows[i].start // block_size)]
            chunks.append(Chunk(first_token, num_tokens, rows[i].start, torch.tensor(cached, dtype=torch.int64)))
            i += 1
            first_token += num_tokens
            continue
        alike = i + 1
        while alike < len(rows) and rows[alike].num_tokens == num_tokens:
            alike += 1
        short.append(_plan_short(first_token, rows[i:alike], block_size))
        first_token += num_tokens * (alike - i)
        i = alike
    return PagedStep(
        pool, layer_of, write_blocks, write_offsets, _fresh_blocks(rows, block_size), tuple(short), tuple(chunks)
    )


def paged_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, num_tokens, head_dim] in, [1, num_tokens, heads, head_dim] out."""
    step: PagedStep = kwargs["paged"]
    scaling = kwargs.get("scaling") or module.head_dim**-0.5
    return step.attend(module.layer_idx, query[0], key[0], value[0], scaling).unsqueeze(0), None


def _write_places(rows: Sequence[RowPlan], block_size: int) -> tuple[Tensor, Tensor]:
    blocks, offsets = [], []
    for row in rows:
        positions = np.arange(row.start, row.start + row.num_tokens)
        first = row.start // block_size
        table = np.asarray(row.blocks[first : (row.start + row.num_tokens - 1) // block_size + 1], dtype=np.int64)
        blocks.append(table[positions // block_size - first])
        offsets.append(positions % block_size)
    return torch.from_numpy(np.concatenate(blocks)), torch.from_numpy(np.concatenate(offsets))


def _fresh_blocks(rows: Sequence[RowPlan], block_size: int) -> Tensor | None:
    fresh = []
    for row in rows:
        end = row.start + row.num_tokens
        if end % block_size and end - end % block_size >= row.start:
            fresh.append(row.blocks[end // block_size])
    return torch.tensor(fresh) if fresh else None


def _plan_short(first_token: int, rows: Sequence[RowPlan], block_size: int) -> ShortRows:
    num_tokens = rows[0].num_tokens
    counts = np.array([-(-(row.start + num_tokens) // block_size) for row in rows])
    physical = np.concatenate([np.asarray(row.blocks[:count]) for row, count in zip(rows, counts, strict=True)])
    row_of = np.repeat(np.arange(len(rows)), counts)
    index_in_row = np.arange(len(physical)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(physical, kind="stable")
    physical, row_of, index_in_row = physical[order], row_of[order], index_in_row[order]
    low, high = int(physical[0]), int(physical[-1]) + 1
    in_place = len(physical) >= DENSE_ENOUGH * (high - low) and bool((np.diff(physical) > 0).all())
    strangers = in_place and len(physical) < high - low
    if strangers:
        spread = np.full(high - low, len(rows))
        spread[physical - low] = row_of
        inner = np.zeros(high - low, dtype=np.int64)
        inner[physical - low] = index_in_row
        row_of, index_in_row = spread, inner
    # Token t of a row sees positions 0 .. start + t.
    starts = np.array([row.start for row in rows] + [0])[row_of]
    last_seen = starts[:, None, None] + np.arange(num_tokens)[None, :, None]
    position = index_in_row[:, None, None] * block_size + np.arange(block_size)[None, None, :]
    bias = np.where(position <= last_seen, np.float32(0), np.float32(-np.inf))
    return ShortRows(
        first_token=first_token,
        num_rows=len(rows),
        num_tokens=num_tokens,
        strangers=strangers,
        blocks=slice(low, high) if in_place else torch.from_numpy(physical),
        row_of=None if len(rows) == 1 and not strangers else torch.from_numpy(row_of),
        pairs_of=None if len(rows) == 1 and not strangers else torch.from_numpy(_invert(row_of)),
        bias=torch.from_numpy(bias[:, None, None]),
    )


def _invert(row_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """[pairs] -> [rows, most pairs of a row]."""
    counts = np.bincount(row_of)
    order = np.argsort(row_of, kind="stable")
    first = np.cumsum(counts) - counts
    steps = np.arange(counts.max())
    return order[first[:, None] + np.where(steps < counts[:, None], steps, 0)]


def _attend_short(rows: ShortRows, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """Softmax over each row's pairs: block maxima, block sums and block products, folded row by row."""
    _, kv_heads, head_dim, block_size = keys.shape
    heads, tokens, num_rows = query.shape[0], rows.num_tokens, rows.num_rows
    grouped = heads // kv_heads * tokens  # queries that share a KV head
    keys = keys[rows.blocks] if isinstance(rows.blocks, slice) else keys.index_select(0, rows.blocks)
    values = values[rows.blocks] if isinstance(rows.blocks, slice) else values.index_select(0, rows.blocks)
    pairs = keys.shape[0]

    own = query[:, rows.first_token : rows.first_token + num_rows * tokens]
    own = own.view(kv_heads, -1, num_rows, tokens, head_dim).permute(2, 0, 1, 3, 4).reshape(num_rows, -1)
    if rows.row_of is None:
        spread = own.expand(pairs, -1)
    else:
        if rows.strangers:
            own = torch.cat((own, own[:1]))
        spread = own.index_select(0, rows.row_of)
    scores = torch.bmm(
        spread.reshape(pairs * kv_heads, grouped, head_dim), keys.view(pairs * kv_heads, head_dim, block_size)
    )
    scores = torch.add(rows.bias, scores.view(pairs, kv_heads, -1, tokens, block_size), alpha=scaling)
    scores = scores.view(pairs, kv_heads * grouped, block_size)
    peaks = _fold_max(scores.amax(-1), rows)
    weights = scores.sub_(peaks.unsqueeze(-1)).exp_()
    totals = _fold_sum(weights.sum(-1), rows)
    products = torch.bmm(
        weights.to(values.dtype).view(pairs * kv_heads, grouped, block_size),
        values.view(pairs * kv_heads, block_size, head_dim),
    )
    result = _fold_sum(products.view(pairs, kv_heads * grouped, head_dim), rows) / totals.unsqueeze(-1)
    result = result[:num_rows].view(num_rows, heads, tokens, head_dim).transpose(1, 2)
    return result.to(query.dtype).reshape(num_rows * tokens, heads, head_dim)


def _fold_max(of_pairs: Tensor, rows: ShortRows) -> Tensor:
    """[pairs, n] -> each pair's row maximum, [pairs, n] or [1, n]."""
    if rows.row_of is None or rows.pairs_of is None:
        return of_pairs.amax(0, keepdim=True)
    of_rows = of_pairs.index_select(0, rows.pairs_of.flatten()).view(*rows.pairs_of.shape, -1).amax(1)
    return of_rows.index_select(0, rows.row_of)


def _fold_sum(of_pairs: Tensor, rows: ShortRows) -> Tensor:
    """[pairs, ...] -> [rows, ...] in float32."""
    if rows.row_of is None:
        return of_pairs.sum(0, keepdim=True, dtype=torch.float32)
    of_rows = torch.zeros((rows.num_rows + 1, *of_pairs.shape[1:]), dtype=torch.float32)
    return of_rows.index_add_(0, rows.row_of, of_pairs.float())


def _attend_chunk(
    chunk: Chunk, query: Tensor, own: tuple[Tensor, Tensor], cached: tuple[Tensor, Tensor], scaling: float
) -> Tensor:
    """[heads, num_tokens, head_dim] -> [num_tokens, heads, head_dim]."""
    result, result_lse = _flash(query, *own, scaling, causal=True)
    if chunk.start:
        _, kv_heads, head_dim, _ = cached[0].shape
        keys = cached[0].index_select(0, chunk.blocks).permute(1, 0, 3, 2).reshape(kv_heads, -1, head_dim)
        values = cached[1].index_select(0, chunk.blocks).transpose(0, 1).reshape(kv_heads, -1, head_dim)
        before = (keys[:, : chunk.start], values[:, : chunk.start])
        other, other_lse = _flash(query, *before, scaling, causal=False)
        share = torch.sigmoid(other_lse - result_lse).unsqueeze(-1)
        result = torch.lerp(result.float(), other.float(), share).to(query.dtype)
    return result.transpose(0, 1)


def _flash(query: Tensor, key: Tensor, value: Tensor, scaling: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    """torch's fused attention with its log-sum-exp: [heads, tokens, head_dim], [heads, tokens]."""
    result, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0), 0.0, causal, attn_mask=None, scale=scaling
    )
    return result[0], lse[0]
