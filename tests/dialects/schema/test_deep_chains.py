"""Chains of rules or definitions as long as a request may bring: they ended the API process."""

from server.dialects.base import CustomFormat
from server.dialects.schema.check import check_parameters
from server.dialects.schema.compiled import compiled
from server.dialects.schema.custom import format_fault, satisfies
from server.dialects.schema.validate import fits


def test_a_custom_grammar_with_a_chain_of_thousands_of_rules() -> None:
    chain = "start: r0\n" + "\n".join(f"r{index}: r{index + 1}" for index in range(4000)) + '\nr4000: "z"'
    definition = CustomFormat(syntax="lark", definition=chain)
    assert format_fault(definition) == ""
    assert satisfies(definition, "z")


def test_a_schema_with_a_chain_of_thousands_of_definitions() -> None:
    definitions = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(4000)} | {
        "d4000": {"type": "null"}
    }
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": definitions}
    check_parameters(schema, strict=True, strict_flag=False)
    tool = compiled(schema)
    assert tool.notes(True) == () and tool.supported(True).schema["$defs"].keys() == definitions.keys()
    assert fits({"x": None}, schema) and not fits({"x": 1}, schema)
