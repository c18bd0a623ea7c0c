"""Expressions of a Lark grammar: string literals, and the compact JSON of a schema.

llguidance's `%json` writes members in the order of the schema, as vLLM, SGLang and OpenAI do. Parsers read any order.
"""

import json
from collections.abc import Mapping
from typing import Any

from server.dialects.schema.normalize import COMPACT


def quoted(text: str) -> str:
    """Return a Lark string literal."""
    return json.dumps(text, ensure_ascii=False)


def json_value(schema: Any, lenient: bool) -> str:
    """Return an expression for the JSON of a schema.

    `lenient` ignores keywords that `%json` does not support; otherwise such a grammar does not compile.
    """
    held = schema if isinstance(schema, Mapping) else {} if schema else {"not": {}}
    return "%json " + json.dumps({**held, "x-guidance": {**COMPACT, "lenient": lenient}}, ensure_ascii=False)
