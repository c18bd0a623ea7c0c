"""Chains of rules or definitions as long as a request may bring: they ended the API process."""

import json

from llguidance import LLMatcher

from server.dialects.base import CustomFormat
from server.dialects.schema.custom import format_fault, satisfies
from server.runtime.deep_stack import with_deep_stack


def test_a_custom_grammar_with_a_chain_of_thousands_of_rules() -> None:
    chain = "start: r0\n" + "\n".join(f"r{index}: r{index + 1}" for index in range(4000)) + '\nr4000: "z"'
    definition = CustomFormat(syntax="lark", definition=chain)
    assert format_fault(definition) == ""
    assert satisfies(definition, "z")


def test_a_schema_with_a_chain_of_thousands_of_definitions() -> None:
    definitions = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(4000)} | {
        "d4000": {"type": "null"}
    }
    grammar = LLMatcher.grammar_from_json_schema(json.dumps({"$ref": "#/$defs/d0", "$defs": definitions}))
    assert with_deep_stack(lambda: LLMatcher.validate_grammar_with_warnings(grammar)) == (False, [])
