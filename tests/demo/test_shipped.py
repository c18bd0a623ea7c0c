"""Files of the built-in model: complete, small, loadable, and equal to the network that demo/ trains."""

import json

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.export import SHIPPED
from demo.model import DemoModel, Shape, config_json
from demo.tokenizer import CONTROL_TOKENS, MARKER_TOKENS

MAX_BYTES = 16_000_000


def test_files_are_complete_and_small() -> None:
    names = {path.name for path in SHIPPED.iterdir()}
    assert names >= {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "model.safetensors",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= MAX_BYTES


def test_config_is_that_of_the_training_code() -> None:
    assert json.loads((SHIPPED / "config.json").read_text(encoding="utf-8")) == config_json(Shape(), 2, 0)


def test_control_and_marker_tokens_have_their_fixed_ids() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    assert tokenizer.convert_tokens_to_ids([*CONTROL_TOKENS, *MARKER_TOKENS]) == list(range(9))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    text = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    ids = tokenizer(text + "<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_any_text_round_trips_through_the_tokenizer() -> None:
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    for text in ("Zürich, 北京 🙂\t\n  x", 'a "b" \\ {"c": [1, 2.5]}', "getHTTPResponse2024-01-02", "naïve\u0301"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_single_tokens_and_words_have_the_same_tokens_after_a_space() -> None:
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]
    for word in ("plinkovar", "Zemquist", "Oslo"):
        assert tokenizer.encode(f" {word}").tokens == ["Ġ", *tokenizer.encode(word).tokens]


def test_transformers_computes_the_same_logits() -> None:
    weights = {name: tensor.float() for name, tensor in load_file(SHIPPED / "model.safetensors").items()}
    ours = DemoModel(Shape())
    ours.load_state_dict(weights)
    theirs = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    ids = torch.randint(0, 2048, (2, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits.flatten(0, 1)
        found = ours(ids, torch.arange(300))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
