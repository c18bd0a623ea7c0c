"""Decoder, output head and KV cache on the compiled CPU kernels of `cpp/step.h`.

The kernels compute dense decoders in bfloat16 and float32, and the attention of every other model in these types; torch
computes the rest. They read the checkpoint's weights in place, except for short rows, which are packed into panels.
"""

import ctypes
from collections.abc import Sequence
from ctypes import CDLL
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from server.model.attention.base import AttentionStep, PoolShape
from server.model.attention.cpu import BlockMemory
from server.model.attention.step_plan import RowPlan
from server.model.cpu.library import (
    AttentionStruct,
    LayerStruct,
    ModelStruct,
    StepStruct,
)
from server.model.layers.decoder import is_silu, rotates_whole_heads
from server.model.layers.recurrent import RecurrentStep

DTYPES = (torch.bfloat16, torch.float32)
SIZE_MULTIPLE = 32  # of every dimension that products sum over
TAIL_BYTES = 64  # read beyond the last block


def supports_decoder(decoder: Any, head: Any) -> bool:
    """Whether the kernels compute this decoder, of a compact type and with plain linear layers."""
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    dtype = head.weight.dtype
    if dtype not in DTYPES or {weight.dtype for weight in decoder.parameters()} != {dtype}:
        return False
    reads_layers = all(_supports_layer(layer) for layer in decoder.layers)
    return reads_layers and _reads_linear(head) and rotates_whole_heads(decoder)


def _supports_layer(layer: Any) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    biased = (attention.q_proj, attention.k_proj, attention.v_proj)
    plain = (attention.o_proj, *(getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")))
    return (
        all(_reads_linear(linear) for linear in (*biased, *plain))
        and all(linear.bias is None for linear in plain)
        and attention.head_dim % SIZE_MULTIPLE == 0
        and is_silu(mlp.act_fn)
    )


def _reads_linear(linear: Any) -> bool:
    # A quantized weight is a tensor of another class with the dtype of its results; it has no address.
    is_plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter
    return is_plain and linear.in_features % SIZE_MULTIPLE == 0 and linear.weight.device.type == "cpu"


def supports_pool(shape: PoolShape) -> bool:
    """Whether the kernels read a KV cache of this shape."""
    return shape.dtype in DTYPES and shape.head_dim % SIZE_MULTIPLE == 0 and shape.block_size % 2 == 0


def pack_panels(linear: nn.Linear, library: CDLL) -> Tensor:
    """A layer's weights as the kernels read them: short rows packed into panels, which replace the layer's weight."""
    weight, is_bf16 = linear.weight.detach().contiguous(), linear.weight.dtype == torch.bfloat16
    outputs, size = weight.shape
    num_bytes = library.toolwire_panel_bytes(is_bf16, size, outputs)
    if not num_bytes:
        return weight
    panels = torch.empty(num_bytes // weight.element_size(), dtype=weight.dtype)
    threads = torch.get_num_threads()
    library.toolwire_lay_out(is_bf16, weight.data_ptr(), size, outputs, panels.data_ptr(), threads)
    linear.weight = nn.Parameter(panels, requires_grad=False)  # a tied embedding keeps its own
    return panels


class NativeBackbone:
    """The whole decoder in one call a step."""

    def __init__(self, decoder: Any, library: CDLL) -> None:
        self._library = library
        self._embedding = decoder.embed_tokens
        self._rotary = decoder.rotary_emb
        first = decoder.layers[0]
        attention = first.self_attn
        self._kept: list[Tensor] = []  # keeps alive what the kernels read
        self._angles_like = torch.empty(0, dtype=torch.float32)
        self._layers = (LayerStruct * len(decoder.layers))(*(self._layer(layer) for layer in decoder.layers))
        self._model = ModelStruct(
            is_bf16=attention.q_proj.weight.dtype == torch.bfloat16,
            hidden=attention.q_proj.in_features,
            inner=first.mlp.down_proj.in_features,
            heads=attention.q_proj.out_features // attention.head_dim,
            kv_heads=attention.k_proj.out_features // attention.head_dim,
            head_dim=attention.head_dim,
            num_layers=len(self._layers),
            epsilon=decoder.norm.variance_epsilon,
            scaling=attention.scaling,
            layers=ctypes.addressof(self._layers),
            norm=self._address(decoder.norm.weight),
        )

    def __call__(self, ids: Tensor, positions: Tensor, paged: AttentionStep, recurrent: RecurrentStep | None) -> Tensor:
        """As `Backbone`."""
        assert isinstance(paged, NativeStep), "the pool is in the kernels' layout"
        embedded: Tensor = self._embedding(ids)
        cosines, sines = self._rotary(self._angles_like, positions.unsqueeze(0))
        results = torch.empty_like(embedded)
        step = StepStruct(
            num_tokens=len(ids),
            num_rows=len(paged.rows),
            num_threads=torch.get_num_threads(),
            block_size=paged.pool.shape.block_size,
            rows=paged.rows.ctypes.data,
            keys=ctypes.addressof(paged.pool.key_pointers),
            values=ctypes.addressof(paged.pool.value_pointers),
            embedded=embedded.data_ptr(),
            cosines=cosines.data_ptr(),
            sines=sines.data_ptr(),
            results=results.data_ptr(),
        )
        model = ctypes.byref(self._model)
        scratch = torch.empty(self._library.toolwire_step_bytes(model, ctypes.byref(step)), dtype=torch.uint8)
        step.scratch = scratch.data_ptr()
        self._library.toolwire_compute(model, ctypes.byref(step))
        return results

    def _layer(self, layer: Any) -> LayerStruct:
        attention, mlp = layer.self_attn, layer.mlp
        has_norms = hasattr(attention, "q_norm")
        return LayerStruct(
            query=self._packed(attention.q_proj),
            key=self._packed(attention.k_proj),
            value=self._packed(attention.v_proj),
            output=self._packed(attention.o_proj),
            gate=self._packed(mlp.gate_proj),
            up=self._packed(mlp.up_proj),
            down=self._packed(mlp.down_proj),
            query_bias=self._address(attention.q_proj.bias),
            key_bias=self._address(attention.k_proj.bias),
            value_bias=self._address(attention.v_proj.bias),
            attention_norm=self._address(layer.input_layernorm.weight),
            mlp_norm=self._address(layer.post_attention_layernorm.weight),
            query_norm=self._address(attention.q_norm.weight if has_norms else None),
            key_norm=self._address(attention.k_norm.weight if has_norms else None),
        )

    def _packed(self, linear: nn.Linear) -> int | None:
        return self._address(pack_panels(linear, self._library))

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        own = tensor.detach().contiguous()
        self._kept.append(own)
        return own.data_ptr()


class NativeHead(nn.Module):
    """Output head: float32 logits, summed in the same order whatever the batch."""

    def __init__(self, head: nn.Linear, library: CDLL) -> None:
        super().__init__()
        self._library = library
        self._vocab_size = head.out_features
        self._is_bf16 = head.weight.dtype == torch.bfloat16
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
            self._is_bf16,
            hidden.data_ptr(),
            num_rows,
            size,
            self._weight.data_ptr(),
            self._vocab_size,
        )


class NativePool(BlockMemory):
    """KV cache in the kernels' layout (`cpp/attention.h`)."""

    def __init__(self, shape: PoolShape, num_blocks: int, library: CDLL) -> None:
        assert shape.block_size % 2 == 0, "values are stored in pairs of tokens"
        super().__init__(shape, num_blocks, tail_bytes=TAIL_BYTES)
        self.library = library
        self.key_pointers = (ctypes.c_void_p * shape.layers)(*(keys.data_ptr() for keys in self.keys))
        self.value_pointers = (ctypes.c_void_p * shape.layers)(*(values.data_ptr() for values in self.values))

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
