"""Custom tools: their grammars are checked before the engine sees them."""

import json
from functools import lru_cache

from llguidance import LLMatcher

from server.dialects.protocol import CustomFormat, Wanted
from server.errors import BadSchema

LONGEST_DEFINITION = 64 * 1024


def check_format(wanted: Wanted) -> None:
    """Raise BadSchema, naming the tool, where a custom tool's grammar does not compile."""
    for place, tool in enumerate(wanted.tools):
        fault = format_fault(tool.format) if tool.format is not None else ""
        if fault:
            raise BadSchema(f"Invalid grammar of custom tool '{tool.name}': {fault}", param=f"tools[{place}]")


@lru_cache(maxsize=256)
def format_fault(definition: CustomFormat) -> str:
    """Why this grammar cannot be used, or ""."""
    if len(definition.definition) > LONGEST_DEFINITION:
        return f"it is longer than {LONGEST_DEFINITION} characters."
    if definition.syntax == "regex":
        schema = {"type": "string", "pattern": f"^(?:{definition.definition})$"}
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    else:
        grammar = LLMatcher.grammar_from_lark("start: nested\nnested: %lark {\n" + definition.definition + "\n}\n")
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(messages[0].split())[:500] if is_error else ""
