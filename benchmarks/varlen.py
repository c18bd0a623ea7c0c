"""torch's varlen_attn over block tables as `gpu.Kernels`, for comparison in benchmarks/gpu.py.

It needs large pages (256 tokens with torch's flash attention) and a padded block table, which is computed here on the
device once a layer; a server would compute it once a step.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from server.model.attention.tiles import Tiles

PAGE_TOKENS = 256


def reads_block_tables() -> bool:
    """Whether this version of torch supports block tables in varlen_attn."""
    return "block_table" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True, slots=True)
class VarlenKernels:
    """Implements `gpu.Kernels` for rows of at most `most_blocks` blocks."""

    most_blocks: int

    def write(self, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """As `Kernels.write`."""
        places = slots // keys.shape[1], slots % keys.shape[1]
        keys.index_put_(places, key)
        values.index_put_(places, value)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, tiles: Tiles, result: Tensor, scaling: float) -> None:
        """As `Kernels.attend`; the tiles cover the tokens of `query` from the first to the last."""
        own, start, begin = tiles.table[:, 1], tiles.table[:, 2], tiles.table[:, 3]
        ends = torch.nn.functional.pad(own.cumsum(0, dtype=torch.int32), (1, 0))
        at = begin[:, None] + torch.arange(self.most_blocks, device=begin.device, dtype=torch.int32)
        table = tiles.blocks[at.clamp(max=tiles.blocks.numel() - 1)].clamp(0, keys.shape[0] - 1)
        found = varlen_attn(
            query,
            keys,
            values,
            ends,
            None,
            tiles.max_tile_tokens,
            self.most_blocks * keys.shape[1],
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=start + own,
            block_table=table,
        )
        assert isinstance(found, Tensor)
        result.copy_(found)
