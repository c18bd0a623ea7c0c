"""One step's rows as tiles, which the kernels of paged_triton.py read on the device. Integers only."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.model.attention.step_plan import SHORT_TOKENS, RowPlan, count_on, write_places
from server.model.device import to_device

TILE_TOKENS = SHORT_TOKENS  # at least, so that a short row is one tile
MOST_LINES, MOST_BYTES = 128, 64 << 10  # of a tile: its tokens times the query heads of a KV head, and those in all
TILE_FIELDS = 4
LEAST_POSITIONS = 128  # a share of a context shorter than this costs more to join than it saves
MOST_SHARES = 32
PROCESSORS = 132  # of the cards that this is made for; a few more or fewer change nothing


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles over the first `num_tokens` tokens of a step: over all of them if `shares` is more than 1.

    A tile is (its first token, how many, the position of the first, where its row's blocks begin in `blocks`); each of
    its tokens sees the positions up to its own.
    """

    table: Tensor  # int32 [tiles, TILE_FIELDS]
    blocks: Tensor  # int32, the rows' block tables one after the other
    num_tokens: int
    most_tokens: int  # of a tile
    shares: int  # parts that each context is cut into, a power of two


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Everything that attention must know about one step, on the device."""

    slots: Tensor  # int32 [num_tokens]: block * block_size + offset, where each new token is written
    launches: tuple[Tiles, ...]


def plan_tiles(
    rows: Sequence[RowPlan], block_size: int, kv_heads: int, tile_sizes: Sequence[int], device: torch.device
) -> TilePlan:
    """Arrange one step, short rows before long ones, with tiles of one of these sizes (`sizes_of`) for the long ones.

    All integers go to the device in one copy.
    """
    num_short = sum(row.num_tokens <= TILE_TOKENS for row in rows)
    blocks, begins = join_blocks([row.blocks for row in rows])
    tile_tokens = choose_size(sum(row.num_tokens for row in rows[num_short:]) * kv_heads, tile_sizes)
    tiles = cut_rows(rows, begins, tile_tokens)
    slots = slots_of(rows, block_size)
    line = to_device(np.concatenate((slots, tiles.ravel(), blocks)), device)
    on_device, flat, joined = torch.split(line, [len(slots), tiles.size, len(blocks)])
    table = flat.view(-1, TILE_FIELDS)
    launches = []
    if num_short:
        short = rows[:num_short]
        num_tokens = sum(row.num_tokens for row in short)
        shares = shares_of(num_short * kv_heads, max(row.start + row.num_tokens for row in short))
        most = 1 if all(row.num_tokens == 1 for row in short) else TILE_TOKENS  # one form of the kernel each
        launches.append(Tiles(table[:num_short], joined, num_tokens, most, shares))
    if num_short < len(rows):
        launches.append(Tiles(table[num_short:], joined, len(slots), tile_tokens, 1))
    return TilePlan(on_device, tuple(launches))


def sizes_of(group: int, head_bytes: int) -> tuple[int, ...]:
    """Tokens that a tile of long rows may have where each KV head has so many query heads, smallest first."""
    sizes = [TILE_TOKENS]
    while 2 * sizes[-1] * group <= min(MOST_LINES, MOST_BYTES // head_bytes):
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


def choose_size(programs: int, sizes: Sequence[int]) -> int:
    """The tokens of a tile for long rows, which would be so many programs if a tile were one token.

    The more tokens, the less often keys and values are read; the fewer, the more of the card has something to do.
    """
    return max((size for size in sizes if programs >= 2 * PROCESSORS * size), default=sizes[0])


def shares_of(programs: int, longest: int) -> int:
    """Into how many parts contexts of up to `longest` tokens are cut, where there are so many programs without it."""
    shares = 1
    while shares < MOST_SHARES and programs * shares < 2 * PROCESSORS and longest > LEAST_POSITIONS * shares:
        shares *= 2
    return shares


def slots_of(rows: Sequence[RowPlan], block_size: int) -> NDArray[np.int32]:
    """Where each new token is written, [num_tokens]."""
    blocks, offsets = write_places(rows, block_size)
    slots: NDArray[np.int32] = (blocks * block_size + offsets).numpy().astype(np.int32)
    return slots


def join_blocks(tables: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Block tables one after the other, and where each begins."""
    counts = np.array([len(table) for table in tables])
    joined = np.fromiter(chain.from_iterable(tables), np.int32, counts.sum())
    return joined, (np.cumsum(counts) - counts).astype(np.int32)


def cut_rows(rows: Sequence[RowPlan], begins: NDArray[np.int32], tile_tokens: int) -> NDArray[np.int32]:
    """Each row cut into tiles of so many tokens, the last one shorter. [tiles, TILE_FIELDS]."""
    num_tokens = np.array([row.num_tokens for row in rows])
    counts = -(-num_tokens // tile_tokens)
    row_of = np.repeat(np.arange(len(rows)), counts)
    inside = count_on(np.zeros_like(counts), counts) * tile_tokens
    first_tokens = np.cumsum(num_tokens) - num_tokens
    starts = np.array([row.start for row in rows])
    table = (
        first_tokens[row_of] + inside,
        np.minimum(tile_tokens, num_tokens[row_of] - inside),
        starts[row_of] + inside,
        begins[row_of],
    )
    return np.stack(table, axis=1).astype(np.int32)
