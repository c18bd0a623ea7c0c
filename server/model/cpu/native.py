"""Decoder, output head and KV cache on the compiled CPU kernels of `cpp/step.h`.

The kernels compute whole decoders in bfloat16 and float32 where they know every layer (`layer_reader.py`), and
attention of other models in these types. They read the checkpoint's weights in place, except for short rows, which are
packed into panels; weights of few bits have a layout of their own from the beginning.
"""

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import CDLL
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from server.model.adapters.step import AdaptedModel, StepAdapters
from server.model.adapters.weights import AdapterWeights
from server.model.attention.base import AttentionStep, PoolShape
from server.model.attention.cpu import BlockMemory
from server.model.attention.step_plan import RowPlan
from server.model.cpu.adapters import NativeAdapter, addresses_of
from server.model.cpu.layer_reader import (
    DTYPES,
    SIZE_MULTIPLE,
    LayerReader,
    epsilon_of,
    has_gates,
    is_grouped,
    pack_panels,
)
from server.model.cpu.library import AttentionStruct, LayerStruct, ModelStruct, StepStruct
from server.model.layers.recurrent import MIXER, RecurrentStep
from server.model.quantization.linear import QuantizedLinear

TAIL_BYTES = 64  # read beyond the last block


def supports_pool(shape: PoolShape) -> bool:
    """Whether the kernels read a KV cache of this shape."""
    return shape.dtype in DTYPES and shape.head_dim % SIZE_MULTIPLE == 0 and shape.block_size % 2 == 0


class NativeBackbone:
    """The whole decoder in one call a step."""

    def __init__(self, decoder: Any, library: CDLL) -> None:
        self._library = library
        self._embedding = decoder.embed_tokens
        self._rotary = decoder.rotary_emb
        self._angles_like = torch.empty(0, dtype=torch.float32)
        self._reader = LayerReader(library)  # keeps alive what the kernels read
        layers = list(decoder.layers)
        self._layers = (LayerStruct * len(layers))(*(self._reader.layer(layer) for layer in layers))
        attention = next(layer.self_attn for layer in layers if hasattr(layer, "self_attn"))
        dense = [layer.mlp.down_proj.in_features for layer in layers if not hasattr(layer.mlp, "experts")]
        self._model = ModelStruct(
            is_bf16=decoder.norm.weight.dtype == torch.bfloat16,
            hidden=attention.q_proj.in_features,
            inner=max(dense, default=0),
            heads=attention.o_proj.in_features // attention.head_dim,
            kv_heads=attention.k_proj.out_features // attention.head_dim,
            head_dim=attention.head_dim,
            num_layers=len(layers),
            rotated=2 * decoder.rotary_emb.inv_freq.numel(),
            has_gates=has_gates(attention),
            epsilon=epsilon_of(decoder.norm),
            scaling=attention.scaling,
            layers=ctypes.addressof(self._layers),
            norm=self._reader.norm(decoder.norm),
        )
        self._set_recurrent_shape(next((getattr(layer, MIXER) for layer in layers if hasattr(layer, MIXER)), None))

    def _set_recurrent_shape(self, mixer: Any) -> None:
        if mixer is None:
            return
        model = self._model
        model.key_heads, model.value_heads = mixer.num_k_heads, mixer.num_v_heads
        model.key_dim, model.value_dim = mixer.head_k_dim, mixer.head_v_dim
        model.kernel, model.is_grouped = mixer.conv_kernel_size, is_grouped(mixer)

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        paged: AttentionStep,
        recurrent: RecurrentStep | None,
        adapters: StepAdapters | None = None,
    ) -> Tensor:
        """As `Backbone`."""
        assert isinstance(paged, NativeStep), "the pool is in the kernels' layout"
        embedded: Tensor = self._embedding(ids)
        cosines, sines = self._rotary(self._angles_like, positions.unsqueeze(0))
        results = torch.empty_like(embedded)
        keys, values = paged.pool.by_layer(paged.layer_of, len(self._layers))
        step = StepStruct(
            num_tokens=len(ids),
            num_rows=len(paged.rows),
            num_threads=torch.get_num_threads(),
            block_size=paged.pool.shape.block_size,
            of_bytes=paged.pool.shape.in_bytes,
            rows=paged.rows.ctypes.data,
            keys=ctypes.addressof(keys),
            values=ctypes.addressof(values),
            embedded=embedded.data_ptr(),
            cosines=cosines.data_ptr(),
            sines=sines.data_ptr(),
            results=results.data_ptr(),
        )
        of_tokens = None if adapters is None else addresses_of(adapters, len(ids))
        if adapters is not None and of_tokens is not None:
            step.adapters, step.max_rank = of_tokens.ctypes.data, max(run.adapter.max_rank for run in adapters.runs)
        states = NativeStates(recurrent, len(self._layers)) if recurrent else None
        if states:
            step.slots = states.slots.ctypes.data
            step.convolutions, step.states = ctypes.addressof(states.convolutions), ctypes.addressof(states.states)
        model = ctypes.byref(self._model)
        scratch = torch.empty(self._library.toolwire_step_bytes(model, ctypes.byref(step)), dtype=torch.uint8)
        step.scratch = scratch.data_ptr()
        self._library.toolwire_compute(model, ctypes.byref(step))
        return results

    def adapt(self, weights: AdapterWeights) -> AdaptedModel:
        """As `Backbone`."""
        return NativeAdapter(weights, len(self._layers), torch.bfloat16 if self._model.is_bf16 else torch.float32)


class NativeStates:
    """Recurrent states of one step as the kernels read them, which lay out inputs of a convolution in their own way."""

    def __init__(self, recurrent: RecurrentStep, num_layers: int) -> None:
        pool, layers = recurrent.pool, range(num_layers)
        self.slots: Any = np.array([row.slot for row in recurrent.rows], dtype=np.int64)
        self.convolutions = _pointers([pool.convolution.get(index) for index in layers])
        self.states = _pointers([pool.recurrent.get(index) for index in layers])


def _pointers(tensors: Sequence[Tensor | None]) -> Any:
    """Addresses as a C array, null where there is no tensor."""
    return (ctypes.c_void_p * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))


class NativeHead(nn.Module):
    """Output head: float32 logits, summed in the same order whatever the batch."""

    def __init__(self, head: nn.Linear | QuantizedLinear, library: CDLL) -> None:
        super().__init__()
        self._library = library
        self._vocab_size = head.out_features
        self._weight = pack_panels(head, library)
        # Reused: logits take tens of megabytes, and committing new pages at every step costs as much as the product.
        self._logits = torch.empty(0)

    def forward(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocab] float32, overwritten by the next call."""
        hidden = hidden.contiguous()
        if self._logits.shape[0] < len(hidden):
            self._logits = torch.empty(0)  # freed before the next is allocated
            self._logits = torch.empty(len(hidden), self._vocab_size)
        self._library.toolwire_project(*self._product(hidden), self._logits.data_ptr(), torch.get_num_threads())
        return self._logits[: len(hidden)]

    def greedy_ids(self, hidden: Tensor) -> Tensor:
        """As `sampler.greedy_ids` of the same logits, without storing the logits."""
        hidden, threads = hidden.contiguous(), torch.get_num_threads()
        ids = torch.empty(len(hidden), dtype=torch.int64)
        scratch = torch.empty(self._library.toolwire_likeliest_bytes(len(hidden), threads), dtype=torch.uint8)
        product = self._product(hidden)
        self._library.toolwire_likeliest(*product, ids.data_ptr(), scratch.data_ptr(), threads)
        return ids

    def _product(self, hidden: Tensor) -> tuple[int, ...]:
        """The operands as arguments of the library; `hidden` is contiguous and must outlive the call."""
        num_rows, size = hidden.shape
        return (
            hidden.dtype == torch.bfloat16,
            hidden.data_ptr(),
            num_rows,
            size,
            self._weight.data_ptr(),
            self._vocab_size,
        )


class NativePool(BlockMemory):
    """KV cache in the kernels' layout (`cpp/cache.h`)."""

    def __init__(self, shape: PoolShape, num_blocks: int, library: CDLL) -> None:
        assert shape.block_size % 2 == 0, "values are stored in pairs of tokens"
        super().__init__(shape, num_blocks, tail_bytes=TAIL_BYTES)
        self.library = library
        self._by_layer: tuple[Any, Any] | None = None

    def by_layer(self, layer_of: Mapping[int, int], num_layers: int) -> tuple[Any, Any]:
        """Addresses of the keys and of the values of every layer of the model, null where it has none."""
        if self._by_layer is None:
            indices = [layer_of.get(layer) for layer in range(num_layers)]
            keys, values = (
                [None if index is None else parts[index] for index in indices] for parts in (self.keys, self.values)
            )
            self._by_layer = _pointers(keys), _pointers(values)
        return self._by_layer

    def arrange(self, rows: Sequence[RowPlan], layer_of: dict[int, int]) -> AttentionStep:
        """Plan one step. `rows` are in the order of their tokens."""
        sizes = np.array([len(row.blocks) for row in rows])
        table = np.fromiter(chain.from_iterable(row.blocks for row in rows), np.int32, sizes.sum())
        ends = [row.start + row.num_tokens for row in rows]
        assert (sizes * self.shape.block_size >= ends).all(), "the block table covers every token"
        assert table.min() >= 0 and table.max() < self.num_blocks, "block ids are within the pool"
        lengths = np.array([row.num_tokens for row in rows])
        plan = np.empty((len(rows), 4), dtype=np.int64)
        plan[:, 0] = np.cumsum(lengths) - lengths
        plan[:, 1] = lengths
        plan[:, 2] = [row.start for row in rows]
        plan[:, 3] = table.ctypes.data + (np.cumsum(sizes) - sizes) * table.itemsize
        return NativeStep(self, plan, table, layer_of)


@dataclass(frozen=True, slots=True)
class NativeStep:
    """Attention of one step over a `NativePool`; the rows as the kernels read them."""

    pool: NativePool
    rows: Any  # int64 [rows, 4]: first token, number of tokens, cached tokens, address of the block table
    table: Any  # int32: the block tables of all rows, concatenated
    layer_of: dict[int, int]  # the model's layer index -> the pool's

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `AttentionStep.attend`."""
        pool, layer = self.pool, self.layer_of[layer_index]
        query, key, value = (part.contiguous() for part in (query, key, value))
        results = torch.empty_like(query)
        step = AttentionStruct(
            is_bf16=query.dtype == torch.bfloat16,
            heads=query.shape[1],
            kv_heads=key.shape[1],
            head_dim=query.shape[2],
            num_tokens=query.shape[0],
            num_rows=len(self.rows),
            num_threads=torch.get_num_threads(),
            block_size=pool.shape.block_size,
            of_bytes=pool.shape.in_bytes,
            scaling=scaling,
            rows=self.rows.ctypes.data,
            queries=query.data_ptr(),
            new_keys=key.data_ptr(),
            new_values=value.data_ptr(),
            keys=pool.keys[layer].data_ptr(),
            values=pool.values[layer].data_ptr(),
            results=results.data_ptr(),
        )
        scratch = torch.empty(pool.library.toolwire_attention_bytes(ctypes.byref(step)), dtype=torch.uint8)
        step.scratch = scratch.data_ptr()
        pool.library.toolwire_attend(ctypes.byref(step))
        return results
