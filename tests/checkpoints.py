"""Checkpoints made at test time: the real Qwen vocabulary, random weights, a few layers.

Each folder is complete as one from the hub is: config.json, generation_config.json, tokenizer.json,
tokenizer_config.json, chat_template.jinja and model.safetensors.
"""

import base64
import functools
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

Kind = Literal["qwen2", "qwen3", "qwen3_moe", "llama", "qwen3_next", "qwen3_5", "qwen3_5_moe"]
KINDS: tuple[Kind, ...] = get_args(Kind)
VOCAB_SIZE = 151_936  # 151,643 ranks, 26 added tokens, padding: as in Qwen2.5 and Qwen3
END_OF_TEXT, IM_START, IM_END = 151_643, 151_644, 151_645
TOOL_CALL, TOOL_CALL_END = 151_657, 151_658
THINK, THINK_END = 151_667, 151_668
MAX_POSITIONS = 4096
LAYOUT = 2  # raise it when what is written below changes: the cache folder is named after it

# In the order of their ids; True is `special`, which detokenisers drop. (Qwen3's tokenizer_config.json)
ADDED_TOKENS: tuple[tuple[str, bool], ...] = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True),
    ("<|box_start|>", True),
    ("<|box_end|>", True),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|vision_pad|>", True),
    ("<|image_pad|>", True),
    ("<|video_pad|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
)
# How Qwen2 and Qwen3 cut text before merging: contractions, words, single digits, punctuation, white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cache_folder() -> Path:
    """The folder that keeps checkpoints between test runs."""
    return Path(tempfile.gettempdir()) / f"toolwire-checkpoints-{LAYOUT}"


def qwen_tokenizer(folder: Path | None = None) -> Path:
    """A folder with tokenizer.json, tokenizer_config.json and chat_template.jinja; made once, in 5 s."""
    return make_once(folder or cache_folder() / "tokenizer", _write_tokenizer)


@functools.cache
def qwen_vocabulary() -> Tokenizer:
    """The tokenizer of that folder, read once a run: it is shared, and not to be changed."""
    return Tokenizer.from_file(str(qwen_tokenizer() / "tokenizer.json"))


def tiny_checkpoint(kind: Kind, folder: Path | None = None) -> Path:
    """A complete checkpoint of this architecture with random float32 weights; made once, in a few seconds."""
    return make_once(folder or cache_folder() / kind, lambda target: _write_checkpoint(kind, target))


def make_once(folder: Path, write: Any) -> Path:
    """Written beside and renamed, so that a folder that exists is complete, with several writers too."""
    if (folder / "tokenizer.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    write(target)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    try:
        target.rename(folder)
    except OSError:
        if not (folder / "tokenizer.json").exists():
            raise
        shutil.rmtree(target)
    return folder


def _write_tokenizer(folder: Path) -> None:
    ranks = _read_ranks()
    symbols = _byte_symbols()
    vocabulary = {_spell(token, symbols): rank for token, rank in ranks.items()}
    merges = [(_spell(left, symbols), _spell(right, symbols)) for left, right in _merges(ranks)]
    tokenizer = Tokenizer(BPE(vocabulary, merges, fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for text, special in ADDED_TOKENS:
        token = AddedToken(text, normalized=False, special=special)
        if special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])
    assert tokenizer.token_to_id("</think>") == THINK_END
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    template = Path(__file__).parent / "templates" / "hermes.jinja"
    shutil.copy(template, folder / "chat_template.jinja")


def _read_ranks() -> dict[bytes, int]:
    spec = importlib.util.find_spec("qwen_agent")
    assert spec and spec.submodule_search_locations, "tests need: pip install --no-deps qwen-agent"
    path = Path(spec.submodule_search_locations[0]) / "utils" / "qwen.tiktoken"
    pairs = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """For each token of several bytes, the two parts it has just before its own rank is merged."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda pair: pair[1]):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
            best = min(pairs)
            assert best < rank, token
            at = pairs.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def _byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _spell(token: bytes, symbols: dict[int, str]) -> str:
    return "".join(symbols[byte] for byte in token)


def _tokenizer_config() -> dict[str, Any]:
    added = {
        str(END_OF_TEXT + i): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": special,
        }
        for i, (text, special) in enumerate(ADDED_TOKENS)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [text for text, special in ADDED_TOKENS[1:] if special],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131_072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _write_checkpoint(kind: Kind, folder: Path) -> None:
    # Here, not at the top: tests of the API process need the tokenizer alone, and these two take six seconds.
    import torch
    import transformers

    _copy_tokenizer(folder)
    config = _config(kind, transformers)
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _architecture(kind, transformers)(config).to(torch.float32)
    for name, weight in sorted(model.state_dict().items()):
        _fill(name, weight, generator)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        eos_token_id=[IM_END, END_OF_TEXT],
        pad_token_id=END_OF_TEXT,
    )
    model.save_pretrained(folder)


def _copy_tokenizer(folder: Path) -> None:
    source = qwen_tokenizer()
    for name in os.listdir(source):  # noqa: PTH208
        shutil.copy(source / name, folder / name)


def _fill(name: str, weight: Any, generator: Any) -> None:
    """Random numbers large enough for every part to show in the output: a forgotten bias or key must be seen."""
    if not weight.is_floating_point():
        return
    if name.endswith(("A_log", "dt_bias")):
        weight.uniform_(0.0, 1.0, generator=generator)
    elif "norm" in name:
        # Zero-centred norms (Qwen3-Next, Qwen3.5) have weights around 0, the others around 1; both stay so.
        weight.add_(0.2 * weight.new_empty(weight.shape).normal_(generator=generator))
    elif weight.dim() == 1:
        weight.normal_(0.0, 0.2, generator=generator)
    elif "embed" in name:
        # Small beside what the layers add, or a model with tied embeddings would only repeat its last token.
        weight.normal_(0.0, 0.2, generator=generator)
    elif "lm_head" in name:
        weight.normal_(0.0, 0.5, generator=generator)
    else:
        fan_in = weight.shape[-1]
        weight.normal_(0.0, 1.3 / fan_in**0.5, generator=generator)


def _config(kind: Kind, transformers: Any) -> Any:
    plain = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": IM_END,
        "pad_token_id": END_OF_TEXT,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    hybrid = {
        "num_hidden_layers": 4,
        "head_dim": 32,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
    }
    shared = {"shared_expert_intermediate_size": 64}
    match kind:
        case "qwen2":
            return transformers.Qwen2Config(**plain, tie_word_embeddings=False)
        case "qwen3":
            return transformers.Qwen3Config(**plain, head_dim=32, tie_word_embeddings=True)
        case "qwen3_moe":
            return transformers.Qwen3MoeConfig(**plain, **experts, head_dim=32, norm_topk_prob=True)
        case "llama":
            return transformers.LlamaConfig(**plain, tie_word_embeddings=True)
        case "qwen3_next":
            return transformers.Qwen3NextConfig(**(plain | hybrid | experts | shared))
        case "qwen3_5":
            return transformers.Qwen3_5TextConfig(**(plain | hybrid), tie_word_embeddings=True)
        case "qwen3_5_moe":
            return transformers.Qwen3_5MoeTextConfig(**(plain | hybrid | experts | shared))


def _architecture(kind: Kind, transformers: Any) -> Any:
    return {
        "qwen2": transformers.Qwen2ForCausalLM,
        "qwen3": transformers.Qwen3ForCausalLM,
        "qwen3_moe": transformers.Qwen3MoeForCausalLM,
        "llama": transformers.LlamaForCausalLM,
        "qwen3_next": transformers.Qwen3NextForCausalLM,
        "qwen3_5": transformers.Qwen3_5ForCausalLM,
        "qwen3_5_moe": transformers.Qwen3_5MoeForCausalLM,
    }[kind]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
