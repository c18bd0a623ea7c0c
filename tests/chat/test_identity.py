"""On clean text our ids are those of transformers' apply_chat_template, for every template under test."""

import functools
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.chat.conversations import Inventor, as_sent
from tests.chat.models import TEMPLATES, folder_of, ids_of, text_of

CONVERSATIONS = 300
WITHOUT_CALLS = {"qwen15"}
WITHOUT_THOUGHTS = {"qwen15"}


@functools.cache
def reference(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def ids_of_transformers(name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], **options: Any) -> Any:
    options = {"add_generation_prompt": True, **options}
    source = TEMPLATES[name][0].read_text(encoding="utf-8")
    return reference(folder_of(name)).apply_chat_template(
        messages, tools=tools or None, chat_template=source, tokenize=True, return_dict=False, **options
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_apply_chat_template(name: str) -> None:
    """A prompt that differs by one token from the one that the model was trained on costs quality in silence."""
    inventor = Inventor(seed=1)
    for _ in range(CONVERSATIONS):
        messages, tools = inventor.conversation(name not in WITHOUT_THOUGHTS, name not in WITHOUT_CALLS)
        ours, theirs = ids_of(name, as_sent(messages), tools=tools), ids_of_transformers(name, messages, tools)
        assert ours == theirs, f"{text_of(name, ours)!r}\n{text_of(name, theirs)!r}"
