"""One step's rows as tiles, which the kernels of paged_triton.py read on the device. Integers only."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.model.attention.base import PoolShape
from server.model.attention.step_plan import MAX_SHORT_TOKENS, RowPlan, concat_ranges, write_locations
from server.model.device import to_device

MIN_TILE_TOKENS = MAX_SHORT_TOKENS  # at least, so that a short row is one tile
MAX_TILE_LINES, MAX_TILE_BYTES = (
    128,
    64 << 10,
)  # of a tile: its tokens times the query heads of a KV head, and those in all
TILE_FIELDS = 4
MIN_SPLIT_POSITIONS = 128  # a share of a context shorter than this costs more to join than it saves
MAX_SPLITS = 32
NUM_PROCESSORS = 132  # of the cards that this is made for; a few more or fewer change nothing


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles over the first `num_tokens` tokens of a step: over all of them if `num_splits` is more than 1.

    A tile is (its first token, how many, the position of the first, where its row's blocks begin in `blocks`); each of
    its tokens sees the positions up to its own.
    """

    table: Tensor  # int32 [tiles, TILE_FIELDS]
    blocks: Tensor  # int32, the rows' block tables one after the other
    num_tokens: int
    max_tile_tokens: int  # of a tile
    num_splits: int  # parts that each context is cut into, a power of two


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Everything that attention must know about one step, on the device."""

    slots: Tensor  # int32 [num_tokens]: block * block_size + offset, where each new token is written
    launches: tuple[Tiles, ...]


def plan_tiles(
    rows: Sequence[RowPlan], block_size: int, kv_heads: int, tile_sizes: Sequence[int], device: torch.device
) -> TilePlan:
    """Arrange one step, short rows before long ones, with tiles of one of these sizes (`tile_sizes`) for the long ones.

    All integers go to the device in one copy.
    """
    num_short = sum(row.num_tokens <= MIN_TILE_TOKENS for row in rows)
    blocks, begins = concat_block_tables([row.blocks for row in rows])
    tile_tokens = choose_tile_tokens(sum(row.num_tokens for row in rows[num_short:]) * kv_heads, tile_sizes)
    tiles = tile_rows(rows, begins, tile_tokens)
    slots = slot_mapping(rows, block_size)
    line = to_device(np.concatenate((slots, tiles.ravel(), blocks)), device)
    on_device, flat, joined = torch.split(line, [len(slots), tiles.size, len(blocks)])
    table = flat.view(-1, TILE_FIELDS)
    launches = []
    if num_short:
        short = rows[:num_short]
        num_tokens = sum(row.num_tokens for row in short)
        num_splits = choose_num_splits(num_short * kv_heads, max(row.start + row.num_tokens for row in short))
        most = 1 if all(row.num_tokens == 1 for row in short) else MIN_TILE_TOKENS  # one form of the kernel each
        launches.append(Tiles(table[:num_short], joined, num_tokens, most, num_splits))
    if num_short < len(rows):
        launches.append(Tiles(table[num_short:], joined, len(slots), tile_tokens, 1))
    return TilePlan(on_device, tuple(launches))


def tile_sizes(shape: PoolShape, heads: int) -> tuple[int, ...]:
    """Tokens that a tile of long rows may have where each KV head has so many query heads, smallest first."""
    group, head_bytes = heads // shape.kv_heads, shape.head_dim * shape.dtype.itemsize
    sizes = [MIN_TILE_TOKENS]
    while 2 * sizes[-1] * group <= min(MAX_TILE_LINES, MAX_TILE_BYTES // head_bytes):
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


def choose_tile_tokens(programs: int, sizes: Sequence[int]) -> int:
    """The tokens of a tile for long rows, which would be so many programs if a tile were one token.

    The more tokens, the less often keys and values are read; the fewer, the more of the card has something to do.
    """
    return max((size for size in sizes if programs >= 2 * NUM_PROCESSORS * size), default=sizes[0])


def choose_num_splits(programs: int, longest: int) -> int:
    """Into how many parts contexts of up to `longest` tokens are cut, where there are so many programs without it."""
    num_splits = 1
    while (
        num_splits < MAX_SPLITS
        and programs * num_splits < 2 * NUM_PROCESSORS
        and longest > MIN_SPLIT_POSITIONS * num_splits
    ):
        num_splits *= 2
    return num_splits


def slot_mapping(rows: Sequence[RowPlan], block_size: int) -> NDArray[np.int32]:
    """Where each new token is written, [num_tokens]."""
    blocks, offsets = write_locations(rows, block_size)
    slots: NDArray[np.int32] = (blocks * block_size + offsets).numpy().astype(np.int32)
    return slots


def concat_block_tables(tables: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Block tables one after the other, and where each begins."""
    counts = np.array([len(table) for table in tables])
    joined = np.fromiter(chain.from_iterable(tables), np.int32, counts.sum())
    return joined, (np.cumsum(counts) - counts).astype(np.int32)


def tile_rows(rows: Sequence[RowPlan], begins: NDArray[np.int32], tile_tokens: int) -> NDArray[np.int32]:
    """Each row cut into tiles of so many tokens, the last one shorter. [tiles, TILE_FIELDS]."""
    num_tokens = np.array([row.num_tokens for row in rows])
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
