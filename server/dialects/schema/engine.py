"""Faults of grammars, from the grammar engine itself, under the limits of the engine process."""

import json
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from server.messages import GRAMMAR_LIMITS
from server.runtime.deep_stack import with_deep_stack

LIMITS = LLParserLimits(**GRAMMAR_LIMITS, verbose_errors=False)  # type: ignore[arg-type]


def grammar_fault(schema: Any) -> str:
    """Return why the engine cannot compile a JSON Schema, or "": less than a millisecond for most schemas."""
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matcher = with_deep_stack(lambda: LLMatcher(byte_tokenizer(), grammar, log_level=0, limits=LIMITS))
    return " ".join(matcher.get_error().split())[:500] if matcher.is_error() else ""


@lru_cache(maxsize=1)
def byte_tokenizer() -> LLTokenizer:
    """Return a vocabulary of the 256 bytes."""
    return LLTokenizer("byte")
