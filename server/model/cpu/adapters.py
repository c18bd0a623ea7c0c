"""Adapters as the compiled kernels read them (`cpp/adapters.h`)."""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from server.model.adapters.step import StepAdapters
from server.model.adapters.weights import AdapterWeights
from server.model.cpu.library import AdapterLayerStruct, LowRankStruct

GROUP = 16  # outputs of a panel
ADAPTER_PARTS: Mapping[str, int] = {  # places in a layer's structure
    "self_attn.q_proj": 0,
    "self_attn.k_proj": 1,
    "self_attn.v_proj": 2,
    "self_attn.o_proj": 4,
    "mlp.gate_proj": 5,
    "mlp.up_proj": 6,
    "mlp.down_proj": 7,
    "linear_attn.in_proj_qkvz": 0,
    "linear_attn.in_proj_ba": 2,
    "linear_attn.in_proj_qkv": 0,
    "linear_attn.in_proj_z": 1,
    "linear_attn.in_proj_b": 2,
    "linear_attn.in_proj_a": 3,
    "linear_attn.out_proj": 4,
}


class NativeAdapter:
    """An adapter's factors in a model's type, and the structures that lead to them."""

    def __init__(self, weights: AdapterWeights, num_layers: int, dtype: torch.dtype) -> None:
        self.max_rank = weights.max_rank
        self._layers = (AdapterLayerStruct * num_layers)()
        self._kept: list[Tensor] = []
        for part, factors in weights.factors.items():
            self._layers[part.layer].parts[ADAPTER_PARTS[part.module]] = LowRankStruct(
                rank=factors.rank,
                down=self._keep(factors.down.to(dtype)),
                up=self._keep(in_panels(factors.scaled_up(dtype))),
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of its factors."""
        return sum(factor.numel() * factor.element_size() for factor in self._kept)

    @property
    def address(self) -> int:
        """Where the structures of its layers begin."""
        return ctypes.addressof(self._layers)

    def _keep(self, factor: Tensor) -> int:
        own = factor.contiguous()
        if own.untyped_storage().nbytes() != own.numel() * own.element_size() or own.data_ptr() % 4:
            own = own.clone()  # else a view of the whole file would stay, or numbers that are not aligned
        self._kept.append(own)
        return own.data_ptr()


def in_panels(up: Tensor) -> Tensor:
    """B [outputs, rank] -> [panels, rank, GROUP], the last panel filled up with zeros."""
    outputs, rank = up.shape
    filled = functional.pad(up, (0, 0, 0, -outputs % GROUP))
    return filled.view(-1, GROUP, rank).transpose(1, 2).contiguous()


def addresses_of(adapters: StepAdapters, num_tokens: int) -> Any:
    """The address of each token's adapter, 0 without one: int64 [num_tokens]."""
    found = np.zeros(num_tokens, dtype=np.int64)
    for run in adapters.runs:
        assert isinstance(run.adapter, NativeAdapter), "adapters are in the kernels' form"
        found[run.first : run.end] = run.adapter.address
    return found
