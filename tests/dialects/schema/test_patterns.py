"""Patterns in the syntaxes of JavaScript, Python, PCRE and Java: the grammar, the validator and the parser agree."""

import json
from typing import Any

import pytest

from server.dialects.base import Choice, Dialect, Tool
from server.dialects.schema.check import check_parameters
from server.dialects.schema.compiled import compiled, schema_notes
from server.dialects.schema.patterns import full_match, most_repeats, translated
from server.dialects.schema.supported import compile_fault
from server.dialects.schema.validate import fits
from server.errors import BadSchema
from tests.dialects.fuzz import write_call
from tests.dialects.parse_helpers import Call, read, texts_and_calls
from tests.dialects.random_walks import spec_for
from tests.dialects.test_constraints import accepts, every_dialect

# Pattern: a text that it takes, and one that it does not.
TRANSLATED = {
    r"^[\w-\.]+@\w+$": ("a.b-c@d", "a b@c"),
    r"^[^\p{Cc}\\./[\]]+$": ("a b", "a[b"),
    r"(?i)^yes$": ("YES", "no"),
    r"^(?P<y>x)$": ("x", "y"),
    r"^(?<first>x)(?<second>y)$": ("xy", "y"),
    r"\Ax\Z": ("x", "xx"),
    r"x\z": ("ax", "xa"),
    r"^[\d-x]+$": ("1-x", "y"),
    r"^[a-\d]+$": ("a-1", "b"),
    r"^[a&&b]+$": ("a&b", "c"),
    r"^[[a]+$": ("[a", "b"),
    r"^[+--]$": ("-", "a"),
    r"^[^]$": ("a", "ab"),
    r"^a{,3}$": ("aaa", "aaaa"),
    r"^a{2$": ("a{2", "aa"),
    r"^{}$": ("{}", "a"),
    r"^\<a\>$": ("<a>", "a"),
    r"^a++b?+$": ("aab", "ba"),
    r"^(?>a|b)(?#either)$": ("b", "c"),
    r"^\Qa.b\E$": ("a.b", "axb"),
    r"^\h\e\cA\0$": (" \x1b\x01\x00", "h"),
    r"^[\b\h]+$": ("\x08 ", "b"),
    r"^$|^[a-z]+$": ("ab", "A"),
    r"(^$|^x$)": ("x", "xx"),
    r"(^|,)x(,|$)": ("a,x", "ax"),
    r"^(?:$|[a-z]+)$": ("ab", "A"),
    r"^(a|b$)": ("ac", "bc"),
    r"(?i)(^|,)x$": ("a,X", "ax"),
    r"^(a|(b|^c))d": ("cdx", "xcd"),
    r"^\N\R?$": ("a", "ab"),
    r"^\N{2}$": ("ab", "a"),
    r"^\N{DEGREE SIGN}[\N{U+41}-Z]$": ("°B", "°b"),
    r"^\ud83d\ude00$": ("\U0001f600", "x"),
    r"^\o{101}\H$": ("Ab", "A "),
}
UNREAD = [
    "abc\\",
    "a{100000}",
    "^(a{1,1000}b){1,1000}$",
    r"^(?!a)b$",
    r"(a)\1",
    r"\bword\b",
    r"a(",
    r"\p{Unknown}",
    r"\N{NO SUCH NAME}",
    "[\\ud800-\\udbff]",
]


def tool_of(pattern: str, strict: bool = False) -> Tool:
    properties = {"s": {"type": "string", "pattern": pattern}, "n": {"type": "integer"}}
    closed: dict[str, Any] = {"required": ["s", "n"], "additionalProperties": False}
    return Tool("f", {"type": "object", "properties": properties, **closed}, strict)


@pytest.mark.parametrize("pattern", TRANSLATED)
def test_a_pattern_of_another_engine_is_enforced_by_grammar_and_validator(pattern: str) -> None:
    """`[\\w-\\.]` and the like: every request of such a client was refused."""
    good, bad = TRANSLATED[pattern]
    tool = tool_of(pattern, strict=True)
    check_parameters(tool.parameters, strict=True, strict_flag=True)
    assert compiled(tool.parameters).notes(True) == ()
    assert fits({"s": good, "n": 1}, tool.parameters) and not fits({"s": bad, "n": 1}, tool.parameters)


@every_dialect
def test_the_grammars_of_all_dialects_take_what_such_a_pattern_takes(dialect: Dialect) -> None:
    for pattern, (good, bad) in TRANSLATED.items():
        if not (good + bad).isprintable():
            continue
        tool = tool_of(pattern)
        spec = spec_for([tool], Choice("required", parallel=False))
        text = write_call(dialect.name, "f", {"s": good, "n": 1}, 0).strip()
        assert accepts(dialect, spec, text), (pattern, good)
        (call,) = texts_and_calls(read(dialect, [tool], [text]))
        assert isinstance(call, Call) and not call.flags and json.loads(call.arguments) == {"s": good, "n": 1}
        assert not accepts(dialect, spec, write_call(dialect.name, "f", {"s": bad, "n": 1}, 0).strip()), (pattern, bad)


@every_dialect
def test_a_pattern_that_cannot_be_enforced_has_a_note_and_leaves_the_rest_enforced(dialect: Dialect) -> None:
    for pattern in UNREAD:
        tool = tool_of(pattern)
        check_parameters(tool.parameters, strict=False, strict_flag=False)
        (note,) = compiled(tool.parameters).notes(False)
        assert note.path == ("properties", "s") and "is not enforced" in note.text
        spec = spec_for([tool], Choice("required", parallel=False))
        assert accepts(dialect, spec, write_call(dialect.name, "f", {"s": "b", "n": 1}, 0).strip()), pattern
        assert not accepts(dialect, spec, write_call(dialect.name, "f", {"s": "b", "n": "x"}, 0).strip()), pattern
        with pytest.raises(BadSchema, match="properties"):
            check_parameters(tool.parameters, strict=True, strict_flag=False)


@pytest.mark.parametrize(
    "pattern",
    ["((^a)|b)c", "^a(?:$|b(?:$|c))", "^((a|$)|b)$", "a(b|$)", "(^|a)(b|$)", "^[(^]a($|b)", "(?:(?:^))a"],
)
def test_what_the_grammar_of_json_holds_is_held_as_raw_text_too(pattern: str) -> None:
    """A pattern with an anchor in a group was dropped in silence where strings are raw text."""
    assert compile_fault({"type": "string", "pattern": translated(pattern)}, lenient=False) == ""
    assert full_match(translated(pattern)) is not None


MANY = "|".join(f"^a{i}" for i in range(20)), "|".join(f"b{i}$" for i in range(20))
TOO_MANY = f"({MANY[0]})({MANY[1]})"


@pytest.mark.parametrize(
    "member",
    [
        {"type": "string", "pattern": TOO_MANY},
        {"anyOf": [{"type": "string", "pattern": TOO_MANY}, {"type": "null"}]},
        {"$ref": "#/$defs/code"},
    ],
    ids=["itself", "an alternative", "a reference"],
)
def test_a_pattern_that_raw_text_cannot_hold_has_a_note(member: dict[str, Any]) -> None:
    schema = {
        "type": "object",
        "properties": {"s": member, "inner": {"type": "object", "properties": {"s": {"type": "string"}}}},
        "$defs": {"code": {"type": "string", "pattern": TOO_MANY}},
    }
    tool = Tool("f", schema, param="tools[0].function.parameters")
    (note,) = schema_notes([tool], {"f"}, None, raw_strings=True)
    assert note.param == f"{tool.param}.properties.s" and "this tool format cannot hold it" in note.text
    assert [*schema_notes([tool], {"f"}, None)] == []


def test_a_list_of_many_whole_texts_is_held_as_raw_text() -> None:
    assert full_match("|".join(f"^a{i}$" for i in range(400))) is not None


def test_names_of_members_by_pattern_are_translated_too() -> None:
    schema = {"type": "object", "patternProperties": {r"^[\w-\.]+$": {"type": "integer"}, "a(": {}}}
    check_parameters(schema, strict=False, strict_flag=False)
    assert fits({"a.b": 1}, schema) and not fits({"a.b": "x"}, schema)
    assert len(compiled(schema).notes(False)) == 1


def test_unfinished_patterns_are_translated_without_an_error() -> None:
    for pattern in ("", "[", "(", "(?", "(?i", "\\", "[\\", "{", "a{1", "[^", "[a-", "(?<", "\\c", "\\p{", "\\Q"):
        full_match(translated(pattern))


@pytest.mark.parametrize(
    ("pattern", "times"),
    [("a", 1), (r"\d{4}-\d{2}", 4), ("(a{3}b{2}){5}", 15), (r"a\){7}", 7), ("[{9}]{2}", 2), ("a{2,}", 2), ("a{x}", 1)],
)
def test_repeats_are_counted_through_groups(pattern: str, times: int) -> None:
    """A pattern that counts too far was a 400, or ended a reply in its middle."""
    assert most_repeats(pattern) == times
