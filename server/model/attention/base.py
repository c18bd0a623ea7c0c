"""Interface of paged attention, independent of the device: block size, one step, transformers' attention function."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class PoolShape:
    """Size of one KV block over all attention layers."""

    block_size: int  # tokens
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype  # of queries and results, and of what is stored unless it is in bytes
    in_bytes: bool = False  # signed bytes, with a scale of float32 for each token's key and value of a head

    @property
    def stored(self) -> torch.dtype:
        """The type of the pool's tensors; scales lie between bytes."""
        return torch.int8 if self.in_bytes else self.dtype

    @property
    def row_elements(self) -> int:
        """Elements stored for one token's key (or value) of a head."""
        return self.head_dim + (SCALE_BYTES if self.in_bytes else 0)

    @property
    def part_elements(self) -> int:
        """Elements of one block's keys (or values) in one layer."""
        return self.kv_heads * self.row_elements * self.block_size

    @property
    def layer_bytes(self) -> int:
        """Bytes of one block in one layer: keys and values."""
        return 2 * self.part_elements * self.stored.itemsize

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block: keys and values in every layer."""
        return self.layers * self.layer_bytes


class AttentionStep(Protocol):
    """Attention of one step, independent of the cache layout; passed through the model's forward to every layer."""

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Write the new keys and values, then attend causally over each token's context.

        query [num_tokens, heads, head_dim], key and value [num_tokens, kv_heads, head_dim];
        returns [num_tokens, heads, head_dim].
        """


def paged_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, num_tokens, head_dim] -> [1, num_tokens, heads, head_dim]."""
    step: AttentionStep = kwargs["paged"]
    scaling = kwargs.get("scaling") or module.head_dim**-0.5
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    return step.attend(module.layer_idx, query, key, value, scaling).unsqueeze(0), None
