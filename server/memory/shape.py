"""Sizes in a checkpoint's configuration that decide its memory; read from config.json without transformers.

Field names are those of transformers' Qwen2, Qwen3, Qwen3-MoE, Qwen3-Next and Qwen3.5 configuration classes; a
multimodal configuration keeps them under `text_config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.config_json import context_length, text_fields
from server.errors import CannotStart

HYBRID_TYPES = ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
DEFAULT_POSITIONS = 32768
DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
LEAST_TILE = 8  # tokens of a chunk that attend at a time; see model.plan
SMALLEST_BLOCK = 16  # tokens; sums are kept for each block, smaller ones are not usual
KV_SCALE_BYTES = 4  # of each token's key or value of a head, where the cache is in bytes
FLOAT32_BYTES = 4  # attention scores and the gated delta rule's state are float32, whatever the weights are


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes in elements, layers by what they keep: KV for every token, or one recurrent state a sequence."""

    hidden_size: int
    intermediate_size: int  # of the widest dense layer, shared expert included
    vocab_size: int
    max_positions: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention_layers: int
    linear_layers: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0  # intermediate size of one expert
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    linear_key_dim: int = 0
    linear_value_dim: int = 0
    conv_kernel: int = 0
    tied: bool = False
    dtype: str = "bfloat16"  # as stored

    @property
    def conv_channels(self) -> int:
        """Channels of a linear layer's convolution: queries, keys and values."""
        return 2 * self.linear_key_heads * self.linear_key_dim + self.linear_value_heads * self.linear_value_dim

    def kv_token_bytes(self, element: int, *, in_bytes: bool = False) -> int:
        """Keys and values of one token, over the full-attention layers; `in_bytes`: a byte and a scale each head."""
        head = self.head_dim + KV_SCALE_BYTES if in_bytes else self.head_dim * element
        return self.attention_layers * 2 * self.num_kv_heads * head

    def gathered_token_bytes(self, element: int) -> int:
        """Scratch of attention for each cached token read while decoding: its keys and values, its scores, and its
        share of a block's sums."""
        scores = self.num_heads * (2 * FLOAT32_BYTES + 2 * element)
        sums = self.num_heads * self.head_dim * (FLOAT32_BYTES + 2 * element) // SMALLEST_BLOCK
        return 2 * self.num_kv_heads * self.head_dim * element + scores + sums

    def chunk_token_bytes(self, element: int) -> int:
        """Scratch of attention for each token that a prompt's chunk sees: gathered keys and values, and the scores
        and weights of the fewest of its tokens that attend at a time."""
        return 2 * self.num_kv_heads * self.head_dim * element + LEAST_TILE * self.num_heads * 2 * element

    def state_bytes(self, dtype_bytes: int) -> int:
        """Recurrent and convolution state of one sequence over the linear layers; 0 where there are none."""
        recurrent = self.linear_value_heads * self.linear_key_dim * self.linear_value_dim * FLOAT32_BYTES
        convolution = self.conv_channels * self.conv_kernel * dtype_bytes
        return self.linear_layers * (recurrent + convolution)


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a configuration describes; raises CannotStart naming a field that is missing or no number."""
    fields = text_fields(config)
    hidden, heads = _whole(fields, "hidden_size"), _whole(fields, "num_attention_heads")
    linear = _linear_layers(fields)
    experts = _whole(fields, "num_experts", _whole(fields, "num_local_experts", 0))
    return Shape(
        hidden_size=hidden,
        intermediate_size=max(
            _whole(fields, "intermediate_size", 0), _whole(fields, "shared_expert_intermediate_size", 0)
        ),
        vocab_size=_whole(fields, "vocab_size"),
        max_positions=context_length(config) or _whole(fields, "max_position_embeddings", DEFAULT_POSITIONS),
        num_heads=heads,
        num_kv_heads=_whole(fields, "num_key_value_heads", heads),
        head_dim=_whole(fields, "head_dim", hidden // max(heads, 1)),
        attention_layers=_whole(fields, "num_hidden_layers") - linear,
        linear_layers=linear,
        num_experts=experts,
        experts_per_token=_whole(fields, "num_experts_per_tok", 0) if experts else 0,
        expert_size=_whole(fields, "moe_intermediate_size", 0) if experts else 0,
        linear_key_heads=_whole(fields, "linear_num_key_heads", 16) if linear else 0,
        linear_value_heads=_whole(fields, "linear_num_value_heads", 32) if linear else 0,
        linear_key_dim=_whole(fields, "linear_key_head_dim", 128) if linear else 0,
        linear_value_dim=_whole(fields, "linear_value_head_dim", 128) if linear else 0,
        conv_kernel=_whole(fields, "linear_conv_kernel_dim", 4) if linear else 0,
        tied=bool(config.get("tie_word_embeddings", fields.get("tie_word_embeddings", False))),
        dtype=_dtype(config, fields),
    )


def _linear_layers(fields: Mapping[str, Any]) -> int:
    """How many layers keep a recurrent state; the classes' default is every layer but each fourth."""
    types = fields.get("layer_types")
    if isinstance(types, list):
        return types.count("linear_attention")
    if fields.get("model_type") not in HYBRID_TYPES:
        return 0
    interval = _whole(fields, "full_attention_interval", 4)
    layers = _whole(fields, "num_hidden_layers")
    return layers - layers // interval


def _dtype(config: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    for holder in (config, fields):
        for name in ("dtype", "torch_dtype"):
            if (value := holder.get(name)) in DTYPE_BYTES:
                return str(value)
    return "bfloat16"


def _whole(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CannotStart(f"config.json has no usable {name}: {value!r}")
    return value
