"""Conversion of a Qwen3 checkpoint to CHECKPOINT/model.gguf for llama.cpp; run it with the peer's interpreter.

    PEERS_DIR/llamacpp/bin/python -m benchmarks.write_gguf CHECKPOINT

Weights stay bit-identical in bfloat16; norms become float32, as llama.cpp requires.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
           "lm_head.weight": "output.weight"}  # fmt: skip


def gguf_name(name: str) -> str:
    """Translate a name: model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    layer, _, inner = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[inner.removesuffix('.weight')]}.weight"


def write_weights(writer: Any, file: Path) -> None:
    """Add every tensor of a bfloat16 safetensors file (format: https://huggingface.co/docs/safetensors)."""
    size = int.from_bytes(file.open("rb").read(8), "little")
    content = np.memmap(file, np.uint8, "r")
    header = json.loads(content[8 : 8 + size].tobytes())
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{name} is {entry['dtype']}, not BF16")
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        halves = content[begin:end].view(np.uint16).reshape(entry["shape"])
        if len(entry["shape"]) == 1:
            writer.add_tensor(gguf_name(name), (halves.astype(np.uint32) << 16).view(np.float32))
        else:
            raw = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), halves.view(np.uint8), raw_dtype=raw)


def write_tokenizer(writer: Any, folder: Path) -> None:
    """Add vocabulary, merges and chat template."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {entry["id"]: entry["content"] for entry in content["added_tokens"]}
    ids = {token_id: text for text, token_id in content["model"]["vocab"].items()} | added
    count = json.loads((folder / "config.json").read_text())["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([ids.get(token_id, f"[unused{token_id}]") for token_id in range(count)])
    kinds = gguf.TokenType
    writer.add_token_types(
        [kinds.CONTROL if i in added else kinds.NORMAL if i in ids else kinds.UNUSED for i in range(count)]
    )
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    template = folder / "chat_template.jinja"
    written = template.read_text(encoding="utf-8") if template.exists() else None
    writer.add_chat_template(written or json.loads((folder / "tokenizer_config.json").read_text())["chat_template"])


def main() -> None:
    """Write the file beside the checkpoint."""
    folder = Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(folder / "model.gguf", "qwen3")
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    ends = config["eos_token_id"]
    writer.add_eos_token_id(ends[0] if isinstance(ends, list) else ends)
    write_tokenizer(writer, folder)
    for file in sorted(folder.glob("*.safetensors")):
        write_weights(writer, file)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
