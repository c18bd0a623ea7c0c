"""Validation of arguments against a tool's schema."""

import json
import sys
from collections.abc import Collection, Sequence
from typing import Any

from server.dialects.base import Tool
from server.dialects.schema.compiled import CompiledTool, compiled, compiled_tool
from server.dialects.schema.custom import satisfies
from server.dialects.schema.validator import is_valid
from server.events import Flag


class ToolSet:
    """The tools that a reply may call, by name."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._compiled: dict[str, CompiledTool] = {}

    @property
    def names(self) -> Collection[str]:
        """The names of the tools."""
        return self._tools.keys()

    def find(self, name: str) -> Tool | None:
        """Return the tool of this name, None if the request has none."""
        return self._tools.get(name)

    def validate(self, tool: Tool, arguments: str) -> tuple[Flag, ...]:
        """`("invalid",)` where the arguments are no JSON object or do not satisfy the schema or custom grammar."""
        if tool.custom:
            return () if tool.format is None or satisfies(tool.format, arguments) else ("invalid",)
        try:
            value = json.loads(arguments, parse_float=_finite_float)
        except ValueError:
            return ("invalid",)
        return () if isinstance(value, dict) and self._fits(tool, value) else ("invalid",)

    def _fits(self, tool: Tool, value: Any) -> bool:
        if not tool.parameters:
            return True
        if tool.name not in self._compiled:
            self._compiled[tool.name] = compiled_tool(tool)
        return is_valid(self._compiled[tool.name].validator, value)


def fits(value: Any, schema: Any) -> bool:
    """Whether a value satisfies a schema that was checked before. `format` is not asserted, as in the drafts."""
    if schema is None or schema is True or schema == {}:
        return True
    return is_valid(compiled(schema).validator, value)


def _finite_float(text: str) -> float:
    # A grammar bounds no exponent: 1e999 is a JSON number, and satisfies `"type": "number"`.
    return max(-sys.float_info.max, min(float(text), sys.float_info.max))
