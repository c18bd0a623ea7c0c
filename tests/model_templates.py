"""Checkpoints for prompt tests: the real Qwen vocabulary under templates that behave like those of known models.

The tokenizer knows the control tokens of all of them at once, so that each template is attacked with every one.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from server.chat_request import ChatRequest
from server.checkpoint.capabilities import find_capabilities
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.checkpoint.template import ChatTemplate
from server.dialects.registry import find
from server.messages import Sampling
from server.prompt.builder import PromptBuilder
from server.settings import ApiSettings, Settings
from tests.caches import cached
from tests.checkpoints import cache_folder, make_once, qwen_tokenizer
from tests.typed_messages import typed

FOLDER = Path(__file__).parent / "templates"
ROOT = Path(__file__).parents[1]
BUILT_IN = "built_in"
# name -> (file, dialect)
TEMPLATES = {
    "qwen25": (FOLDER / "qwen25.jinja", "hermes"),
    "qwen3": (FOLDER / "qwen3.jinja", "hermes"),
    "qwen3_thinking": (FOLDER / "qwen3_thinking.jinja", "hermes"),
    "qwen3_coder": (FOLDER / "qwen3_coder.jinja", "qwen3_coder"),
    "qwen35": (FOLDER / "qwen35.jinja", "qwen3_coder"),
    "qwen15": (FOLDER / "qwen15.jinja", "hermes"),
    "react": (ROOT / "server/checkpoint/templates/react.jinja", "react"),
    "kimi_k2": (FOLDER / "kimi_k2.jinja", "kimi_k2"),
    "glm45": (FOLDER / "glm45.jinja", "glm4"),
    BUILT_IN: (BUILT_IN_FOLDER / "chat_template.jinja", "hermes"),  # with its own tokenizer
}
SPLITS_THOUGHTS = ["qwen3", "qwen3_thinking", "qwen35", "glm45", BUILT_IN]  # templates that cut thoughts out of content
OTHER_TOKENS = (
    "<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
    "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<arg_key>", "</arg_key>",
    "<arg_value>", "</arg_value>", "/nothink",
)  # fmt: skip
NUM_SPECIAL = 15  # of OTHER_TOKENS; the rest is added, but not special


def folder() -> Path:
    """A checkpoint's folder without weights; made once."""
    return make_once(cache_folder() / "prompts", _write)


def _write(made: Path) -> None:
    source = qwen_tokenizer()
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in OTHER_TOKENS[:NUM_SPECIAL]]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in OTHER_TOKENS[NUM_SPECIAL:]])
    tokenizer.save(str(made / "tokenizer.json"))
    config = json.loads((source / "tokenizer_config.json").read_text())
    for i, text in enumerate(OTHER_TOKENS):
        flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
        token_id = str(tokenizer.token_to_id(text))
        config["added_tokens_decoder"][token_id] = {"content": text, "special": i < NUM_SPECIAL, **flags}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    (made / "config.json").write_text(json.dumps({"model_type": "qwen3", "max_position_embeddings": 32768}))


def folder_of(name: str) -> Path:
    """Where the tokenizer for this template lies."""
    return BUILT_IN_FOLDER if name == BUILT_IN else folder()


@functools.cache
def opened(folder: Path) -> Checkpoint:
    """The checkpoint that lends its tokenizer to all templates of this folder. The dialect is no part of a prompt."""
    return Checkpoint.open(folder, chat_template=str(TEMPLATES[BUILT_IN][0]), dialect="hermes")


@functools.cache
def checkpoint(name: str) -> Checkpoint:
    """The checkpoint under this template."""
    base, path = opened(folder_of(name)), TEMPLATES[name][0]
    template = ChatTemplate(path.read_text(encoding="utf-8"), str(path), base.template.token_variables)
    return replace(base, template=template, capabilities=find_capabilities(template))


@functools.cache
def native(name: str) -> Checkpoint:
    """The same with the dialect that its template writes."""
    return replace(checkpoint(name), dialect=find(TEMPLATES[name][1]))


@cached
def prompter(name: str, limit: int = 0, **settings: Any) -> PromptBuilder:
    """Prepares prompts with the defaults of the settings; `limit` shortens the model's context."""
    there = checkpoint(name)
    return PromptBuilder(
        replace(there, max_model_len=limit or there.max_model_len), Settings(api=ApiSettings(**settings))
    )


def ids_of(name: str, messages: list[dict[str, Any]], **fields: Any) -> list[int]:
    """The prompt's ids under this template."""
    return prompter(name).prepare(ask(messages, **fields)).generates[0].token_ids


def ask(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **fields: Any) -> ChatRequest:
    """A request as the API hands it over; `tools` are shown and not constrained."""
    return ChatRequest("req", typed(messages), Sampling(max_tokens=1), tool_definitions=tools or (), **fields)


def control_ids(name: str, token_ids: list[int]) -> list[int]:
    """The control tokens among the ids, in order."""
    control = set(checkpoint(name).marker_ids.values())
    return [token_id for token_id in token_ids if token_id in control]


def text_of(name: str, token_ids: list[int]) -> str:
    """What the ids say, control tokens included."""
    return checkpoint(name).tokenizer.decode(token_ids, skip_special_tokens=False)
