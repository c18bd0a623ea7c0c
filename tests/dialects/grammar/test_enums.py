"""Enums of thousands of values in tagged formats."""

import json

import pytest

from server.dialects.base import Choice, Dialect, Tool
from server.dialects.glm4 import GLM4
from server.dialects.qwen3_coder import QWEN3_CODER
from tests.dialects.fuzz import write_call
from tests.dialects.parse_helpers import Call, read, texts_and_calls
from tests.dialects.random_walks import spec_for
from tests.dialects.test_constraints import accepts


@pytest.mark.parametrize("dialect", [QWEN3_CODER, GLM4], ids=lambda dialect: dialect.name)
def test_one_of_thousands_of_values_is_written_and_read(dialect: Dialect) -> None:
    """With 5,000 values the reply failed in the middle: "Current row has 5001 items"."""
    values = ["", "a", "a b", "<arg_key>x", *(f"file_{i}.py" for i in range(5000))]
    schema = {"type": "object", "properties": {"f": {"enum": [*values, 7]}}, "required": ["f"]}
    tool = Tool("open", schema)
    spec = spec_for([tool], Choice("required", parallel=False))
    for value in ("", "a", "a b", "<arg_key>x", "file_1.py", "file_11.py", "file_4999.py"):
        text = write_call(dialect.name, "open", {"f": value}, 0).strip()
        assert accepts(dialect, spec, text), value
        (call,) = texts_and_calls(read(dialect, [tool], [text]))
        assert isinstance(call, Call) and not call.flags and json.loads(call.arguments) == {"f": value}
    for value in ("file_5000.py", "file_", "b"):
        assert not accepts(dialect, spec, write_call(dialect.name, "open", {"f": value}, 0).strip()), value
