"""On clean text our ids are those of transformers' apply_chat_template, for every template under test."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.caches import cached
from tests.model_templates import SPLITS_THOUGHTS, TEMPLATES, checkpoint, folder_of, ids_of, text_of
from tests.prompt.conversations import Inventor, as_sent

CONVERSATIONS, LONG_CONVERSATIONS = 20, 300  # a template
WITHOUT_CALLS = {"qwen15"}
WITHOUT_THOUGHTS = {"qwen15"}


@cached
def reference(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_the_templates_that_split_thoughts_are_known() -> None:
    found = [name for name in TEMPLATES if checkpoint(name).capabilities.splits_thoughts]
    assert found == SPLITS_THOUGHTS


def ids_of_transformers(name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], **options: Any) -> Any:
    options = {"add_generation_prompt": True, **options}
    source = TEMPLATES[name][0].read_text(encoding="utf-8")
    return reference(folder_of(name)).apply_chat_template(
        messages, tools=tools or None, chat_template=source, tokenize=True, return_dict=False, **options
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_apply_chat_template(name: str, is_long: bool) -> None:
    """A prompt that differs by one token from the one that the model was trained on costs quality in silence."""
    inventor = Inventor(seed=1)
    for _ in range(LONG_CONVERSATIONS if is_long else CONVERSATIONS):
        messages, tools = inventor.conversation(name not in WITHOUT_THOUGHTS, name not in WITHOUT_CALLS)
        ours, theirs = ids_of(name, as_sent(messages), tools=tools), ids_of_transformers(name, messages, tools)
        assert ours == theirs, f"{text_of(name, ours)!r}\n{text_of(name, theirs)!r}"


@pytest.mark.parametrize("name", SPLITS_THOUGHTS)
def test_ids_are_the_same_for_thoughts_within_the_content(name: str, is_long: bool) -> None:
    """The tags are control tokens that the template itself reads: cutting them out first must change nothing."""
    inventor = Inventor(seed=2)
    for _ in range(LONG_CONVERSATIONS if is_long else CONVERSATIONS):
        messages, tools = inventor.conversation(thoughts=False, calls=True)
        for message in messages:
            if message["role"] == "assistant":
                message["content"] = f"<think>\n{inventor.text()}\n</think>\n\n{message['content'].strip()}"
        assert ids_of(name, as_sent(messages), tools=tools) == ids_of_transformers(name, messages, tools)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_of_a_prefilled_answer_are_the_same(name: str, is_long: bool) -> None:
    """Where the text is cut decides the first token that the model writes."""
    inventor = Inventor(seed=3)
    for _ in range(LONG_CONVERSATIONS if is_long else CONVERSATIONS):
        messages = [{"role": "user", "content": inventor.text()}, {"role": "assistant", "content": inventor.text()}]
        if not messages[1]["content"].strip():
            continue
        theirs = ids_of_transformers(name, messages, [], add_generation_prompt=False, continue_final_message=True)
        assert ids_of(name, messages, continue_final_message=True) == theirs, messages


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("thinking", [True, False])
def test_ids_are_the_same_with_the_switch_of_thinking(name: str, thinking: bool) -> None:
    """The switch changes the prompt's last tokens, from which the reply's beginning is read."""
    messages = [{"role": "user", "content": "Why?"}]
    theirs = ids_of_transformers(name, messages, [], enable_thinking=thinking)
    assert ids_of(name, messages, thinking=thinking) == theirs
