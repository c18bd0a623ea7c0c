"""Attention plan of one step on the CPU: where new keys are written and which blocks each row reads. Integers only.

Short rows (decode, and a few draft tokens to verify) are computed as (row, block) pairs in few matrix products:
contiguous blocks are read in place, only isolated ones are gathered. Long rows (prompt chunks) are computed one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_SHORT_TOKENS = 16  # rows with more tokens than this are chunks
MAX_READ_TOKENS = 32_768  # tokens read by the rows of one product: rows that share a long prefix take memory for each
MAX_CHUNK_TILE, MIN_CHUNK_TILE = 128, 8  # tokens of a chunk that attend at a time
MAX_TILE_SCORES = 1 << 18  # tokens of a tile times the tokens they attend to: bounds the scores of long contexts
MIN_RUN_DENSITY = 0.7  # fraction of a run's blocks that the rows own, to read it in place: foreign blocks take memory
MIN_RUN_BYTES = 256 << 10  # about what a CPU reads in the time that starting two more matrix products takes


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One row: `num_tokens` new tokens after `start` cached ones, stored in these blocks."""

    num_tokens: int
    start: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class PairReduction:
    """Maps pairs to rows and back, to reduce per-pair results to rows."""

    row_of: Tensor  # [pairs]
    pairs_of: Tensor  # [rows, most pairs of a row]: the pairs of each row, padded with its first


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Consecutive pairs and their blocks: a slice of the pool, read in place, or indices to gather."""

    pairs: slice
    blocks: slice | Tensor


@dataclass(frozen=True, slots=True)
class ShortRows:
    """Consecutive rows with the same small number of tokens, and every block that they read.

    A pair is one row reading one block; two rows that share a block are two pairs. Foreign blocks (of sequences not in
    `rows`) inside a run belong to an extra row, `num_rows`, whose result is dropped.
    """

    first_token: int
    num_rows: int
    num_tokens: int  # of each row
    has_foreign_blocks: bool  # whether a run contains foreign blocks
    runs: tuple[BlockRun, ...]
    reduction: PairReduction | None  # None: a single row owns every pair
    bias: Tensor  # [pairs, 1, 1, num_tokens, block_size], 0 or -inf


@dataclass(frozen=True, slots=True)
class QueryChunk:
    """One row with many tokens (a prompt chunk)."""

    first_token: int
    num_tokens: int
    start: int
    tile: int  # tokens that attend at a time
    blocks: Tensor  # [blocks of the chunk and of the cached tokens before it]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's rows, in the order of their tokens: short rows, then chunks."""

    write_blocks: Tensor  # [num_tokens]
    write_offsets: Tensor  # [num_tokens]
    partially_written: Tensor | None  # first token written in this step, last not: stale data must not be read
    short: tuple[ShortRows, ...]
    chunks: tuple[QueryChunk, ...]


def plan_step(rows: Sequence[RowPlan], block_size: int, block_bytes: int) -> StepPlan:
    """Plan one step. `rows` are in the order of their tokens, short ones first, equal lengths together.

    `block_bytes`: bytes of one block's keys and values in one layer.
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
    """Tokens read by all of the row's tokens together: gathered blocks and scores grow with it."""
    return (row.start + row.num_tokens) * row.num_tokens


def write_locations(rows: Sequence[RowPlan], block_size: int) -> tuple[Tensor, Tensor]:
    """The block of each new token, and its offset in it. [num_tokens], [num_tokens]."""
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
    partial = []
    for row in rows:
        end = row.start + row.num_tokens
        if end % block_size and end - end % block_size >= row.start:
            partial.append(row.blocks[end // block_size])
    return torch.tensor(partial) if partial else None


def concat_ranges(begins: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate the ranges `begins[i] .. begins[i] + counts[i]`."""
    ends = np.cumsum(counts)
    numbers: NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(begins - (ends - counts), counts)
    return numbers


def _plan_short(first_token: int, rows: Sequence[RowPlan], block_size: int, min_run: int) -> ShortRows:
    num_tokens = rows[0].num_tokens
    counts = np.array([-(-(row.start + num_tokens) // block_size) for row in rows])
    physical = np.concatenate([np.asarray(row.blocks[:count]) for row, count in zip(rows, counts, strict=True)])
    row_of = np.repeat(np.arange(len(rows)), counts)
    index_in_row = concat_ranges(np.zeros_like(counts), counts)
    # A single row has no reduction, and so no extra row to absorb foreign blocks.
    order, runs = _find_runs(physical, min_run, max_gap=min_run if len(rows) > 1 else 0)
    row_of = np.append(row_of, len(rows))[order]
    index_in_row = np.append(index_in_row, 0)[order]
    # Token t of a row attends to positions 0 .. start + t.
    starts = np.array([row.start for row in rows] + [0])[row_of]
    last_visible = starts[:, None, None] + np.arange(num_tokens)[None, :, None]
    position = index_in_row[:, None, None] * block_size + np.arange(block_size)[None, None, :]
    bias = np.where(position <= last_visible, np.float32(0), np.float32(-np.inf))
    reduction = PairReduction(torch.from_numpy(row_of), torch.from_numpy(_invert(row_of))) if len(rows) > 1 else None
    return ShortRows(
        first_token=first_token,
        num_rows=len(rows),
        num_tokens=num_tokens,
        has_foreign_blocks=len(order) > len(physical),
        runs=runs,
        reduction=reduction,
        bias=torch.from_numpy(bias[:, None, None]),
    )


def _find_runs(
    physical: NDArray[np.int64], min_run: int, max_gap: int
) -> tuple[NDArray[np.int64], tuple[BlockRun, ...]]:
    """The order in which pairs are computed (-1 for a foreign block), and the runs that they form.

    A run is read in place, with up to `max_gap` foreign blocks between two of the rows' own; runs of fewer than
    `min_run` blocks, or with too many foreign ones, are gathered. Rows that share a block read it in separate runs.
    """
    occurrence = _occurrence_index(physical)
    order = np.lexsort((physical, occurrence))
    steps, same_occurrence = np.diff(physical[order]), np.diff(occurrence[order]) == 0
    cuts = np.flatnonzero(~same_occurrence | (steps > max_gap + 1)) + 1
    orders: list[NDArray[np.int64]] = []
    runs: list[BlockRun] = []
    isolated: list[NDArray[np.int64]] = []
    num_pairs = 0
    for run in np.split(order, cuts):
        low, high = int(physical[run[0]]), int(physical[run[-1]]) + 1
        if len(run) < MIN_RUN_DENSITY * (high - low) or (high - low < min_run and len(cuts)):
            isolated.append(run)
            continue
        pairs = np.full(high - low, -1)
        pairs[physical[run] - low] = run
        orders.append(pairs)
        runs.append(BlockRun(slice(num_pairs, num_pairs + high - low), slice(low, high)))
        num_pairs += high - low
    if isolated:
        orders.append(np.concatenate(isolated))
        blocks = physical[orders[-1]]
        runs.append(BlockRun(slice(num_pairs, num_pairs + len(blocks)), torch.from_numpy(blocks)))
    return np.concatenate(orders), tuple(runs)


def _occurrence_index(physical: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of earlier pairs that read the same block, for each pair."""
    order = np.argsort(physical, kind="stable")
    ordered = physical[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])
    ranks = np.arange(len(ordered))
    counts: NDArray[np.int64] = np.empty_like(ranks)
    counts[order] = ranks - np.maximum.accumulate(np.where(is_first, ranks, 0))
    return counts


def _invert(row_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """[pairs] -> [rows, most pairs of a row], padded with the row's first pair."""
    counts = np.bincount(row_of)
    order = np.argsort(row_of, kind="stable")
    first = np.cumsum(counts) - counts
    steps = np.arange(counts.max())
    inverted: NDArray[np.int64] = order[first[:, None] + np.where(steps < counts[:, None], steps, 0)]
    return inverted
