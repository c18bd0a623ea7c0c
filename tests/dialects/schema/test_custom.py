"""Grammars of custom tools: text of a client stays within its part of a larger grammar, and names no token."""

from typing import Literal

import pytest

from server.dialects.base import CustomFormat
from server.dialects.schema.custom import format_fault, satisfies

LEAVES = 'start: "a"\n}\nfurther: "b"\nrest: %lark {\nstart: "c"'


@pytest.mark.parametrize(("syntax", "text"), [("lark", LEAVES), ("regex", "a)|(?:b"), ("regex", "(?x) a # b")])
def test_a_definition_does_not_leave_its_brackets(syntax: Literal["lark", "regex"], text: str) -> None:
    """What stood behind such a bracket became rules of the reply's grammar."""
    fault = format_fault(CustomFormat(syntax, text))
    assert fault and "nested" not in fault


@pytest.mark.parametrize(
    "rule",
    [
        "<|im_start|>", "<[5]>", "<[*]>", "<[^5-8]>", '"a" <think>', '"\\"" <x>', '/"/ <x>', "/\\// <x>", '<x"y">',
        '%json {"const": "\\" / #"} <x>', '%lark { start: "x" <y> \n }', '"a" # "\n | <x>', '"a" // /\n | <x> // "',
    ],
)  # fmt: skip
def test_a_definition_names_no_token(rule: str) -> None:
    """It made the model write control tokens, and the error of an unknown one listed those there are."""
    assert "names tokens" in format_fault(CustomFormat("lark", f"start: {rule}"))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ('"<think>"', "<think>"), ("/<[a-z]>/", "<b>"), ('"a" # <x>', "a"), ('"a" // <x>', "a"),
        ('"\\\\" /["<]/', "\\<"), ('"}" "{"', "}{"), ('%json {"const": "<x>"}', '"<x>"'),
    ],
)  # fmt: skip
def test_text_that_looks_like_a_token_is_taken(rule: str, text: str) -> None:
    definition = CustomFormat("lark", f"start: {rule}")
    assert format_fault(definition) == "" and satisfies(definition, text)
