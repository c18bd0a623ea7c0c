"""Tokenizer of a GGUF file, as the tokenizer.json and tokenizer_config.json that it was made from.

A file keeps the vocabulary, the merges and the kind of each token, and names the way in which text is split before it
is merged; the rules behind a name are those of the tokenizer.json that the converter of llama.cpp recognizes by it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import CannotStart
from server.gguf.header import GgufHeader

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # kinds of tokens
NAMED_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
TEMPLATE = "tokenizer.chat_template"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line breaks, white space before a word, white space
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{REST}"
QWEN35 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{REST}"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{REST}"


@dataclass(frozen=True, slots=True)
class Splitting:
    """What happens to text before it is merged, by the name that `tokenizer.ggml.pre` gives it.

    `pattern` None is GPT-2's own. With `whole_words` a piece that is in the vocabulary is one token, whatever the
    merges say.
    """

    pattern: str | None
    composes: bool = False  # text in Unicode's form NFC
    single_digits: bool = False
    whole_words: bool = False


SPLITTINGS: Mapping[str, Splitting] = {
    "qwen2": Splitting(QWEN2, composes=True),
    "qwen35": Splitting(QWEN35, composes=True),
    "smollm": Splitting(None, single_digits=True),
    "gpt-2": Splitting(None),
    "llama-bpe": Splitting(LLAMA3, whole_words=True),
}


def tokenizer_json(header: GgufHeader) -> str:
    """The text of tokenizer.json; `header` includes the vocabulary.

    Raises CannotStart for another kind of tokenizer, or splitting of text, and for lists that do not fit together.
    """
    model = header.value("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise CannotStart(f"{header.path} has a tokenizer of the kind {model[:40]!a}; byte-level BPE (gpt2) is served")
    name = header.value("tokenizer.ggml.pre", str, "none")
    if name not in SPLITTINGS:
        served = ", ".join(SPLITTINGS)
        raise CannotStart(f"{header.path} splits text as {name[:40]!a} (tokenizer.ggml.pre); served are {served}")
    tokens, kinds = _tokens(header), _kinds(header)
    if len(tokens) != len(kinds):
        raise CannotStart(f"{header.path} has {len(tokens)} tokens, and the kinds of {len(kinds)}")
    splitting = SPLITTINGS[name]
    added = [(number, kind) for number, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added_token(number, tokens[number], kind == CONTROL) for number, kind in added],
            "normalizer": {"type": "NFC"} if splitting.composes else None,
            "pre_tokenizer": _pre_tokenizer(splitting),
            "post_processor": None,
            "decoder": _byte_level(use_regex=True),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": splitting.whole_words,
                "vocab": _vocabulary(tokens, kinds),
                "merges": _merges(header),
            },
        },
        ensure_ascii=False,
    )


def tokenizer_config(header: GgufHeader) -> dict[str, Any]:
    """The fields of tokenizer_config.json: the named tokens and the chat template. Raises CannotStart."""
    tokens = _tokens(header)
    config: dict[str, Any] = {}
    for name, key in NAMED_TOKENS.items():
        number = header.value(f"tokenizer.ggml.{key}_token_id", int, -1)
        if 0 <= number < len(tokens):
            config[name] = tokens[number]
    for key in (f"{TEMPLATE}.tool_use", TEMPLATE):  # as transformers chooses where there are tools
        if key in header.metadata:
            return config | {"chat_template": header.value(key, str)}
    return config


def _tokens(header: GgufHeader) -> list[str]:
    tokens: list[str] = header.value("tokenizer.ggml.tokens", list)
    if not all(isinstance(token, str) for token in tokens):
        raise CannotStart(f"{header.path}: tokenizer.ggml.tokens must be strings")
    return tokens


def _kinds(header: GgufHeader) -> list[int]:
    kinds: list[int] = header.value("tokenizer.ggml.token_type", list)
    return kinds


def _vocabulary(tokens: Sequence[str], kinds: Sequence[int]) -> dict[str, int]:
    """The tokens that merges make, by their ids; without the padding of the model's vocabulary.

    A tokenizer gives added tokens the ids behind these, in order, unless the vocabulary has them: so it has, where
    others than the last are added.
    """
    added = {number for number, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)}
    used = {number for number, kind in enumerate(kinds) if kind != UNUSED}
    merged = len(used - added)
    follow = added == set(range(merged, merged + len(added)))
    listed = used - added if follow else used
    return {token: number for number, token in enumerate(tokens) if number in listed}


def _merges(header: GgufHeader) -> list[tuple[str, ...]]:
    merges = [tuple(str(merge).split(" ")) for merge in header.value("tokenizer.ggml.merges", list)]
    if any(len(merge) != 2 for merge in merges):
        raise CannotStart(f"{header.path}: each of tokenizer.ggml.merges must be two tokens with a space between")
    return merges


def _added_token(number: int, text: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": special}


def _pre_tokenizer(splitting: Splitting) -> dict[str, Any]:
    if splitting.pattern is None:
        steps = [_byte_level(use_regex=True)]
    else:
        split = {"type": "Split", "pattern": {"Regex": splitting.pattern}, "behavior": "Isolated", "invert": False}
        steps = [split, _byte_level(use_regex=False)]
    if splitting.single_digits:
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    return {"type": "Sequence", "pretokenizers": steps}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}
