"""Custom tools: check of their grammars, and of texts against them."""

import json
import sys
from functools import partial

from llguidance import LLMatcher

from server.dialects.base import ConstraintSpec, CustomFormat
from server.dialects.schema.cache import derived
from server.dialects.schema.engine import LIMITS, byte_tokenizer
from server.errors import BadSchema
from server.runtime.deep_stack import with_deep_stack

MAX_DEFINITION_LENGTH = 64 * 1024
TEMPLATES_FAULT = "params not supported"  # of the grammar engine


def check_format(spec: ConstraintSpec) -> None:
    """Raise BadSchema, naming the tool, where a custom tool's grammar does not compile."""
    for tool in spec.tools:
        fault = format_fault(tool.format) if tool.format is not None else ""
        if fault:
            raise BadSchema(f"Invalid grammar of custom tool '{tool.name}': {fault}", param=tool.param)


def format_fault(definition: CustomFormat, max_length: int = MAX_DEFINITION_LENGTH) -> str:
    """Return why this grammar cannot be used, or ""."""
    if len(definition.definition) > max_length:
        return f"it is longer than {max_length} characters."
    return derived(definition.syntax, definition.definition, lambda: _find_fault(definition), sys.getsizeof)


def _find_fault(definition: CustomFormat) -> str:
    """Check the definition by itself first: inside a larger grammar its brackets could end the part that holds it."""
    for grammar in (_grammar_alone(definition), _grammar(definition)):
        is_error, messages = with_deep_stack(partial(LLMatcher.validate_grammar_with_warnings, grammar))
        if is_error and TEMPLATES_FAULT in messages[0]:
            return f"it uses templates of rules, which are not supported; write them out. {_with_lines(messages[0])}"
        if is_error:
            return _with_lines(messages[0])
        if any("no tokenizer" in message for message in messages):
            return "it names tokens of the vocabulary; only texts are allowed."
    return ""


def _with_lines(message: str) -> str:
    """The fault with its line breaks: its last lines are those of the grammar, with a caret below the place."""
    return message.strip()[:500]


def satisfies(definition: CustomFormat, text: str) -> bool:
    """Whether a text matches this grammar as a whole. True as well if the check exceeds LIMITS."""
    return with_deep_stack(lambda: _satisfies(definition, text))


def _satisfies(definition: CustomFormat, text: str) -> bool:
    written = text if definition.syntax == "lark" else json.dumps(text, ensure_ascii=False)
    matcher = LLMatcher(byte_tokenizer(), _grammar(definition), log_level=0, limits=LIMITS)
    letters = list(written.encode())
    follows = matcher.validate_tokens(letters) == len(letters) and matcher.consume_tokens(letters)
    return bool(matcher.get_error()) or (follows and matcher.is_accepting())


def _grammar_alone(definition: CustomFormat) -> str:
    if definition.syntax == "regex":
        return LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", "pattern": definition.definition}))
    return LLMatcher.grammar_from_lark(definition.lark)


def _grammar(definition: CustomFormat) -> str:
    if definition.syntax == "regex":
        return LLMatcher.grammar_from_json_schema(
            json.dumps({"type": "string", "pattern": f"^(?:{definition.definition})$"})
        )
    return LLMatcher.grammar_from_lark("start: nested\nnested: %lark {\n" + definition.lark + "\n}\n")
