"""The decode step of one row on a GPU, in seven kernel launches a layer (`one_row_triton.py`).

For dense models with plain weights, whose rotation depends on the position alone. Every other model and every larger
step is computed by `decoder.CompactBackbone`; both agree up to rounding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from server.config_json import context_length
from server.model.attention.gpu import TiledStep
from server.model.layers import one_row_triton
from server.model.layers.decoder import COMPACT_MODEL_TYPES, HeadNorms, RmsNorm, is_silu, rotates_whole_heads
from server.model.layers.packed_linear import MergedProjection

STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")  # rope types whose angles depend on the position alone


@dataclass(frozen=True, slots=True)
class Linear:
    """Weight [outputs, inputs] and bias [outputs] of one or several linear layers with one input."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    attention_norm: RmsNorm
    projections: Linear  # of queries, keys and values
    head_norms: HeadNorms | None
    output: Linear
    mlp_norm: RmsNorm
    gate_and_up: Linear
    down: Linear
    scaling: float


class OneRowModel:
    """Token id and position -> logits, over a KV pool that Triton's kernels read."""

    def __init__(self, decoder: Any, layers: list[Layer], head: Tensor) -> None:
        self._embedding = decoder.embed_tokens
        self._layers = layers
        self._norm = RmsNorm(decoder.norm)
        self._head = head
        self._angles = _all_angles(decoder)

    def __call__(self, ids: Tensor, positions: Tensor, step: TiledStep) -> Tensor:
        """Ids and positions [1] -> logits [1, vocab]. The step has one row of one token, and its pool no bytes."""
        hidden: Tensor = self._embedding(ids)[0]
        for index in range(len(self._layers)):
            self.advance(index, hidden, positions, step)
        return self.logits(hidden).unsqueeze(0)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [vocab] of what the layers leave, [hidden size]."""
        logits = hidden.new_empty(len(self._head))
        one_row_triton.product(hidden, self._head, logits, norm=self._norm.weight, epsilon=self._norm.epsilon)
        return logits

    def advance(self, index: int, hidden: Tensor, positions: Tensor, step: TiledStep) -> None:
        """Add what one layer computes to `hidden` [hidden size]."""
        layer = self._layers[index]
        keys, values = step.memory(index)
        projected = hidden.new_empty(len(layer.projections.weight))
        one_row_triton.product(
            hidden,
            layer.projections.weight,
            projected,
            norm=layer.attention_norm.weight,
            epsilon=layer.attention_norm.epsilon,
            bias=layer.projections.bias,
        )
        norms, epsilon = (layer.head_norms.weight, layer.head_norms.epsilon) if layer.head_norms else (None, 0.0)
        query = one_row_triton.rotate_and_write(
            projected.view(-1, keys.shape[3]), norms, epsilon, self._angles, positions, step.plan.slots, keys, values
        )
        attended = step.attend_written(index, query.unsqueeze(0), layer.scaling).view(-1)
        one_row_triton.product(attended, layer.output.weight, hidden, bias=layer.output.bias, adds=True)
        opened = hidden.new_empty(len(layer.gate_and_up.weight) // 2)
        one_row_triton.product(
            hidden,
            layer.gate_and_up.weight,
            opened,
            norm=layer.mlp_norm.weight,
            epsilon=layer.mlp_norm.epsilon,
            is_gated=True,
        )
        one_row_triton.product(opened, layer.down.weight, hidden, bias=layer.down.bias, adds=True)


def open_one_row(decoder: Any, head: Any) -> OneRowModel | None:
    """The one-row step of a decoder loaded by transformers; None for a model that it does not compute."""
    if decoder.config.model_type not in COMPACT_MODEL_TYPES or not rotates_whole_heads(decoder):
        return None
    if decoder.rotary_emb.rope_type not in STATIC_ROTATIONS or not _is_plain(head) or head.bias is not None:
        return None
    layers = [_read_layer(layer) for layer in decoder.layers]
    found = [layer for layer in layers if layer is not None]
    return OneRowModel(decoder, found, head.weight.detach()) if len(found) == len(layers) else None


def _read_layer(layer: Any) -> Layer | None:
    attention, mlp = layer.self_attn, layer.mlp
    projections, opened = attention.q_proj, getattr(mlp, "gate_proj", None)
    if not isinstance(projections, MergedProjection) or not isinstance(opened, MergedProjection):
        return None
    if not is_silu(mlp.act_fn) or not _is_plain(attention.o_proj) or not _is_plain(mlp.down_proj):
        return None
    if opened.packed.bias is not None:
        return None
    heads, kv_heads = attention.config.num_attention_heads, attention.config.num_key_value_heads
    return Layer(
        attention_norm=RmsNorm(layer.input_layernorm),
        projections=Linear(projections.packed.weight, projections.packed.bias),
        head_norms=HeadNorms(attention, heads, kv_heads) if hasattr(attention, "q_norm") else None,
        output=_linear(attention.o_proj),
        mlp_norm=RmsNorm(layer.post_attention_layernorm),
        gate_and_up=Linear(opened.packed.weight, None),
        down=_linear(mlp.down_proj),
        scaling=attention.scaling,
    )


def _is_plain(module: Any) -> bool:
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter


def _linear(module: nn.Linear) -> Linear:
    return Linear(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _all_angles(decoder: Any) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, [positions, head_dim / 2], as the decoder's own rotation gives them."""
    weight = decoder.norm.weight
    config = decoder.config
    count = max(context_length(config.to_dict()) or 0, config.max_position_embeddings)  # stretched rotations go further
    positions = torch.arange(count, device=weight.device)
    half = decoder.rotary_emb.inv_freq.numel()
    with torch.inference_mode():
        cos, sin = decoder.rotary_emb(weight.detach(), positions.unsqueeze(0))
        return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
