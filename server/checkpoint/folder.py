"""The files of a checkpoint's folder, read or refused with one line that names the file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from server.errors import CannotStart

ADDED_TOKEN_KEYS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def check_folder(folder: Path) -> None:
    """Raises CannotStart unless the folder can hold a checkpoint that we read."""
    if not folder.exists():
        raise CannotStart(f"{folder} does not exist")
    if not folder.is_dir():
        raise CannotStart(f"{folder} is a file; give the folder that holds config.json and the weights")
    if not (folder / "config.json").is_file():
        raise CannotStart(f"{folder} holds no config.json, so it is no checkpoint")
    if not (folder / "tokenizer.json").is_file():
        raise CannotStart(
            f"{folder} holds no tokenizer.json; save the tokenizer once with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


def read_text(path: Path) -> str:
    """A file's text; raises CannotStart."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"cannot read {path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; raises CannotStart."""
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise CannotStart(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CannotStart(f"{path} holds no JSON object")
    return value


def read_optional(path: Path) -> dict[str, Any]:
    """The same, or nothing where there is no such file."""
    return read_json(path) if path.is_file() else {}


def open_tokenizer(path: Path, text: str) -> Tokenizer:
    """The tokenizer that a file's text describes; raises CannotStart."""
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the only type that tokenizers raises
        raise CannotStart(f"{path} is no tokenizer: {error}") from error


def add_late_tokens(tokenizer: Tokenizer, tokenizer_config: Mapping[str, Any]) -> None:
    """Tokens that tokenizer_config.json alone names; transformers adds them in the order of their ids."""
    listed = tokenizer_config.get("added_tokens_decoder")
    entries = listed.items() if isinstance(listed, dict) else ()
    for _, entry in sorted(entries, key=lambda pair: int(pair[0])):
        if isinstance(entry, dict) and tokenizer.token_to_id(entry["content"]) is None:
            token = AddedToken(**{key: item for key, item in entry.items() if key in ADDED_TOKEN_KEYS})
            if token.special:
                tokenizer.add_special_tokens([token])
            else:
                tokenizer.add_tokens([token])


def stored_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[str, str | None]:
    """Where the checkpoint keeps its chat template, and the template; None if it has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return str(path), read_text(path)
    stored = tokenizer_config.get("chat_template")
    origin = str(folder / "tokenizer_config.json")
    if isinstance(stored, list):  # named ones; transformers takes tool_use where there are tools
        named = {entry["name"]: entry["template"] for entry in stored if isinstance(entry, dict)}
        stored = named.get("tool_use", named.get("default"))
    if isinstance(stored, str):
        return origin, stored
    path = folder / "chat_template.json"  # written by multimodal processors
    if path.is_file() and isinstance(held := read_json(path).get("chat_template"), str):
        return str(path), held
    return origin, None


def special_strings(tokenizer_config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The variables that transformers gives every template: bos_token, eos_token and so on."""
    known = {**read_optional(folder / "special_tokens_map.json"), **tokenizer_config}
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    found = {name: known.get(name) for name in names}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
