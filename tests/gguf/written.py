"""GGUF files of checkpoints, by the `gguf` package's writer, for tests and benchmarks, and their numbers."""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.checkpoints import Kind, cache_folder, make_once, tiny_checkpoint

Numbers = NDArray[np.float32]
LAYOUT = 1  # raise it when what is written below changes
Type = gguf.GGMLQuantizationType
ALL_TYPES = (
    Type.Q8_0, Type.Q4_0, Type.F16, Type.Q4_1, Type.BF16, Type.Q5_0, Type.F32, Type.Q5_1,
)  # fmt: skip
ARCHITECTURES: dict[str, str] = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta", "linear_attn.conv1d": "ssm_conv1d", "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}  # fmt: skip
WHOLE_NAMES = {"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"}
SMALLEST = {
    "model_type": "qwen3", "max_position_embeddings": 64, "hidden_size": 8, "num_hidden_layers": 1,
    "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rms_norm_eps": 1e-6, "vocab_size": 5,
}  # fmt: skip
# Bytes of the half-precision numbers in a block of these types: the scale, and what multiplies minimums. The package
# cannot quantize to them.
K_TYPES: dict[str, tuple[int, ...]] = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
HALVES: dict[str, tuple[int, ...]] = K_TYPES | {"Q4_1": (0, 2), "Q5_1": (0, 2)}
EXPERT = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}


def random_blocks(block_type: Type, rows: int, columns: int, scale: float = 1.0) -> NDArray[np.uint8]:
    """Rows of blocks of random bytes, with scales of about this size: every bit of a code has its place."""
    elements, num_bytes = gguf.GGML_QUANT_SIZES[block_type]
    chance = np.random.default_rng(rows * columns)
    raw = chance.integers(0, 256, (rows, columns // elements, num_bytes), dtype=np.uint8)
    for at in HALVES.get(block_type.name, (0,)):
        halves = chance.normal(size=(*raw.shape[:2], 1)) * scale
        raw[..., at : at + 2] = halves.astype(np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


def balanced_blocks(block_type: Type, rows: int, columns: int) -> NDArray[np.uint8]:
    """Rows of random blocks of a K type whose numbers are as large as a trained matrix's, and positive and negative."""
    elements, num_bytes = gguf.GGML_QUANT_SIZES[block_type]
    raw = random_blocks(block_type, rows, columns).reshape(rows, columns // elements, num_bytes)
    greatest = {"Q4_K": 15, "Q5_K": 31}.get(block_type.name, 0)  # code; scales and minimums are random alike
    scale = columns**-0.5 / (17 * greatest if greatest else 1350)
    for at, own in zip(K_TYPES[block_type.name], (scale, scale * greatest / 2), strict=False):
        raw[..., at : at + 2] = np.full((*raw.shape[:2], 1), own, np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


def gguf_checkpoint(kind: Kind) -> Path:
    """A folder with model.gguf, all types of blocks in it, and a checkpoint of the same numbers; written once."""
    return make_once(cache_folder() / f"gguf-{LAYOUT}-{kind}", lambda target: _write_both(kind, target))


def _write_both(kind: Kind, folder: Path) -> None:
    source = tiny_checkpoint(kind)
    numbers = write_gguf(source, folder / "model.gguf", ALL_TYPES)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder / file.name)
    save_file(numbers, folder / "model.safetensors", metadata={"format": "pt"})


def write_gguf(
    source: Path,
    target: Path,
    types: Sequence[Type] | Callable[[str], Type],
    *,
    tokenizer: bool = True,
    experts_as: Type = Type.BF16,
    **writer_options: Any,
) -> dict[str, Numbers]:
    """Write a checkpoint's weights as these types, one after the other or by name; returns the numbers written.

    Those of K types are random, not the checkpoint's.
    """
    return dict(_written(source, target, types, tokenizer, experts_as, **writer_options))


def convert(source: Path, target: Path) -> None:
    """Write a checkpoint's matrices in bfloat16, one at a time, and all else in float32, as llama.cpp requires."""
    written = _written(source, target, lambda name: Type.BF16, True, Type.BF16, use_temp_file=True)
    deque(written, maxlen=0)  # keeps none of the numbers


def _written(
    source: Path,
    target: Path,
    types: Sequence[Type] | Callable[[str], Type],
    tokenizer: bool,
    experts_as: Type,
    **writer_options: Any,
) -> Iterator[tuple[str, Numbers]]:
    """Each weight's numbers as it is handed to the writer; the file is there when all are."""
    config = json.loads((source / "config.json").read_text())
    kind = config["model_type"].removesuffix("_text")
    writer = gguf.GGUFWriter(target, ARCHITECTURES[kind], **writer_options)
    write_sizes(writer, kind, config)
    if tokenizer:
        write_tokenizer(writer, source, config["vocab_size"])
    experts: dict[str, list[NDArray[Any]]] = {}
    for number, (name, weight) in enumerate(_weights_of(source)):
        if ".experts." in name:  # of a layer together
            experts.setdefault(_expert_name(name), []).append(quantize(weight, experts_as))
            yield name, dequantize(experts[_expert_name(name)][-1], experts_as)
            continue
        change = Change(kind, name, config)
        stored = change.to_file(weight)
        is_small = stored.ndim == 1 or ".mlp.gate." in name or "conv1d" in name or stored.shape[-1] % 32
        chosen = types(name) if callable(types) else types[number % len(types)]
        block_type = Type.F32 if is_small else chosen
        is_k = block_type.name in K_TYPES
        blocks = balanced_blocks(block_type, *stored.shape) if is_k else quantize(stored, block_type)
        writer.add_tensor(gguf_name(name, kind), blocks, raw_dtype=block_type)
        yield name, change.from_file(dequantize(blocks, block_type)).reshape(weight.shape)
    for name, parts in experts.items():
        writer.add_tensor(name, np.stack(parts), raw_dtype=experts_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _weights_of(source: Path) -> Iterator[tuple[str, Numbers]]:
    """Names and numbers of a checkpoint's weights, in the order of the names."""
    with ExitStack() as files:
        found: dict[str, Any] = {}
        for path in source.glob("*.safetensors"):
            file = files.enter_context(safe_open(path, framework="pt"))
            found |= dict.fromkeys(file.keys(), file)
        for name in sorted(found):
            yield name, found[name].get_tensor(name).float().numpy()


def write_smallest(path: Path, architecture: str = "qwen3", **sampling: float) -> Path:
    """Write a file that can be opened, of five tokens and one tensor: for what does not hang on a model."""
    writer = gguf.GGUFWriter(path, architecture)
    write_sizes(writer, "qwen3", SMALLEST)
    for name, value in sampling.items():
        writer.add_float32(f"general.sampling.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b", "ab", "<|im_start|>", "<|im_end|>"])
    writer.add_token_types([*[gguf.TokenType.NORMAL] * 3, *[gguf.TokenType.CONTROL] * 2])
    writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", np.zeros((5, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Change:
    """What the converter of llama.cpp does to a weight, and the way back."""

    def __init__(self, kind: str, name: str, config: dict[str, Any]) -> None:
        self._inner = name.split(".", 3)[-1] if name.startswith("model.layers.") else name
        self._is_shifted = kind.startswith("qwen3_5") and "norm" in name and "linear_attn" not in name
        self._sides: tuple[int, int] | None = None  # how many there are of each part of an axis, before the swap
        self._axis = self._behind = 0
        stem = self._inner.rpartition(".")[0]
        if kind == "llama" and stem in ("self_attn.q_proj", "self_attn.k_proj"):
            self._heads = config["num_attention_heads" if "q_proj" in stem else "num_key_value_heads"]
            self._sides = (2, -1)
        elif "linear_attn" in self._inner and "linear_attn.norm" not in self._inner:
            keys, self._heads = config["linear_num_key_heads"], 1
            self._sides = (keys, config["linear_num_value_heads"] // keys)
            self._axis = 1 if "out_proj" in stem else 0
            self._behind = 2 * keys * config["linear_key_head_dim"] if "qkv" in stem or "conv1d" in stem else 0

    def to_file(self, weight: Numbers) -> Numbers:
        """A weight as it is stored."""
        stored = weight.squeeze() if "conv1d" in self._inner or "shared_expert_gate" in self._inner else weight
        stored = stored + np.float32(1) if self._is_shifted else stored
        stored = -np.exp(stored) if "A_log" in self._inner else stored
        return self._swap(stored, self._sides)

    def from_file(self, stored: Numbers) -> Numbers:
        """The weight that a reader finds."""
        weight = self._swap(stored, self._sides[::-1] if self._sides else None)
        weight = weight - np.float32(1) if self._is_shifted else weight
        return torch.log(-torch.from_numpy(weight)).numpy() if "A_log" in self._inner else weight

    def _swap(self, weight: Numbers, sides: tuple[int, int] | None) -> Numbers:
        if sides is None:
            return weight
        moved = np.moveaxis(weight, self._axis, 0)
        behind = moved[self._behind :]
        last = 1 if -1 in sides else -1
        parts = behind.reshape(self._heads, *sides, last, *moved.shape[1:])
        swapped = parts.swapaxes(1, 2).reshape(behind.shape)
        return np.ascontiguousarray(np.moveaxis(np.concatenate((moved[: self._behind], swapped)), 0, self._axis))


def write_sizes(writer: Any, kind: str, config: dict[str, Any]) -> None:
    """Add the configuration."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "head_dim" in config and kind != "qwen2":
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if kind == "llama":
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    if kind.endswith("_moe"):
        writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if kind.startswith("qwen3_5"):
        _write_hybrid(writer, config)
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _write_hybrid(writer: Any, config: dict[str, Any]) -> None:
    head_dim, rope = config["head_dim"], config["rope_parameters"]
    writer.add_full_attention_interval(4)
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_num_value_heads"] * config["linear_value_head_dim"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 0.25)))
    writer.add_rope_dimension_sections([*rope.get("mrope_section", [11, 11, 10]), 0])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def write_tokenizer(writer: Any, source: Path, vocab_size: int, pre: str = "qwen2") -> None:
    """Add vocabulary, merges, named tokens and chat template, as the converter of llama.cpp writes them."""
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    fields = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    texts = {number: text for text, number in content["model"]["vocab"].items()}
    texts |= {number: entry["content"] for number, entry in added.items()}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(vocab_size)])
    writer.add_token_types(
        [
            (kinds.CONTROL if added[number]["special"] else kinds.USER_DEFINED)
            if number in added
            else kinds.NORMAL
            if number in texts
            else kinds.UNUSED
            for number in range(vocab_size)
        ]
    )
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ids = {text: number for number, text in texts.items()}
    writer.add_eos_token_id(ids[fields["eos_token"]])
    writer.add_pad_token_id(ids[fields["pad_token"]])
    writer.add_add_bos_token(False)
    writer.add_chat_template((source / "chat_template.jinja").read_text(encoding="utf-8"))


def gguf_name(name: str, kind: str) -> str:
    """The name in a GGUF file: model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight."""
    stem, _, end = name.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{end}"
    layer, _, inner = name.removeprefix("model.layers.").partition(".")
    if inner in WHOLE_NAMES:
        return f"blk.{layer}.{WHOLE_NAMES[inner]}"
    stem = inner.removesuffix(f".{end}")
    is_hybrid = kind.startswith("qwen3_5") and stem == "post_attention_layernorm"
    return f"blk.{layer}.{'post_attention_norm' if is_hybrid else NAMES[stem]}.{end}"


def _expert_name(name: str) -> str:
    layer, _, inner = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{EXPERT[inner.split('.')[-2]]}.weight"
