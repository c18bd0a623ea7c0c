"""Weights of a GGUF file under the names that transformers gives them, and what llama.cpp's converter did to each."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from server.errors import CannotStart
from server.gguf.config import EMBEDDING, OUTPUT, model_config
from server.gguf.header import GgufHeader, GgufTensor

Arithmetic = Literal["none", "one less", "log of minus"]

FINAL_NORM = "output_norm.weight"
OUTSIDE = {EMBEDDING: "model.embed_tokens.weight", OUTPUT: "lm_head.weight", FINAL_NORM: "model.norm.weight"}
IN_LAYER = re.compile(r"blk\.(?P<layer>\d{1,5})\.(?P<name>\w+(?:\.weight|\.bias)?)")
NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "post_attention_norm": "post_attention_layernorm", "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z", "ssm_alpha": "linear_attn.in_proj_a", "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d", "ssm_norm": "linear_attn.norm", "ssm_out": "linear_attn.out_proj",
}  # fmt: skip
WHOLE_NAMES = {  # experts of a layer are one tensor; transformers joins gates and ups, in this order
    "ffn_gate_exps.weight": "mlp.experts.gate_up_proj", "ffn_up_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_down_exps.weight": "mlp.experts.down_proj", "ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias",
}  # fmt: skip
SHIFTED_NORMS = ("attn_norm.weight", "post_attention_norm.weight", "attn_q_norm.weight", "attn_k_norm.weight")


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Order of rows from row `first` on: seen as three `sides`, one of them -1, side `swapped` and the next swap."""

    sides: tuple[int, int, int]
    swapped: int
    first: int = 0
    of_columns: bool = False  # columns, in place of rows


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight: its tensors, of which several are joined along the rows, in this order; then the changes."""

    name: str
    tensors: tuple[GgufTensor, ...]
    order: RowOrder | None = None
    arithmetic: Arithmetic = "none"

    @property
    def keeps_rows(self) -> bool:
        """Whether every row is one of its tensors', as it is stored."""
        return self.arithmetic == "none" and (self.order is None or not self.order.of_columns)

    @property
    def type_name(self) -> str:
        """How its numbers are stored: Q4_K, or Q4_K and Q6_K where its tensors differ."""
        return " and ".join(dict.fromkeys(tensor.type.name for tensor in self.tensors))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in transformers: convolutions and the gate of the shared expert have a side of 1 there."""
        shape, count = self.tensors[0].shape, len(self.tensors)
        if self.name.endswith("conv1d.weight"):
            return (shape[0], 1, *shape[1:])
        if self.name.endswith("shared_expert_gate.weight"):
            return (1, shape[-1])
        return shape if count == 1 else (*shape[:-2], count * shape[-2], shape[-1])


def stored_weights(header: GgufHeader) -> tuple[StoredWeight, ...]:
    """Every weight of the file; raises CannotStart for a tensor of another name, or experts that cannot be joined."""
    config = model_config(header)
    find_orders = ROW_ORDERS.get(config["model_type"])
    orders = find_orders(config) if find_orders else {}
    is_shifted = config["model_type"].startswith("qwen3_5")
    found: defaultdict[str, list[GgufTensor]] = defaultdict(list)
    inner_names: dict[str, str] = {}
    for tensor in sorted(header.tensors, key=lambda tensor: "_up_exps" in tensor.name):
        match = IN_LAYER.fullmatch(tensor.name)
        if match and int(match["layer"]) == config["num_hidden_layers"] and is_shifted:
            continue  # a draft head, which is not loaded
        name = _in_layer(match) if match else OUTSIDE.get(tensor.name)
        if name is None:
            raise CannotStart(
                f"{header.path} holds the tensor {tensor.name[:60]!a}, which {header.architecture} is not known to have"
            )
        found[name].append(tensor)
        inner_names[name] = match["name"] if match else tensor.name
    for name, tensors in found.items():
        if len({tensor.shape for tensor in tensors}) > 1 or len(tensors) != (2 if name.endswith("gate_up_proj") else 1):
            names = ", ".join(ascii(tensor.name[:60]) for tensor in tensors)
            raise CannotStart(f"{header.path} holds tensors for {name} that do not make one weight: {names}")
    return tuple(
        StoredWeight(name, tuple(tensors), orders.get(inner_names[name]), _arithmetic(inner_names[name], is_shifted))
        for name, tensors in found.items()
    )


def _in_layer(match: re.Match[str]) -> str | None:
    layer = f"model.layers.{int(match['layer'])}."
    if match["name"] in WHOLE_NAMES:
        return layer + WHOLE_NAMES[match["name"]]
    stem, _, kind = match["name"].partition(".")
    return f"{layer}{NAMES[stem]}.{kind}" if stem in NAMES and kind else None


def _arithmetic(name: str, is_shifted: bool) -> Arithmetic:
    if name == "ssm_a":
        return "log of minus"
    return "one less" if is_shifted and name in (*SHIFTED_NORMS, FINAL_NORM) else "none"


def _rotated_rows(config: Mapping[str, Any]) -> dict[str, RowOrder]:
    """Queries and keys of Llama: llama.cpp rotates neighbours (0, 1, 2, ...), transformers halves (0, n/2, 1, ...)."""
    return {
        "attn_q.weight": RowOrder((config["num_attention_heads"], -1, 2), 1),
        "attn_k.weight": RowOrder((config["num_key_value_heads"], -1, 2), 1),
    }


def _grouped_heads(config: Mapping[str, Any]) -> dict[str, RowOrder]:
    """Value heads of a Gated DeltaNet: all first ones of each key head here, those of one key head together there."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    sides = (values // max(keys, 1), keys, -1)
    behind = 2 * keys * config["linear_key_head_dim"]  # queries and keys
    each = ("attn_gate.weight", "ssm_alpha.weight", "ssm_beta.weight", "ssm_a", "ssm_dt.bias")
    return {
        **{name: RowOrder(sides, 0) for name in each},
        **{name: RowOrder(sides, 0, first=behind) for name in ("attn_qkv.weight", "ssm_conv1d.weight")},
        "ssm_out.weight": RowOrder(sides, 0, of_columns=True),
    }


# By transformers' `model_type`: tensors whose rows have another order in the file.
ROW_ORDERS = {"llama": _rotated_rows, "qwen3_5_text": _grouped_heads, "qwen3_5_moe_text": _grouped_heads}
