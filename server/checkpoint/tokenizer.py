"""Tokenizer of a checkpoint with its control tokens, and the same tokenizer without them for untrusted text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from server.checkpoint.folder import read_json_if_present
from server.config_json import FieldKind, check_fields
from server.errors import CannotStart

ADDED_TOKEN_KEYS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
LISTED = "added_tokens_decoder"
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def _is_listed(key: str, entry: Any) -> bool:
    flags = {"single_word", "lstrip", "rstrip", "normalized", "special"}
    return (
        key.isdecimal()
        and isinstance(entry, dict)
        and isinstance(entry.get("content"), str)
        and all(isinstance(entry[flag], bool) for flag in flags & entry.keys())
    )


def _is_template(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("name", "template"))


TOKENIZER_FIELDS: Mapping[str, FieldKind] = {
    LISTED: FieldKind(
        "an object of token ids, each with an object of `content` and flags",
        lambda value: isinstance(value, dict) and all(_is_listed(*item) for item in value.items()),
    ),
    "chat_template": FieldKind(
        "a string, or a list of objects with `name` and `template`",
        lambda value: isinstance(value, str) or (isinstance(value, list) and all(map(_is_template, value))),
    ),
}


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A token that text cannot produce by ordinary merges. The flags are those of the tokenizers library."""

    text: str
    id: int
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def load_tokenizer(path: Path, tokenizer_json: str, tokenizer_config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer with the tokens that only tokenizer_config.json lists, in the order of their ids, as transformers
    adds them. `path` is the file that `tokenizer_json` was read from. Raises CannotStart.
    """
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the only type that tokenizers raises
        raise CannotStart(f"{path} is no tokenizer: {error}") from error
    config_path = path.with_name("tokenizer_config.json")
    check_fields(tokenizer_config, TOKENIZER_FIELDS, config_path)
    for _, entry in sorted((tokenizer_config.get(LISTED) or {}).items(), key=lambda pair: int(pair[0])):
        if tokenizer.token_to_id(entry["content"]) is None:
            token = AddedToken(**{key: item for key, item in entry.items() if key in ADDED_TOKEN_KEYS})
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def control_tokens(tokenizer: Tokenizer) -> tuple[ControlToken, ...]:
    """The tokenizer's added tokens, special or not, by id."""
    added = tokenizer.get_added_tokens_decoder()
    return tuple(
        ControlToken(token.content, token_id, token.special, token.lstrip, token.rstrip, token.single_word)
        for token_id, token in sorted(added.items())
        if token.content
    )


def token_variables(tokenizer_config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The variables that transformers gives every template: bos_token, eos_token and so on."""
    values = {**read_json_if_present(folder / "special_tokens_map.json"), **tokenizer_config}
    texts = {name: token_text(values.get(name)) for name in NAMED_TOKENS}
    return {name: text for name, text in texts.items() if text is not None}


def token_text(value: object) -> str | None:
    """The text of a token, which configuration files write as a string or as an object; None if it is neither."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def without_added_tokens(tokenizer: Tokenizer, tokenizer_json: str, control: Sequence[ControlToken]) -> Tokenizer:
    """The tokenizer for text alone. Raises CannotStart if it still produces a control token from text."""
    plain = _without_post_processing(tokenizer)
    if any(plain.token_to_id(token.text) is not None for token in control):
        plain = _without_vocabulary_entries(tokenizer_json, control)
    ids = {token.id for token in control}
    for token in control:
        if not token.text.isspace() and ids.intersection(plain.encode(token.text, add_special_tokens=False).ids):
            raise CannotStart(f"this tokenizer makes the control token {token.text} out of ordinary text")
    return plain


def _without_post_processing(tokenizer: Tokenizer) -> Tokenizer:
    plain = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        plain.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        plain.pre_tokenizer = tokenizer.pre_tokenizer
    return plain


def _without_vocabulary_entries(tokenizer_json: str, control: Sequence[ControlToken]) -> Tokenizer:
    """For vocabularies that list their control tokens: with `ignore_merges` text could produce such an entry."""
    layout: dict[str, Any] = json.loads(tokenizer_json)
    for token in control:
        layout["model"]["vocab"].pop(token.text, None)
    return _without_post_processing(
        Tokenizer.from_str(json.dumps({**layout, "added_tokens": [], "post_processor": None}))
    )
