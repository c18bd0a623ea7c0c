"""A model in memory, and its sizes."""

from collections.abc import Callable
from ctypes import CDLL
from dataclasses import dataclass, field

import torch
from torch import nn

from server.model.adapters.weights import Targets
from server.model.layers.decoder import Backbone, OneRowStep
from server.model.layers.packed_linear import PackedLinear
from server.model.layers.recurrent import RecurrentShape

OnProgress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class KvShape:
    """KV cache of one token: `2 * kv_heads * head_dim` elements in each attention layer."""

    layer_indices: tuple[int, ...]  # layers of the model with keys and values
    heads: int  # query heads
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run."""

    backbone: Backbone  # token ids -> hidden states
    head: nn.Module  # hidden states -> logits
    device: torch.device
    dtype: torch.dtype
    vocab_size: int  # columns of the logits
    max_positions: int
    kv: KvShape
    recurrent: RecurrentShape | None
    weight_bytes: int
    load_s: float
    kernels: CDLL | None = None  # compiled CPU kernels, which compute attention where they can
    targets: Targets = field(default_factory=dict)  # linear layers that adapters may change
    kv_in_bytes: bool = False  # whether keys and values are kept as bytes (`--kv-dtype int8`)
    one_row: OneRowStep | None = None  # where a GPU has a faster way than the backbone


def count_bytes(model: nn.Module) -> int:
    """Bytes of all weights, tied ones counted once, including packed ones."""
    seen: dict[int, int] = {}
    packed = 0
    for module in model.modules():
        packed += module.packed_bytes() if isinstance(module, PackedLinear) else 0
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return packed + sum(seen.values())
