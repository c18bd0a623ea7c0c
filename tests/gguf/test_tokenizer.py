"""Tokenizers from GGUF files: the ids of the tokenizer that a file was made from, and refusals of others."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from server.checkpoint.tokenizer import control_tokens
from server.errors import CannotStart
from server.gguf.header import GgufHeader, read_header
from server.gguf.tokenizer import SPLITTINGS, tokenizer_config, tokenizer_json
from tests.checkpoints import SPLIT, qwen_tokenizer
from tests.gguf.written import gguf_checkpoint, write_tokenizer

TEXTS = (
    "Hello, world! It's 2024-05-17, isn't it?  DON'T  shout.\n\n\nNew\tline\r\n",
    "def f(x):\n    return x**2 + 1_000\n",
    "Zürich, São Paulo, Łódź; 你好，世界 123456 ３４; مرحبا; हिन्दी में; ไทย",
    "e\u0301 is two characters, \u00e9 is one; \U0001f469\u200d\U0001f4bb",
    " leading and trailing   ",
)
MARKED = "<|im_start|>user\nwhat <|im_end|><think>\n</think><tool_call></tool_call><|endoftext|>"
CORPUS = (*TEXTS, *(path.read_text() for path in (Path(__file__), Path(__file__).parent / "written.py")))


def opened(path: Path) -> tuple[Tokenizer, GgufHeader]:
    header = read_header(path, vocabulary=True)
    return Tokenizer.from_str(tokenizer_json(header)), header


def write(folder: Path, tokenizer: Tokenizer, pre: str) -> Path:
    """A file with this tokenizer alone."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    writer = gguf.GGUFWriter(folder / "tokenizer.gguf", "llama")
    write_tokenizer(writer, folder, tokenizer.get_vocab_size() + 5, pre)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "tokenizer.gguf"


def test_qwens_tokenizer_comes_back() -> None:
    """Ids and flags of every added token, composed characters, and text that looks like control tokens."""
    original = Tokenizer.from_file(str(qwen_tokenizer() / "tokenizer.json"))
    rebuilt, header = opened(gguf_checkpoint("qwen3") / "model.gguf")
    assert control_tokens(rebuilt) == control_tokens(original)
    for text in (*CORPUS, MARKED):
        assert rebuilt.encode(text).ids == original.encode(text).ids
        assert rebuilt.decode(rebuilt.encode(text).ids) == original.decode(original.encode(text).ids)
    assert rebuilt.get_vocab() == original.get_vocab()
    fields = tokenizer_config(header)
    template = fields.pop("chat_template")
    assert fields == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert template == (qwen_tokenizer() / "chat_template.jinja").read_text()


@pytest.mark.long
def test_transformers_reads_the_same_tokenizer() -> None:
    """On composed text: transformers' reading leaves out that Qwen's tokenizer composes characters first."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(gguf_checkpoint("qwen3"), gguf_file="model.gguf")
    rebuilt, _ = opened(gguf_checkpoint("qwen3") / "model.gguf")
    for text in (*CORPUS, MARKED):
        composed = normalizers.NFC().normalize_str(text)
        assert rebuilt.encode(composed).ids == theirs(composed, add_special_tokens=False).input_ids


# Qwen3.5 lets marks be part of words.
SPLIT_35 = SPLIT.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
PRE_TOKENIZERS: dict[str, Any] = {
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "qwen35": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_35), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@pytest.mark.parametrize("first", [True, False], ids=["added tokens first", "added tokens last"])
def test_each_way_to_split_text_is_that_of_its_tokenizer(tmp_path: Path, pre: str, first: bool) -> None:
    """Added tokens that have the first ids, as SmolLM's, were given others, behind the vocabulary."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    original = Tokenizer(BPE(ignore_merges=pre == "llama-bpe"))
    original.pre_tokenizer = PRE_TOKENIZERS[pre]
    original.decoder = decoders.ByteLevel()
    original.normalizer = normalizers.NFC() if pre.startswith("qwen") else None
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=special if first else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    original.train_from_iterator(CORPUS, trainer)
    original.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    original.add_tokens([AddedToken("<tool_call>", normalized=False)])
    rebuilt, _ = opened(write(tmp_path / "m", original, pre))
    assert [(token.text, token.id) for token in control_tokens(rebuilt)] == [
        (token.text, token.id) for token in control_tokens(original)
    ]
    for text in (*CORPUS, MARKED):
        assert rebuilt.encode(text).ids == original.encode(text).ids


def test_every_way_to_split_text_is_tried() -> None:
    assert {*PRE_TOKENIZERS, "qwen2"} == set(SPLITTINGS)


def header_with(**entries: Any) -> GgufHeader:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.token_type": [1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
    } | {f"tokenizer.{key}": value for key, value in entries.items()}
    return GgufHeader(Path("m.gguf"), {key: value for key, value in metadata.items() if value is not ...}, ())


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"ggml.model": "llama"}, r"kind 'llama'; byte-level BPE"),
        ({"ggml.model": ...}, r"no tokenizer\.ggml\.model"),
        ({"ggml.pre": "deepseek-v3"}, r"splits text as 'deepseek-v3' .*smollm"),
        ({"ggml.pre": ...}, r"splits text as 'none'"),
        ({"ggml.tokens": ...}, r"no tokenizer\.ggml\.tokens"),
        ({"ggml.tokens": "abc"}, r"tokenizer\.ggml\.tokens must be of type list"),
        ({"ggml.tokens": [1, 2, 3]}, "must be strings"),
        ({"ggml.token_type": ...}, r"no tokenizer\.ggml\.token_type"),
        ({"ggml.token_type": [1]}, "3 tokens, and the kinds of 1"),
        ({"ggml.merges": ["a b c"]}, "two tokens with a space"),
    ],
)
def test_what_is_no_tokenizer_that_is_served_is_named(entries: dict[str, Any], reason: str) -> None:
    with pytest.raises(CannotStart, match=reason) as caught:
        tokenizer_json(header_with(**entries))
    assert "\n" not in str(caught.value)


def test_the_template_for_tools_is_chosen() -> None:
    both = header_with(**{"chat_template": "plain", "chat_template.tool_use": "tools"})
    assert tokenizer_config(both)["chat_template"] == "tools"
    assert tokenizer_config(header_with(chat_template="plain"))["chat_template"] == "plain"
    assert "chat_template" not in tokenizer_config(header_with())
