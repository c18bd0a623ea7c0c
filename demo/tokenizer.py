"""Tokenizer of the demonstration model: byte-level BPE with single digits and whole-token markup.

The vocabulary has three kinds of entries:

    ids 0..8       the ChatML and tool markers, always first, for every vocabulary size
    ids 9..264     the 256 bytes, so that any text can be written
    the rest       JSON and template boilerplate, frequent " word"s, and learnt pieces of words

Learnt merges never cross a space: " Paris" and "Paris" give the same pieces, which lets a small model copy a value from
a sentence into a JSON string. Frequent words (" the", " please") and the boilerplate are matched whole through
`ignore_merges`; with them a tool costs about 40 tokens instead of 120.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
# Not special, as in Qwen3: a tool call must survive `decode(skip_special_tokens=True)`.
MARKER_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
TOOLS_TAIL_1 = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
TOOLS_TAIL_2 = " XML tags:\n"
TOOLS_TAIL_3 = '\n{"name": <function-name>, "arguments": <args-json-object>}\n'

BOILERPLATE = (
    TOOLS_HEAD, TOOLS_TAIL_1, TOOLS_TAIL_2, TOOLS_TAIL_3,
    '{"type": "function", "function": {"name": "',
    '", "description": "',
    '", "parameters": {"type": "object", "properties": {"',
    '", "parameters": {"type": "object", "properties": {}',
    '": {"type": "string"', '": {"type": "integer"', '": {"type": "number"', '": {"type": "boolean"',
    '": {"type": "array", "items": {"type": "string"}', '": {"type": "object", "properties": {"',
    ', "description": "', ', "enum": ["', '"}, "required": ["', '}, "required": ["', '"]}, "required": ["',
    '"}}, "required": ["', '"}, "', '}, "', '"]}, "', '"]}}}', '"]}}', '"}}}', '"}}', '}}}', '}}', '"]}', '"}',
    ', "required": []', ', "additionalProperties": false', ', "strict": true', ', "default": ',
    '{"name": "', '", "arguments": {"', '", "arguments": {', '": "', '": {"', '": ["', '": [', '": ',
    '", "', ', "', '"], "', '], "', '{"', '["', '"]', '": {"type": "', '": {"type": "array", "items": {"type": "',
    '": {"enum": ["', '"], "type": "string"', '"properties": {"', '"required": ["', '"type": "object"',
    ' "', ' (', '."', '?"', '."}, "', '.", "parameters": {"type": "object", "properties": {"',
    '."}, "required": ["', '", "enum": ["', '.", "enum": ["',
    '", "', '\n\n', "'s", "n't", "'ll", "'m", "'re", "'ve", "...",
)  # fmt: skip

WORD = r" ?[A-Z]?[a-z]+| ?[A-Z]+(?![a-z])| ?[A-Z]| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s"
BARE_WORD = r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[A-Z]|\p{L}+|\p{N}|[^\s\p{L}\p{N}]|\s"


def build_tokenizer(texts: Sequence[str], lexicon: Sequence[str], closed: frozenset[str], size: int) -> Tokenizer:
    """Return a tokenizer of exactly `size` ids, equal for equal input.

    texts: rendered dialogues, for the frequent words; lexicon: bare words, repeated by importance, for the pieces;
    closed: words that never become a whole " word" because the model must copy them.
    """
    boilerplate = [*dict.fromkeys(BOILERPLATE)]
    words = frequent_words(texts, closed, limit=(size - 600) // 3)
    pieces = size - len(CONTROL_TOKENS) - len(MARKER_TOKENS) - len(boilerplate) - len(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learnt = learn_pieces(lexicon, alphabet, pieces + 400)
    vocab: dict[str, int] = {}
    for token in (*CONTROL_TOKENS, *MARKER_TOKENS, *alphabet, *map(to_byte_level, (*boilerplate, *words))):
        vocab.setdefault(token, len(vocab))
    merges: list[tuple[str, str]] = []
    for left, right in learnt:
        if left not in vocab or right not in vocab:
            continue
        if left + right not in vocab and len(vocab) == size:
            break
        vocab.setdefault(left + right, len(vocab))
        merges.append((left, right))
    assert len(vocab) == size, f"the lexicon gives {len(vocab)} tokens, {size} were asked for"
    return assemble(vocab, merges, boilerplate)


def frequent_words(texts: Iterable[str], closed: frozenset[str], limit: int) -> list[str]:
    """Return the most frequent " word"s of the texts in order: lower case and not in `closed`, so never a name."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(r" [a-z]+(?![A-Za-z])", text))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [word for word, _ in ranked if word.strip().lower() not in closed][:limit]


def learn_pieces(lexicon: Sequence[str], alphabet: list[str], pieces: int) -> list[tuple[str, str]]:
    """Return the merges learnt on bare words, in order."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = split_then_bytes(BARE_WORD)
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + pieces, initial_alphabet=alphabet, show_progress=False, max_token_length=9
    )
    learner.train_from_iterator(lexicon, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]


def assemble(vocab: dict[str, int], merges: list[tuple[str, str]], boilerplate: list[str]) -> Tokenizer:
    """Return the tokenizer of this vocabulary with its control and marker tokens."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    literals = sorted(boilerplate, key=lambda text: (-len(text), text))
    tokenizer.pre_tokenizer = split_then_bytes("|".join([*map(escape, literals), WORD]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKER_TOKENS])
    return tokenizer


def split_then_bytes(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Return a pre-tokenizer that splits by a pattern, then maps to bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def escape(literal: str) -> str:
    """Escape a literal for an Oniguruma regular expression."""
    return re.sub(r"([\\.^$|?*+()\[\]{}])", r"\\\1", literal).replace("\n", r"\n")


def to_byte_level(text: str) -> str:
    """Return text in the printable alphabet of byte-level vocabularies."""
    ((piece, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return piece


def save_tokenizer(tokenizer: Tokenizer, chat_template: str, folder: Path, max_tokens: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, loadable with AutoTokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": token in CONTROL_TOKENS,
        }
        for token in (*CONTROL_TOKENS, *MARKER_TOKENS)
    }  # fmt: skip
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "errors": "replace",
        "model_max_length": max_tokens,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
