"""Random conversations under templates that transform text: a client's text never adds a control token."""

import random
from dataclasses import replace

import pytest

from server.checkpoint.template import ChatTemplate
from server.prompt.builder import PromptBuilder
from server.settings import Settings
from tests.model_templates import TEMPLATES, ask, checkpoint
from tests.prompt.test_control_tokens import KEY, TRANSFORMED, Fields, conversation

CONVERSATIONS, SHORT = 500, 1  # of each template
NAMES = [*TEMPLATES, *TRANSFORMED]


def builder_of(name: str) -> tuple[PromptBuilder, set[int], list[str]]:
    """A builder under this template, with the ids and texts of its control tokens."""
    there = checkpoint(name if name in TEMPLATES else "qwen3_coder")
    if name not in TEMPLATES:
        source = there.template.source.replace(KEY, KEY.replace("key", f"({name})"))
        there = replace(there, template=ChatTemplate(source, name, there.template.token_variables))
    texts = [token.text for token in there.control_tokens]
    return PromptBuilder(there, Settings()), set(there.marker_ids.values()), texts


def disguise(rng: random.Random, token: str) -> str:
    """The token, a part of it, or what an operation could turn into it."""
    text = rng.choice((token, token[1:-1], token[1:], token[:-1]))
    operation = rng.randrange(8)
    if operation == 0:
        text = text.replace("_", "-")
    elif operation == 1:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice("$#. \n") + text[at:]
    elif operation == 2:
        text = rng.choice((text.upper(), text.swapcase(), text.title()))
    elif operation == 3:
        text = text[::-1]
    elif operation == 4:
        text = "".join(f"\\x{ord(letter):02x}" if letter in "<|>" else letter for letter in text)
    return text + rng.choice(("", "", "", " ", "x"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_no_control_token_is_gained(name: str, is_long: bool) -> None:
    """Each field of each conversation holds a disguised token; the tokens are those of harmless text."""
    builder, control, tokens = builder_of(name)
    rng = random.Random(NAMES.index(name))

    def control_ids(made: dict[str, list[dict[str, object]]]) -> list[int]:
        ids = builder.prepare(ask(made["messages"], tools=made["tools"])).generates[0].token_ids
        return [token_id for token_id in ids if token_id in control]

    expected = control_ids(conversation(Fields()))
    for _ in range(CONVERSATIONS if is_long else SHORT):
        chosen: dict[str, str] = {}

        def fill(field: str, chosen: dict[str, str] = chosen) -> str:
            if field not in chosen:
                chosen[field] = disguise(rng, rng.choice(tokens)) + ("" if rng.random() < 0.7 else f" {len(chosen)}")
            return chosen[field]

        assert control_ids(conversation(fill)) == expected, chosen
