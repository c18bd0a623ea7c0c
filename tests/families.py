"""Checkpoints of the supported model families: random weights, with each family's added tokens and chat template.

All have the real Qwen vocabulary plus the added tokens of the family's own tokenizer for roles and calls, special or
not as in the original. The templates are those of `tests/templates`.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from tests.checkpoints import Kind, cache_folder, make_once, tiny_checkpoint

TEMPLATES = Path(__file__).parent / "templates"
PLAIN_CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
KIMI_TOKENS = (
    "<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
)  # fmt: skip
GLM_ROLES = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
GLM_STOPS = ("<|endoftext|>", "<|user|>", "<|observation|>")
GLM_TAGS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink")


@dataclass(frozen=True, slots=True)
class Family:
    """Weights, template (None: one without tools), the dialect that must be detected, and added tokens."""

    weights: Kind
    template: str | None
    dialect: str
    special: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # added, but not special
    stops: tuple[str, ...] = ("<|im_end|>", "<|endoftext|>")


FAMILIES: dict[str, Family] = {
    "qwen3": Family("qwen3", "qwen3.jinja", "hermes"),
    "qwen3.5": Family("qwen3_5", "qwen35.jinja", "qwen3_coder"),
    "glm-4.5": Family("qwen3", "glm45.jinja", "glm4", GLM_ROLES, GLM_TAGS, GLM_STOPS),
    "kimi-k2": Family("qwen3", "kimi_k2.jinja", "kimi_k2", KIMI_TOKENS),
    "qwen1.5": Family("qwen2", None, "react"),
}

# For tests of what does not hang on the format of calls: one of JSON and one with ids; all in the long tests.
SOME_FAMILIES = [
    pytest.param(name, marks=() if name in ("qwen3", "kimi-k2") else pytest.mark.long) for name in FAMILIES
]


def family_checkpoint(name: str) -> Path:
    """A complete checkpoint folder of this family; written once, in a few seconds."""
    return make_once(cache_folder() / f"family-{name}", lambda target: _write(FAMILIES[name], target))


def _write(family: Family, folder: Path) -> None:
    source = tiny_checkpoint(family.weights)
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            os.link(file, folder / file.name)
        else:
            shutil.copy(file, folder / file.name)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    config = _read(folder / "tokenizer_config.json")
    for text, special in [*((text, True) for text in family.special), *((text, False) for text in family.tags)]:
        token = AddedToken(text, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
        entry = {"content": text, "special": special}
        entry |= dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
        config["added_tokens_decoder"][str(tokenizer.token_to_id(text))] = entry
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    generation = _read(folder / "generation_config.json")
    generation["eos_token_id"] = [tokenizer.token_to_id(text) for text in family.stops]
    (folder / "generation_config.json").write_text(json.dumps(generation))
    template = PLAIN_CHATML if family.template is None else (TEMPLATES / family.template).read_text()
    (folder / "chat_template.jinja").write_text(template)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
