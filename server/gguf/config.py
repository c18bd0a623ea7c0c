"""Configuration of the model in a GGUF file, as the config.json of a folder would say it.

The keys are those of ggml's docs/gguf.md, the fields those of transformers' configuration classes. What a file states
and this module does not know would be computed wrongly: it is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import CannotStart
from server.gguf.header import GgufHeader, GgufTensor

DEFAULT_THETA = 10_000.0
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What transformers calls an architecture, and what the file does not say about it."""

    model_type: str
    class_name: str
    states_head_dim: bool = True
    has_experts: bool = False
    is_hybrid: bool = False  # Gated DeltaNet in most layers


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM"),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", states_head_dim=False),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", has_experts=True),
    "qwen35": Architecture("qwen3_5_text", "Qwen3_5ForCausalLM", is_hybrid=True),
    "qwen35moe": Architecture("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", has_experts=True, is_hybrid=True),
}


def model_config(header: GgufHeader) -> dict[str, Any]:
    """The fields of config.json; raises CannotStart for an architecture, or a property of one, that is not served."""
    architecture = _architecture(header)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    hidden, heads = _size(header, "embedding_length"), _size(header, "attention.head_count")
    head_dim = _size(header, "attention.key_length", hidden // max(heads, 1))
    _refuse_variants(header, head_dim, rotates_a_part=architecture.is_hybrid)
    config = {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        "vocab_size": _vocab_size(header, tensors),
        "hidden_size": hidden,
        # Of a layer without experts; a file may have none of these.
        "intermediate_size": _size(header, "feed_forward_length", 1 if architecture.has_experts else None),
        "num_hidden_layers": _size(header, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _size(header, "attention.head_count_kv", heads),
        "max_position_embeddings": _size(header, "context_length"),
        "rms_norm_eps": _value(header, "attention.layer_norm_rms_epsilon", float),
        "rope_parameters": _rope(header),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": OUTPUT not in tensors,
        "dtype": _dtype(header),
        "eos_token_id": _stop_ids(header),
    }
    if architecture.states_head_dim:
        config["head_dim"] = head_dim
    if architecture.has_experts:
        config |= {
            "num_experts": _size(header, "expert_count"),
            "num_experts_per_tok": _size(header, "expert_used_count"),
            "moe_intermediate_size": _size(header, "expert_feed_forward_length"),
        }
    if architecture.is_hybrid:
        return config | _hybrid(header, head_dim, has_experts=architecture.has_experts)
    if architecture.has_experts:  # as all published ones have, and llama.cpp computes
        config |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return config


def _hybrid(header: GgufHeader, head_dim: int, *, has_experts: bool) -> dict[str, Any]:
    """What Qwen3.5 has beside the common fields. The draft head counts as a block in the file."""
    values = _size(header, "ssm.time_step_rank")
    sections = _value(header, "rope.dimension_sections", list)
    fields = {
        "num_hidden_layers": _size(header, "block_count") - _size(header, "nextn_predict_layers", 0),
        "full_attention_interval": _size(header, "full_attention_interval"),
        "linear_conv_kernel_dim": _size(header, "ssm.conv_kernel"),
        "linear_key_head_dim": _size(header, "ssm.state_size"),
        "linear_num_key_heads": _size(header, "ssm.group_count"),
        "linear_num_value_heads": values,
        "linear_value_head_dim": _size(header, "ssm.inner_size") // max(values, 1),
        "rope_parameters": _rope(header)
        | {
            "mrope_section": [size for size in sections if size],
            "mrope_interleaved": True,
            "partial_rotary_factor": _size(header, "rope.dimension_count") / max(head_dim, 1),
        },
    }
    if has_experts:
        fields["shared_expert_intermediate_size"] = _size(header, "expert_shared_feed_forward_length")
    return fields


def _architecture(header: GgufHeader) -> Architecture:
    found = ARCHITECTURES.get(header.architecture)
    if found is None:
        raise CannotStart(
            f"{header.path} holds a model of the architecture {header.architecture[:60]!a}, which is not served from "
            f"GGUF; those served are {', '.join(ARCHITECTURES)}"
        )
    return found


def _value(header: GgufHeader, key: str, kind: type, default: Any = None) -> Any:
    return header.value(f"{header.architecture}.{key}", kind, default)


def _size(header: GgufHeader, key: str, default: int | None = None) -> int:
    return int(_value(header, key, int, default))


def _refuse_variants(header: GgufHeader, head_dim: int, *, rotates_a_part: bool) -> None:
    """Raise CannotStart for what these architectures may have in llama.cpp, and have not in transformers."""
    rotated = head_dim if rotates_a_part else _size(header, "rope.dimension_count", head_dim)
    values = _size(header, "attention.value_length", head_dim)
    window = _size(header, "attention.sliding_window", 0)
    if (rotated, values) != (head_dim, head_dim):
        raise CannotStart(
            f"{header.path} has heads of {head_dim} dimensions of which {rotated} are rotated, and values of {values}; "
            "only heads of one size, rotated as a whole, are served"
        )
    if 0 < window < _size(header, "context_length"):
        raise CannotStart(f"{header.path} has attention in a sliding window of {window} tokens, which is not served")
    if any(tensor.name == "rope_freqs.weight" for tensor in header.tensors):
        raise CannotStart(f"{header.path} scales each rotary frequency by itself (rope_freqs), which is not served")


def _vocab_size(header: GgufHeader, tensors: Mapping[str, GgufTensor]) -> int:
    """Rows of the embedding: a vocabulary's own key is missing in most files."""
    embedding = tensors.get(EMBEDDING)
    if embedding is None:
        raise CannotStart(f"{header.path} has no tensor {EMBEDDING}, which a model needs")
    return embedding.shape[0]


def _rope(header: GgufHeader) -> dict[str, Any]:
    """Rotary positions; a scaling by a factor as transformers names it."""
    theta = float(_value(header, "rope.freq_base", float, DEFAULT_THETA))
    kind = str(_value(header, "rope.scaling.type", str, "none"))
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if kind not in ("linear", "yarn"):
        raise CannotStart(f"{header.path} scales rotary positions by {kind[:40]!a}, which is not served")
    factor = float(_value(header, "rope.scaling.factor", float))
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": theta, "factor": factor}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = _size(header, "rope.scaling.original_context_length")
    return rope


def _dtype(header: GgufHeader) -> str:
    """The type of the matrices where it is one that is computed in, else bfloat16. Routers and norms are float32."""
    types = {tensor.type.name for tensor in header.tensors if len(tensor.shape) > 1}
    if types <= {"F32"}:
        return "float32"
    return "float16" if types <= {"F32", "F16"} else "bfloat16"


def _stop_ids(header: GgufHeader) -> list[int]:
    keys = (f"tokenizer.ggml.{key}" for key in STOP_KEYS)
    return list(dict.fromkeys(header.value(key, int) for key in keys if key in header.metadata))
