"""Dialects by name and by template."""

import pytest

from server.dialects.registry import DIALECTS, detect, find
from server.errors import CannotStart
from tests.dialects import fuzz

HERMES = """For each function call, return a json object with function name and arguments within <tool_call> tags:
<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call>"""
TEMPLATES = {
    "hermes": HERMES,
    "qwen3_coder": "<tool_call>\n<function=example_function_name>\n<parameter=example_1>\nvalue_1\n</parameter>",
    "glm4": "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>",
    "react": "Action: {{ name }}\nAction Input: {{ arguments }}\nObservation: {{ result }}",
}


def test_a_template_is_recognised_by_its_own_dialect_and_a_plain_one_by_none() -> None:
    assert {dialect.name for dialect in DIALECTS} == set(TEMPLATES) == set(fuzz.MARKUP)
    for name, template in TEMPLATES.items():
        found = detect(template)
        assert found is not None and found.name == name
    assert detect("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}") is None


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    assert find("react").name == "react"
    with pytest.raises(CannotStart, match="hermes"):
        find("telepathy")
