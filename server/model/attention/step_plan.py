"""How one step's rows are laid over the blocks: where keys are written, and what each row reads. Integers only.

A step's rows are of two kinds. Short ones (decode, and a few verified tokens) are read as (row, block) pairs in few
products: blocks that lie together are read in place, and only stray ones are gathered. Long ones (prompt chunks) come
alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_SHORT_TOKENS = 16  # rows with more tokens than this are chunks
MAX_READ_TOKENS = 32_768  # tokens read by the rows of one product: many rows that share a long prefix take memory each
MAX_CHUNK_TILE, MIN_CHUNK_TILE = 128, 8  # tokens of a chunk that attend at a time
MAX_TILE_SCORES = (
    1 << 18
)  # tokens of a tile times tokens that they see, so that scores of long contexts take no more memory
MIN_RUN_DENSITY = (
    0.7  # share of a run of blocks that must be ours to be read in place: has_foreign_blocks take memory too
)
MIN_RUN_BYTES = 256 << 10  # what a CPU reads while it starts one more product for each of keys and values


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Where one row's tokens are: `num_tokens` new ones after `start` cached ones, in these blocks."""

    num_tokens: int
    start: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class PairReduction:
    """Which row each pair belongs to, and back."""

    row_of: Tensor  # [pairs]
    pairs_of: Tensor  # [rows, most pairs of a row]: the pairs of each row, the first one repeated at the end


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Neighbouring pairs and their blocks: a slice of the pool, read in place, or stray ones, to be gathered."""

    pairs: slice
    blocks: slice | Tensor


@dataclass(frozen=True, slots=True)
class ShortRows:
    """Neighbouring rows with the same small number of tokens, and every block that one of them reads.

    A pair is one row reading one block; two rows that share a block are two pairs. Blocks of others inside a run
    belong to one more row, `num_rows`, whose result is dropped.
    """

    first_token: int
    num_rows: int
    num_tokens: int  # of each row
    has_foreign_blocks: bool  # whether a run holds blocks of others
    runs: tuple[BlockRun, ...]
    reduction: PairReduction | None  # None: one row owns all
    bias: Tensor  # [pairs, 1, 1, num_tokens, block_size], 0 or -inf


@dataclass(frozen=True, slots=True)
class QueryChunk:
    """One row with many tokens."""

    first_token: int
    num_tokens: int
    start: int
    tile: int  # tokens of it that attend at a time
    blocks: Tensor  # [blocks that hold it and the cached tokens before it]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's rows, in the order of their tokens: the short ones, then the chunks."""

    write_blocks: Tensor  # [num_tokens]
    write_offsets: Tensor  # [num_tokens]
    partially_written: Tensor | None  # begun but not filled in this step: what others left there must not be read
    short: tuple[ShortRows, ...]
    chunks: tuple[QueryChunk, ...]


def plan_step(rows: Sequence[RowPlan], block_size: int, block_bytes: int) -> StepPlan:
    """Arrange one step. `rows` are in the order of their tokens, short ones first, equal lengths together.

    `block_bytes`: keys and values of one block in one layer.
    """
    min_run = max(1, MIN_RUN_BYTES // block_bytes)
    write_blocks, write_offsets = write_locations(rows, block_size)
    short: list[ShortRows] = []
    chunks: list[QueryChunk] = []
    first_token = i = 0
    while i < len(rows):
        num_tokens = rows[i].num_tokens
        if num_tokens > MAX_SHORT_TOKENS:
            end = rows[i].start + num_tokens
            read = torch.tensor(rows[i].blocks[: -(-end // block_size)])
            tile = min(MAX_CHUNK_TILE, max(MIN_CHUNK_TILE, MAX_TILE_SCORES // end))
            chunks.append(QueryChunk(first_token, num_tokens, rows[i].start, tile, read))
            i += 1
            first_token += num_tokens
            continue
        end_row, num_read = i + 1, _num_read_tokens(rows[i])
        while end_row < len(rows) and rows[end_row].num_tokens == num_tokens:
            num_read += _num_read_tokens(rows[end_row])
            if num_read > MAX_READ_TOKENS:
                break
            end_row += 1
        short.append(_plan_short(first_token, rows[i:end_row], block_size, min_run))
        first_token += num_tokens * (end_row - i)
        i = end_row
    return StepPlan(write_blocks, write_offsets, partially_written(rows, block_size), tuple(short), tuple(chunks))


def _num_read_tokens(row: RowPlan) -> int:
    """Tokens that the row's tokens read, over all of them: what is gathered and scored grows with it."""
    return (row.start + row.num_tokens) * row.num_tokens


def write_locations(rows: Sequence[RowPlan], block_size: int) -> tuple[Tensor, Tensor]:
    """The block of each new token, and its place in it. [num_tokens], [num_tokens]."""
    blocks, offsets = [], []
    for row in rows:
        positions = np.arange(row.start, row.start + row.num_tokens)
        first = row.start // block_size
        table = np.asarray(row.blocks[first : (row.start + row.num_tokens - 1) // block_size + 1], dtype=np.int64)
        blocks.append(table[positions // block_size - first])
        offsets.append(positions % block_size)
    return torch.from_numpy(np.concatenate(blocks)), torch.from_numpy(np.concatenate(offsets))


def partially_written(rows: Sequence[RowPlan], block_size: int) -> Tensor | None:
    """Blocks whose first token is written in this step and whose last is not."""
    fresh = []
    for row in rows:
        end = row.start + row.num_tokens
        if end % block_size and end - end % block_size >= row.start:
            fresh.append(row.blocks[end // block_size])
    return torch.tensor(fresh) if fresh else None


def concat_ranges(begins: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """begin, begin + 1, ...: `counts[i]` numbers from `begins[i]` on, for each i in occurrence."""
    ends = np.cumsum(counts)
    numbers: NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(begins - (ends - counts), counts)
    return numbers


def _plan_short(first_token: int, rows: Sequence[RowPlan], block_size: int, min_run: int) -> ShortRows:
    num_tokens = rows[0].num_tokens
    counts = np.array([-(-(row.start + num_tokens) // block_size) for row in rows])
    physical = np.concatenate([np.asarray(row.blocks[:count]) for row, count in zip(rows, counts, strict=True)])
    row_of = np.repeat(np.arange(len(rows)), counts)
    index_in_row = concat_ranges(np.zeros_like(counts), counts)
    # Of one row alone all pairs are its own: no row is there to take what has_foreign_blocks would add.
    order, runs = _find_runs(physical, min_run, max_gap=min_run if len(rows) > 1 else 0)
    row_of = np.append(row_of, len(rows))[order]
    index_in_row = np.append(index_in_row, 0)[order]
    # Token t of a row sees positions 0 .. start + t.
    starts = np.array([row.start for row in rows] + [0])[row_of]
    last_seen = starts[:, None, None] + np.arange(num_tokens)[None, :, None]
    position = index_in_row[:, None, None] * block_size + np.arange(block_size)[None, None, :]
    bias = np.where(position <= last_seen, np.float32(0), np.float32(-np.inf))
    return ShortRows(
        first_token=first_token,
        num_rows=len(rows),
        num_tokens=num_tokens,
        has_foreign_blocks=len(order) > len(physical),
        runs=runs,
        reduction=None
        if len(rows) == 1
        else PairReduction(torch.from_numpy(row_of), torch.from_numpy(_invert(row_of))),
        bias=torch.from_numpy(bias[:, None, None]),
    )


def _find_runs(
    physical: NDArray[np.int64], min_run: int, max_gap: int
) -> tuple[NDArray[np.int64], tuple[BlockRun, ...]]:
    """The order in which pairs are computed, -1 for a stranger's, and the runs that they form.

    A run of blocks is read in place, with up to `max_gap` has_foreign_blocks between two of ours; one of fewer than `min_run`
    blocks, or with too many has_foreign_blocks, is gathered. Rows that share blocks read them in runs of their own.
    """
    occurrence = _occurrence_index(physical)
    order = np.lexsort((physical, occurrence))
    steps, same_turn = np.diff(physical[order]), np.diff(occurrence[order]) == 0
    cuts = np.flatnonzero(~same_turn | (steps > max_gap + 1)) + 1
    orders: list[NDArray[np.int64]] = []
    runs: list[BlockRun] = []
    stray: list[NDArray[np.int64]] = []
    num_pairs = 0
    for run in np.split(order, cuts):
        low, high = int(physical[run[0]]), int(physical[run[-1]]) + 1
        if len(run) < MIN_RUN_DENSITY * (high - low) or (high - low < min_run and len(cuts)):
            stray.append(run)
            continue
        places = np.full(high - low, -1)
        places[physical[run] - low] = run
        orders.append(places)
        runs.append(BlockRun(slice(num_pairs, num_pairs + high - low), slice(low, high)))
        num_pairs += high - low
    if stray:
        orders.append(np.concatenate(stray))
        blocks = physical[orders[-1]]
        runs.append(BlockRun(slice(num_pairs, num_pairs + len(blocks)), torch.from_numpy(blocks)))
    return np.concatenate(orders), tuple(runs)


def _occurrence_index(physical: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier pairs read the same block, of each pair."""
    order = np.argsort(physical, kind="stable")
    ordered = physical[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])
    places = np.arange(len(ordered))
    turns: NDArray[np.int64] = np.empty_like(places)
    turns[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return turns


def _invert(row_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """[pairs] -> [rows, most pairs of a row]."""
    counts = np.bincount(row_of)
    order = np.argsort(row_of, kind="stable")
    first = np.cumsum(counts) - counts
    steps = np.arange(counts.max())
    inverted: NDArray[np.int64] = order[first[:, None] + np.where(steps < counts[:, None], steps, 0)]
    return inverted
