"""Equality of training prompts and the prompts that the chat template renders."""

import json
import random
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from demo.cases import to_messages
from demo.dialogues import Author, Dialogue, read_smalltalk
from demo.everyday import known_words, read_everyday
from demo.export import SHIPPED
from demo.render import encode_all, render
from demo.words import World


def render_by_template(dialogue: Dialogue, upto: int) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string((SHIPPED / "chat_template.jinja").read_text(encoding="utf-8"))
    messages: list[dict[str, Any]] = list(to_messages(dialogue, upto))
    turns = [message for message in messages if message["role"] != "system"]
    for message, turn in zip(turns, dialogue.turns, strict=False):
        if turn.role == "assistant" and dialogue.thinking and dialogue.keeps_thoughts:
            message["reasoning_content"] = turn.thought
    tools = [tool.schema() for tool in dialogue.tools] or None
    return template.render(
        messages=messages, tools=tools, add_generation_prompt=True, enable_thinking=dialogue.thinking
    )


def dialogues(count: int) -> list[Dialogue]:
    author = Author(World("train", random.Random(11), known_words()), read_everyday(), read_smalltalk())
    return [author.write() for _ in range(count)]


def test_prompts_equal_those_of_the_template() -> None:
    compared = 0
    for dialogue in dialogues(300):
        last = max(i for i, turn in enumerate(dialogue.turns) if turn.role == "assistant")
        if dialogue.num_learnt_from != last:
            continue  # with several targets only the last one has a prompt of the template
        pieces = render(dialogue)
        assert "".join(piece.text for piece in pieces[:-2]) == render_by_template(dialogue, last)
        compared += 1
    assert compared > 60


def test_pieces_encoded_separately_give_the_ids_of_the_whole() -> None:
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    for dialogue in dialogues(60):
        whole = tokenizer.encode("".join(piece.text for piece in render(dialogue))).ids
        (example,) = encode_all(tokenizer, [dialogue])
        assert example.ids.tolist() == whole


def test_targets_end_with_the_end_of_turn_token() -> None:
    for dialogue in dialogues(60):
        learnt = [piece for piece in render(dialogue) if piece.learnt]
        assert learnt and all(piece.text.endswith("<|im_end|>") for piece in learnt)


@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}, "", {}])
def test_template_takes_arguments_as_text_or_object(arguments: object) -> None:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string((SHIPPED / "chat_template.jinja").read_text(encoding="utf-8"))
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    text = template.render(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
        ],
        add_generation_prompt=True,
        enable_thinking=False,
    )
    shown = '{"city": "Rome"}' if arguments else "{}"
    one = f'<tool_call>\n{{"name": "f", "arguments": {shown}}}\n</tool_call>'
    assert text == (
        f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{one}\n{one}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_thoughts_before_the_last_question_are_dropped() -> None:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((SHIPPED / "chat_template.jinja").read_text(encoding="utf-8"))
    text = template.render(
        messages=[
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "<think>\nold\n</think>\n\nFirst"},
            {"role": "user", "content": "Two"},
        ],
        add_generation_prompt=True,
    )
    assert "old" not in text and "assistant\nFirst<|im_end|>" in text
