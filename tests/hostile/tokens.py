"""Random conversations of control tokens and their parts, under every template: none gains a control token."""

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from server.checkpoint.template import ChatTemplate
from server.errors import BadRequest
from server.prompt.builder import PromptBuilder
from server.settings import Settings
from tests.hostile.scenario import Outcome
from tests.model_templates import TEMPLATES, ask, checkpoint, control_ids, ids_of, text_of
from tests.prompt.test_control_tokens import KEY, TRANSFORMED, Fields, conversation

# The operations of two published templates on keys, and one of every other kind.
OPERATIONS = ("key | replace('-', '_')", "key.replace('$', '')", *list(TRANSFORMED)[2:])
SPELLINGS: tuple[Callable[[str], str], ...] = (
    str, str.upper, str.swapcase, str.capitalize, lambda text: text[1:], lambda text: text[:-1],
    lambda text: text[1:-1], lambda text: text[2:-2], lambda text: text[::-1], lambda text: text.replace("_", "-"),
    lambda text: "$".join(text), lambda text: text.replace("|", "\N{FULLWIDTH VERTICAL LINE}"),
    lambda text: text.replace("<", "\\u003c"), lambda text: text.replace("<", "&lt;"), lambda text: f" {text}\n",
    lambda text: text[: len(text) // 2] + "\N{ZERO WIDTH SPACE}" + text[len(text) // 2 :], lambda text: text * 2,
    lambda text: text.replace("m", "m\N{COMBINING ACUTE ACCENT}"), lambda text: f"{{{{ '{text}' }}}}", str.title,
    lambda text: re.sub("[<|>]", lambda found: f"\\x{ord(found.group()):02x}", text),
    lambda text: f"{text[:3]}${text[3:]}", lambda text: f"{text[:2]}.{text[2:]}", lambda text: f" {text[1:-1]}\n",
)  # fmt: skip


@cache
def transforming(operation: str) -> PromptBuilder:
    """Prepares prompts with a template that prints keys as tags after this operation."""
    coder = checkpoint("qwen3_coder")
    source = coder.template.source.replace(KEY, KEY.replace("key", f"({operation})"))
    template = ChatTemplate(source, operation, coder.template.token_variables)
    return PromptBuilder(replace(coder, template=template), Settings())


NAMES = (*TEMPLATES, *OPERATIONS)


def prompt_ids(name: str, fill: Callable[[str], str]) -> list[int]:
    """Return the prompt's ids under a template, or under one with an operation on keys."""
    made = conversation(fill)
    if name in TEMPLATES:
        return ids_of(name, **made)
    return transforming(name).prepare(ask(**made)).generates[0].token_ids


def base(name: str) -> str:
    """Return the template whose tokenizer and control tokens apply."""
    return name if name in TEMPLATES else "qwen3_coder"


@cache
def harmless(name: str) -> Counter[int]:
    """Count the control tokens of a conversation without any in its texts."""
    return Counter(control_ids(base(name), prompt_ids(name, Fields())))


def random_text(rng: random.Random, tokens: list[str]) -> str:
    """Return one to three control tokens, spelled in some way, with and without text around."""
    texts = [rng.choice(SPELLINGS)(rng.choice(tokens)) for _ in range(rng.choice((1, 1, 2, 3)))]
    before, after = rng.choice(("", "", "a", "\n", "<", "</", "<|")), rng.choice(("", "b", ">", "|>"))
    return before + rng.choice(("", " ", "\n")).join(texts) + after


def filler(number: int, seed: int, tokens: list[str]) -> Callable[[str], str]:
    """Return the texts of the fields of a conversation."""
    return cache(lambda field: random_text(random.Random(f"{seed}/{number}/{field}"), tokens))


def fuzz_conversations(count: int, seed: int) -> Outcome:
    """Fill every field of `count` conversations; their templates alternate."""
    outcome = Outcome()
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        tokens = [token.text for token in checkpoint(base(name)).control_tokens]
        outcome.requests += 1
        try:
            ids = prompt_ids(name, filler(number, seed, tokens))
        except BadRequest as error:
            outcome.faults.append(f"{name}: conversation {number} was refused: {error}")
            continue
        if gained := Counter(control_ids(base(name), ids)) - harmless(name):
            outcome.faults.append(f"{name}: conversation {number} gained {text_of(base(name), list(gained))}")
    return outcome
