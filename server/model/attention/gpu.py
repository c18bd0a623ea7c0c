"""KV cache on a GPU and attention over it.

Layout of each layer, the token-contiguous one of paged attention kernels:

    keys, values  [num_blocks, block_size, kv_heads, head_dim]

Of bytes a block has [block_size, kv_heads, head_dim], then their scales [block_size, kv_heads] in float32; the tensor
has the shape above, with `PoolShape.row_elements` in the place of head_dim.

Kernels for the device read the blocks in place. Without kernels, rows of one length are gathered through a padded block
table and passed to torch's scaled_dot_product_attention. Nothing here is specific to CUDA: the tests run it on the CPU.

The block after the last one is a scratch block, which padding rows of a batch read and write.

Where the device can map memory (`mapped_memory.py`), a pool that gives blocks back stays where it is, and captured
graphs stay valid; elsewhere it is copied to a smaller tensor.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from server.model.attention.base import AttentionStep, PoolShape
from server.model.attention.mapped_memory import open_mapped
from server.model.attention.step_plan import RowPlan, partially_written, write_locations
from server.model.attention.tiles import MIN_TILE_TOKENS, TilePlan, Tiles, plan_tiles


class Kernels(Protocol):
    """Attention kernels that read blocks in place; the module triton_kernels.py is an implementation."""

    def write(self, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Write new keys and values [num_tokens, kv_heads, head_dim] to their slots [num_tokens]."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, tiles: Tiles, result: Tensor, scaling: float) -> None:
        """Attention of the tiles' tokens, written into `result`. query and result [num_tokens, heads, head_dim]."""


class CudaKvPool:
    """Keys and values of `num_blocks` blocks and the scratch block, one tensor for each layer's keys and values."""

    def __init__(
        self,
        shape: PoolShape,
        num_blocks: int,
        device: torch.device,
        kernels: Kernels | None = None,
        tile_sizes: Sequence[int] = (MIN_TILE_TOKENS,),
        *,
        prompts_by_torch: bool = False,
    ) -> None:
        """`tile_sizes`: tokens of a tile that long rows may be split into.

        `prompts_by_torch`: torch attends for long rows that begin at position 0, kernels for all others.
        """
        self.shape = shape
        self.tile_sizes = tile_sizes
        self.num_blocks = num_blocks
        self.kernels = kernels
        self.prompts_by_torch = prompts_by_torch
        self.num_moves = 0  # addresses of keys and values are invalid once it has changed
        self._most_blocks = num_blocks
        size = (num_blocks + 1, shape.block_size, shape.kv_heads, shape.row_elements)
        self._block_bytes = math.prod(size[1:]) * shape.stored.itemsize  # of one layer's keys or values
        self._mapped = open_mapped(size[0] * self._block_bytes, 2 * shape.layers, device)
        # Zeros, because a NaN in uninitialized memory would spread: 0 * NaN is NaN.
        if self._mapped:
            self._map(size[0])
            parts = [memory.tensor().view(shape.stored).view(size).zero_() for memory in self._mapped]
        else:
            parts = [torch.zeros(size, dtype=shape.stored, device=device) for _ in range(2 * shape.layers)]
        self.keys, self.values = parts[: shape.layers], parts[shape.layers :]

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy blocks to as many others, none of which is among the sources; needs no memory."""
        for part in (*self.keys, *self.values):
            for first, onto, count in _common_runs(sources, targets):
                part[onto : onto + count].copy_(part[first : first + count])

    def release(self, first_block: int) -> None:
        """Free the memory of all blocks from this one on; their content is lost."""
        if first_block < self.num_blocks and self._mapped:
            torch.cuda.synchronize(self.keys[0].device)  # steps that read those blocks have ended
            self._map(first_block + 1)
            self.num_blocks = first_block
        elif first_block < self.num_blocks:
            self._resize(first_block)
            self.num_blocks = first_block
            _return_freed(self.keys[0].device)

    def restore(self, num_blocks: int) -> int:
        """Allocate memory for blocks up to this one again; returns how many there are, unchanged if memory ran out."""
        target = min(num_blocks, self._most_blocks)
        if target > self.num_blocks and self._mapped:
            with suppress(torch.OutOfMemoryError):
                self._map(target + 1)
                for part in (*self.keys, *self.values):
                    part[self.num_blocks : target + 1].zero_()
                self.num_blocks = target
        elif target > self.num_blocks:
            with suppress(torch.OutOfMemoryError):
                self._resize(target)
                self.num_blocks = target
            self._resize(self.num_blocks)  # frees what was allocated before memory ran out
        return self.num_blocks

    @property
    def scratch_block(self) -> int:
        """The block that padding rows read and write."""
        return self.num_blocks

    def arrange(self, rows: Sequence[RowPlan], layer_of: dict[int, int]) -> AttentionStep:
        """Plan one step. `rows` are in the order of their tokens, short ones first."""
        block_size, device = self.shape.block_size, self.keys[0].device
        if self.kernels is not None:
            plan = plan_tiles(rows, block_size, self.shape.kv_heads, self.tile_sizes, device, not self.prompts_by_torch)
            return TiledStep(self, layer_of, plan, self.kernels)
        assert not self.shape.in_bytes, "torch reads elements"
        blocks, offsets = write_locations(rows, block_size)
        partial_blocks = partially_written(rows, block_size)
        groups: list[GatheredRows] = []
        first_token = i = 0
        while i < len(rows):
            end = i + 1
            while end < len(rows) and rows[end].num_tokens == rows[i].num_tokens:
                end += 1
            groups.append(_gather_rows(first_token, rows[i:end], block_size, device))
            first_token += rows[i].num_tokens * (end - i)
            i = end
        return GatheredStep(
            self,
            layer_of,
            blocks.to(device, non_blocking=True),
            offsets.to(device, non_blocking=True),
            None if partial_blocks is None else partial_blocks.to(device, non_blocking=True),
            tuple(groups),
        )

    def _map(self, num_blocks: int) -> None:
        """Map memory to the first `num_blocks` blocks. Raises torch.OutOfMemoryError, and then nothing has changed."""
        try:
            for memory in self._mapped:
                memory.resize(num_blocks * self._block_bytes)
        except torch.OutOfMemoryError:
            for memory in self._mapped:
                memory.resize(min(memory.mapped, (self.num_blocks + 1) * self._block_bytes))
            raise

    def _resize(self, num_blocks: int) -> None:
        """Reallocate layer by layer. Raises torch.OutOfMemoryError, only if the pool grows.

        A smaller tensor for which there is no memory beside the larger one takes its place: the blocks that are kept
        wait in the host's memory meanwhile. Each old tensor is returned to the device before the next one is allocated,
        which torch would otherwise cut out of it: what is left of a cut segment cannot be returned.
        """
        if all(part.shape[0] == num_blocks + 1 for part in (*self.keys, *self.values)):
            return
        self.num_moves += 1
        for parts in (self.keys, self.values):
            for layer in range(len(parts)):
                kept = min(num_blocks, parts[layer].shape[0] - 1)
                if parts[layer].shape[0] == num_blocks + 1:
                    continue
                content, new = parts[layer][:kept], _allocate_beside(parts[layer], num_blocks + 1)
                if new is None and kept < num_blocks:
                    raise torch.OutOfMemoryError("no memory for more blocks")
                if new is None:
                    content = content.to("cpu", copy=True, non_blocking=True)  # pinned, if it comes from a GPU
                    parts[layer] = parts[layer].new_empty((0, *parts[layer].shape[1:]))
                    _return_freed(parts[layer].device)
                    new = _allocate(parts[layer], num_blocks + 1)
                new[:kept].copy_(content)
                parts[layer] = new
                del content
                _return_freed(new.device)


def _common_runs(sources: Sequence[int], targets: Sequence[int]) -> list[tuple[int, int, int]]:
    """First source, first target and length of the runs that are consecutive in both."""
    steps = np.diff(np.stack((sources, targets)))
    begins = [0, *(np.flatnonzero((steps != 1).any(0)) + 1).tolist(), len(sources)]
    return [(sources[begin], targets[begin], end - begin) for begin, end in pairwise(begins)]


def _allocate(like: Tensor, num_blocks: int) -> Tensor:
    return like.new_zeros((num_blocks, *like.shape[1:]))


def _allocate_beside(old: Tensor, num_blocks: int) -> Tensor | None:
    """None if there is no memory. The exception ends here: its traceback would keep `old` alive."""
    try:
        return _allocate(old, num_blocks)
    except torch.OutOfMemoryError:
        return None


def _return_freed(device: torch.device) -> None:
    """Return freed memory to the device: the rest of a segment that torch has split cannot be returned."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class TiledStep:
    """Attention of one step by kernels."""

    pool: CudaKvPool
    layer_of: dict[int, int]  # the model's layer index -> the pool's
    plan: TilePlan
    kernels: Kernels

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `AttentionStep.attend`."""
        self.kernels.write(key, value, *self.memory(layer_index), self.plan.slots)
        result = self.attend_written(layer_index, query, scaling)
        for own in self.plan.new_rows:
            result[own] = attend_causally(query[own], key[own], value[own], scaling)
        return result

    def memory(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer."""
        layer = self.layer_of[layer_index]
        return self.pool.keys[layer], self.pool.values[layer]

    def attend_written(self, layer_index: int, query: Tensor, scaling: float) -> Tensor:
        """As `attend`, where the new keys and values have been written."""
        keys, values = self.memory(layer_index)
        result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for tiles in self.plan.launches:
            self.kernels.attend(query[: tiles.num_tokens], keys, values, tiles, result[: tiles.num_tokens], scaling)
        return result


def attend_causally(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention of one row's tokens to those before them, by torch. [num_tokens, heads or kv_heads, head_dim]."""
    own, keys, values = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
    is_grouped = query.shape[1] != key.shape[1]
    found = functional.scaled_dot_product_attention(
        own, keys, values, is_causal=True, scale=scaling, enable_gqa=is_grouped
    )
    return found[0].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class GatheredRows:
    """Consecutive rows with the same number of new tokens."""

    first_token: int
    num_rows: int
    num_tokens: int  # of each row
    table: Tensor  # [rows, most blocks of a row], padded with the row's first block
    allowed: Tensor  # [rows, 1, num_tokens, most blocks of a row * block_size]


@dataclass(frozen=True, slots=True)
class GatheredStep:
    """Attention of one step over gathered keys and values."""

    pool: CudaKvPool
    layer_of: dict[int, int]  # the model's layer index -> the pool's
    write_blocks: Tensor  # [num_tokens]
    write_offsets: Tensor  # [num_tokens]
    partial_blocks: Tensor | None  # as `step_plan.partially_written`
    groups: tuple[GatheredRows, ...]

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `AttentionStep.attend`."""
        layer = self.layer_of[layer_index]
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        if self.partial_blocks is not None:
            keys.index_fill_(0, self.partial_blocks, 0)
            values.index_fill_(0, self.partial_blocks, 0)
        keys.index_put_((self.write_blocks, self.write_offsets), key)
        values.index_put_((self.write_blocks, self.write_offsets), value)
        parts = [_attend_gathered(rows, query, keys, values, scaling) for rows in self.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _gather_rows(first_token: int, rows: Sequence[RowPlan], block_size: int, device: torch.device) -> GatheredRows:
    num_tokens = rows[0].num_tokens
    counts = [-(-(row.start + num_tokens) // block_size) for row in rows]
    table = np.zeros((len(rows), max(counts)), dtype=np.int64)
    for line, (row, count) in enumerate(zip(rows, counts, strict=True)):
        table[line] = row.blocks[0]
        table[line, :count] = row.blocks[:count]
    starts = np.array([row.start for row in rows])
    last_visible = starts[:, None] + np.arange(num_tokens)[None, :]
    allowed = np.arange(table.shape[1] * block_size)[None, None, :] <= last_visible[:, :, None]
    return GatheredRows(
        first_token,
        len(rows),
        num_tokens,
        torch.from_numpy(table).to(device, non_blocking=True),
        torch.from_numpy(allowed[:, None]).to(device, non_blocking=True),
    )


def _attend_gathered(rows: GatheredRows, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """[num_tokens, heads, head_dim] -> [num_rows * tokens of a row, heads, head_dim]."""
    _, heads, head_dim = query.shape
    end = rows.first_token + rows.num_rows * rows.num_tokens
    own = query[rows.first_token : end].view(rows.num_rows, rows.num_tokens, heads, head_dim).transpose(1, 2)
    # [rows, KV heads, positions, head_dim]
    seen_keys = keys[rows.table].flatten(1, 2).transpose(1, 2)
    seen_values = values[rows.table].flatten(1, 2).transpose(1, 2)
    result = functional.scaled_dot_product_attention(
        own, seen_keys, seen_values, attn_mask=rows.allowed, scale=scaling, enable_gqa=heads != keys.shape[2]
    )
    return result.transpose(1, 2).reshape(-1, heads, head_dim)
