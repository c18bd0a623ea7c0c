"""Attention plan of one step on a GPU: rows split into tiles for the kernels of triton_kernels.py. Integers only."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise, starmap

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.model.attention.base import PoolShape
from server.model.attention.step_plan import MAX_SHORT_TOKENS, RowPlan, concat_ranges, write_locations
from server.model.device import to_device

MIN_TILE_TOKENS = MAX_SHORT_TOKENS  # a short row is one tile
MAX_TILE_LINES, MAX_TILE_BYTES = 128, 64 << 10  # lines: a tile's tokens times the query heads of a KV head
TILE_FIELDS = 4
MIN_SPLIT_POSITIONS = 128  # combining a split shorter than this costs more than it saves
MAX_SPLITS = 32
NUM_PROCESSORS = 132  # streaming multiprocessors of an H100; other cards have about as many


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles over the first `num_tokens` tokens of a step: over all tokens if `num_splits` is more than 1.

    A tile is (first token, number of tokens, position of the first token, begin of its row's block table in `blocks`);
    each token attends to the positions up to its own.
    """

    table: Tensor  # int32 [tiles, TILE_FIELDS]
    blocks: Tensor  # int32, the rows' block tables, concatenated
    num_tokens: int
    max_tile_tokens: int  # of a tile
    num_splits: int  # parts that each context is split into, a power of two


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Attention plan of one step, on the device."""

    slots: Tensor  # int32 [num_tokens], as `slot_mapping`
    launches: tuple[Tiles, ...]
    new_rows: tuple[slice, ...] = ()  # tokens of long rows that begin at position 0 and are in no tile


def plan_tiles(
    rows: Sequence[RowPlan],
    block_size: int,
    kv_heads: int,
    tile_sizes: Sequence[int],
    device: torch.device,
    tiles_new_rows: bool = True,
) -> TilePlan:
    """Plan one step, short rows before long ones. Tiles of long rows have one of `tile_sizes`.

    Without `tiles_new_rows`, long rows that begin at position 0, which are the last ones, get no tiles. All integers
    are copied to the device at once.
    """
    num_short = sum(row.num_tokens <= MIN_TILE_TOKENS for row in rows)
    num_tiled = len(rows)
    while not tiles_new_rows and num_tiled > num_short and rows[num_tiled - 1].start == 0:
        num_tiled -= 1
    tiled = rows[:num_tiled]
    blocks, begins = concat_block_tables([row.blocks for row in tiled])
    tile_tokens = choose_tile_tokens(sum(row.num_tokens for row in tiled[num_short:]) * kv_heads, tile_sizes)
    tiles = tile_rows(tiled, begins, tile_tokens)
    slots = slot_mapping(rows, block_size)
    line = to_device(np.concatenate((slots, tiles.ravel(), blocks)), device)
    on_device, flat, joined = torch.split(line, [len(slots), tiles.size, len(blocks)])
    table = flat.view(-1, TILE_FIELDS)
    launches = []
    if num_short:
        short = rows[:num_short]
        num_tokens = sum(row.num_tokens for row in short)
        num_splits = choose_num_splits(num_short * kv_heads, max(row.start + row.num_tokens for row in short))
        most = 1 if all(row.num_tokens == 1 for row in short) else MIN_TILE_TOKENS  # one compiled variant each
        launches.append(Tiles(table[:num_short], joined, num_tokens, most, num_splits))
    num_tokens = sum(row.num_tokens for row in tiled)
    if num_short < num_tiled:
        launches.append(Tiles(table[num_short:], joined, num_tokens, tile_tokens, 1))
    ends = list(accumulate((row.num_tokens for row in rows[num_tiled:]), initial=num_tokens))
    return TilePlan(on_device, tuple(launches), tuple(starmap(slice, pairwise(ends))))


def tile_sizes(shape: PoolShape, heads: int) -> tuple[int, ...]:
    """Token counts that a tile of long rows may have in a model with `heads` query heads, smallest first."""
    group, head_bytes = heads // shape.kv_heads, shape.head_dim * shape.dtype.itemsize
    sizes = [MIN_TILE_TOKENS]
    while 2 * sizes[-1] * group <= min(MAX_TILE_LINES, MAX_TILE_BYTES // head_bytes):
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


def choose_tile_tokens(programs: int, sizes: Sequence[int]) -> int:
    """Tokens of a tile for long rows; `programs` is the number of kernel programs with one-token tiles.

    Larger tiles read keys and values less often; smaller ones keep more of the card busy.
    """
    return max((size for size in sizes if programs >= 2 * NUM_PROCESSORS * size), default=sizes[0])


def choose_num_splits(programs: int, longest: int) -> int:
    """Number of splits for contexts of up to `longest` tokens, given the number of programs without splitting."""
    num_splits = 1
    most = min(MAX_SPLITS, longest / MIN_SPLIT_POSITIONS)
    while num_splits < most and programs * num_splits < 2 * NUM_PROCESSORS:
        num_splits *= 2
    return num_splits


def slot_mapping(rows: Sequence[RowPlan], block_size: int) -> NDArray[np.int32]:
    """The slot of each new token: block * block_size + offset. int32 [num_tokens]."""
    blocks, offsets = write_locations(rows, block_size)
    slots: NDArray[np.int32] = (blocks * block_size + offsets).numpy().astype(np.int32)
    return slots


def concat_block_tables(tables: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Concatenate block tables; returns them and the begin of each."""
    counts = np.array([len(table) for table in tables], dtype=np.int64)
    joined = np.fromiter(chain.from_iterable(tables), np.int32, counts.sum())
    return joined, (np.cumsum(counts) - counts).astype(np.int32)


def tile_rows(rows: Sequence[RowPlan], begins: NDArray[np.int32], tile_tokens: int) -> NDArray[np.int32]:
    """Split each row into tiles of `tile_tokens` tokens, the last one shorter. int32 [tiles, TILE_FIELDS]."""
    num_tokens = np.array([row.num_tokens for row in rows], dtype=np.int64)
    if not len(rows):
        return np.empty((0, TILE_FIELDS), dtype=np.int32)
    counts = -(-num_tokens // tile_tokens)
    row_of = np.repeat(np.arange(len(rows)), counts)
    inside = concat_ranges(np.zeros_like(counts), counts) * tile_tokens
    first_tokens = np.cumsum(num_tokens) - num_tokens
    starts = np.array([row.start for row in rows])
    table = (
        first_tokens[row_of] + inside,
        np.minimum(tile_tokens, num_tokens[row_of] - inside),
        starts[row_of] + inside,
        begins[row_of],
    )
    return np.stack(table, axis=1).astype(np.int32)
