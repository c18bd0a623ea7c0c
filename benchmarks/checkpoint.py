"""Checkpoints with the shape of a real model and random weights, to measure speed without a download.

    python -m benchmarks.checkpoint 0.6B /tmp/qwen3-0.6b
    python -m benchmarks.checkpoint hybrid /tmp/qwen3.5-0.24b
    python -m benchmarks.checkpoint 30B-A3B-2 /tmp/qwen3-30b-a3b-2     # two of its 48 layers, 3.7 GB

Needs the Qwen vocabulary: pip install --no-deps qwen-agent==0.0.34. The rows of the embedding whose tokens are not
plain printable ASCII are scaled by 0.2, so that greedy output is text and never reaches an end token.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from server.checkpoint.locate import BUILT_IN_FOLDER
from tests.checkpoints import END_OF_TEXT, IM_END, VOCAB_SIZE, qwen_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

# As Qwen3.5: three of four layers have a recurrent state, the fourth gated attention; 240 million weights.
HYBRID: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "tie_word_embeddings": True,
}
# Qwen3-30B-A3B's published config.json but for the number of layers, which the shape's name has at its end.
EXPERTS: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
# Qwen3's published config.json files.
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "tiny": {  # measures everything but the model: HTTP and scheduling
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
}


def make_checkpoint(shape: str, folder: Path, seed: int = 0) -> Path:
    """Write a complete Qwen3, Qwen3-MoE or Qwen3.5 checkpoint in bfloat16, unless the folder already holds one."""
    return _make(shape, folder, qwen_tokenizer(), "cpu", seed)


def make_built_in(shape: str, folder: Path | str, device: str = "cpu") -> Path:
    """The same with the built-in model's tokenizer, whose other ids are unused; the weights are created on `device`."""
    return _make(shape, Path(folder), BUILT_IN_FOLDER, device, seed=0)


def _make(shape: str, folder: Path, source: Path, device: str, seed: int) -> Path:
    if (folder / "model.safetensors").exists() or (folder / "model.safetensors.index.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, folder / name)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config_of(shape))
    torch.set_default_dtype(torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with torch.no_grad():
        model.get_output_embeddings().weight[_is_not_printable_ascii(tokenizer).to(device)] *= 0.2
    eos_ids = [tokenizer.token_to_id(text) for text in ("<|im_end|>", "<|endoftext|>")]
    model.config.eos_token_id, model.config.bos_token_id = eos_ids
    model.generation_config = transformers.GenerationConfig(eos_token_id=eos_ids, do_sample=False)
    model.save_pretrained(folder)
    return folder


def config_of(shape: str) -> Any:
    """Return the transformers configuration of a model of this shape."""
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 40960,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": IM_END,
        "dtype": "bfloat16",
    }
    if shape == "hybrid":
        return transformers.Qwen3_5TextConfig(**HYBRID, **fields)
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    if shape.startswith("30B-A3B-"):
        layers = {"num_hidden_layers": int(shape.removeprefix("30B-A3B-"))}
        return transformers.Qwen3MoeConfig(**EXPERTS | layers, **fields, rope_parameters=rope)
    return transformers.Qwen3Config(**SHAPES[shape], **fields, rope_parameters=rope)


def _is_not_printable_ascii(tokenizer: Tokenizer) -> torch.Tensor:
    """Return a mask over the vocabulary [vocab_size]: control tokens and ids without a token are not."""
    control = tokenizer.get_added_tokens_decoder()
    mask = torch.ones(VOCAB_SIZE, dtype=torch.bool)
    for text, token_id in tokenizer.get_vocab().items():
        plain = text.replace("Ġ", " ")
        mask[token_id] = not (plain.isascii() and plain.isprintable()) or token_id in control
    return mask


if __name__ == "__main__":
    print(make_checkpoint(sys.argv[1], Path(sys.argv[2])))
