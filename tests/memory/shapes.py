"""Real checkpoints as far as memory knows them: their configuration, and headers as their files would have."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from server.memory.headers import Tensor
from server.memory.shape import Shape, read_shape

LINEAR = {"linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
LONG = {"max_position_embeddings": 262_144}
# Qwen3.5: the classes' defaults are the 9B and the 35B-A3B; the others as in the models' own configurations.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-0.6B": (
        "Qwen3Config",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "max_position_embeddings": 40960,
        },
    ),
    "Qwen3-8B": (
        "Qwen3Config",
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": False,
            "max_position_embeddings": 40960,
        },
    ),
    "Qwen3-32B": (
        "Qwen3Config",
        {
            "hidden_size": 5120,
            "intermediate_size": 25600,
            "num_hidden_layers": 64,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": False,
            "max_position_embeddings": 40960,
        },
    ),
    "Qwen3-30B-A3B": (
        "Qwen3MoeConfig",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151936,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "max_position_embeddings": 40960,
        },
    ),
    "Qwen2.5-7B": (
        "Qwen2Config",
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_position_embeddings": 32768,
        },
    ),
    "Qwen3.5-0.8B": (
        "Qwen3_5TextConfig",
        {
            "hidden_size": 1024,
            "intermediate_size": 3584,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "linear_num_value_heads": 16,
            **LINEAR,
            **LONG,
        },
    ),
    "Qwen3.5-4B": (
        "Qwen3_5TextConfig",
        {
            "hidden_size": 2560,
            "intermediate_size": 9216,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "linear_num_value_heads": 32,
            **LINEAR,
            **LONG,
        },
    ),
    "Qwen3.5-9B": (
        "Qwen3_5TextConfig",
        LONG,
    ),
    "Qwen3.5-27B": (
        "Qwen3_5TextConfig",
        {
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "num_hidden_layers": 64,
            "num_attention_heads": 24,
            "num_key_value_heads": 4,
            "linear_num_value_heads": 48,
            **LINEAR,
            **LONG,
        },
    ),
    "Qwen3.5-35B-A3B": (
        "Qwen3_5MoeTextConfig",
        LONG,
    ),
}


@functools.cache
def real_model(name: str) -> tuple[Shape, tuple[Tensor, ...], dict[str, Any]]:
    """Shape, header and configuration of a checkpoint in bfloat16, made without its weights."""
    kind, fields = CONFIGS[name]
    config = getattr(transformers, kind)(**fields, dtype="bfloat16")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    written = json.loads(config.to_json_string())
    tensors = tuple(Tensor(key, "BF16", tuple(value.shape)) for key, value in model.state_dict().items())
    return read_shape(written), tensors, written


def write_headers(folder: Path, tensors: tuple[Tensor, ...], config: dict[str, Any]) -> None:
    """A checkpoint folder with everything but the weights: its file has a hole where they would be."""
    sizes = {"BF16": 2, "F32": 4, "F16": 2, "I8": 1, "I32": 4}
    entries, end = {}, 0
    for tensor in tensors:
        begin, end = end, end + tensor.count * sizes[tensor.dtype]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    (folder / "config.json").write_text(json.dumps(config))
