"""Calls in tags of which some are missing or stand elsewhere: no value swallows what follows it."""

import pytest

from server.dialects.base import Dialect, Tool
from server.dialects.glm4 import GLM4
from server.dialects.qwen3_coder import QWEN3_CODER
from tests.dialects.fuzz import write_call
from tests.dialects.parse_helpers import Call, parse_in_any_pieces
from tests.dialects.random_walks import admits_beginning

WRITE = Tool(
    "write",
    {
        "type": "object",
        "properties": {"path": {"type": "string"}, "content": {"type": "string"}, "mode": {"type": "integer"}},
    },
)
LOOK = Tool("look", {"type": "object", "properties": {"at": {"type": "string"}}})
MOVE = Tool("move", {"anyOf": [{"properties": {"path": {"type": "string"}}}, {"properties": {"to": {}}}]})
TOOLS = (WRITE, LOOK, MOVE)

QWEN_OPEN, QWEN_CLOSE = "<tool_call>\n<function=write>\n", "</function>\n</tool_call>"
QWEN_LOOK = "<function=look>\n<parameter=at>\nx\n</parameter>\n</function>\n</tool_call>"
GLM_LOOK = "<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>x</arg_value>\n</tool_call>"
TWO = {"path": "src/a.py", "content": "print(1)"}


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<parameter=path>\nsrc/a.py\n<parameter=content>\nprint(1)\n</parameter>\n", TWO),
        ("<parameter=path>\nsrc/a.py\n</parameter>\n<parameter=content>\nprint(1)\n", TWO),
        ("<parameter=path>\nsrc/a.py\n<parameter=content>\nprint(1)\n", TWO),
        ("<parameter=path>src/a.py\n<parameter=content>print(1)</parameter>\n", TWO),
        ("<parameter=path>src/a.py<parameter=content>print(1)</parameter>", TWO),
        ("<parameter=path>\n<parameter=content>\nprint(1)\n</parameter>\n", {"path": "", "content": "print(1)"}),
        ("<parameter=mode>\n3\n<parameter=path>\na\n</parameter>\n", {"mode": 3, "path": "a"}),
        ("<parameter=path>\na\n<parameter=path>\nb\n</parameter>\n", {"path": "a"}),
    ],
)
def test_a_qwen_value_without_its_closing_tag_ends_at_the_next_declared_parameter(text: str, arguments: object) -> None:
    """The first value swallowed the next parameter, and nothing said so."""
    (call,) = parse_in_any_pieces(QWEN3_CODER, TOOLS, QWEN_OPEN + text + QWEN_CLOSE)
    assert isinstance(call, Call) and call.value == arguments and call.flags == ("repaired",)


@pytest.mark.parametrize(
    "value",
    [
        "use <parameter=path> here",
        "a\n<parameter=undeclared>\nb",
        "a\n<parameter=pat",
        "a\n<parameter=path",
        "</parameter> and </function> and </tool_call>",
    ],
)
def test_a_qwen_value_keeps_what_opens_no_declared_parameter_at_a_line(value: str) -> None:
    text = f"{QWEN_OPEN}<parameter=content>\n{value}\n</parameter>\n{QWEN_CLOSE}"
    (call,) = parse_in_any_pieces(QWEN3_CODER, TOOLS, text)
    assert isinstance(call, Call) and call.value == {"content": value} and call.flags == ()
    assert admits_beginning(QWEN3_CODER, TOOLS, text)


@pytest.mark.parametrize(
    "text",
    [
        "<parameter=path>\na\n</parameter>\n</tool_call>",
        "<parameter=path>\na\n</tool_call>",
        "<parameter=path>\na\n</function>",
        "<parameter=path>\na\n</parameter>\n</tool_call>\n</function>",
    ],
)
@pytest.mark.parametrize("more", ["", f"\n<tool_call>\n{QWEN_LOOK}", f"\n{QWEN_LOOK}"])
def test_a_qwen_call_without_its_closing_tags_ends_where_the_next_call_begins(text: str, more: str) -> None:
    """The value swallowed the next call."""
    call, *rest = parse_in_any_pieces(QWEN3_CODER, TOOLS, QWEN_OPEN + text + more)
    assert isinstance(call, Call) and call.value == {"path": "a"} and call.flags == ("repaired",)
    assert rest == ([Call("look", '{"at": "x"}')] if more else [])


@pytest.mark.parametrize("more", ["</tool_call>", "</function>\n</tool_call>", "</parameter>\n</tool_call>\n"])
def test_closing_tags_behind_a_qwen_call_are_markup_and_the_text_behind_them_is_kept(more: str) -> None:
    text = f"{QWEN_OPEN}<parameter=path>\na\n</parameter>\n{QWEN_CLOSE}\n{more}"
    assert parse_in_any_pieces(QWEN3_CODER, TOOLS, text) == [Call("write", '{"path": "a"}')]
    call, words = parse_in_any_pieces(QWEN3_CODER, TOOLS, f"{text}\nDone </tool_call>")
    assert isinstance(call, Call) and isinstance(words, str) and words.strip() == "Done </tool_call>"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<arg_key>path</arg_key>\n<arg_value>src/a.py\n<arg_key>content</arg_key>\n<arg_value>print(1)", TWO),
        ("<arg_key>path</arg_key><arg_value>src/a.py<arg_key>content</arg_key><arg_value>print(1)</arg_value>", TWO),
        ("<arg_key>path\n<arg_value>src/a.py</arg_value>\n<arg_key>content<arg_value>print(1)</arg_value>\n", TWO),
        ("<arg_key>mode</arg_key>\n<arg_value>3\n<arg_key>path</arg_key>\n<arg_value>a", {"mode": 3, "path": "a"}),
        ("<arg_key>path</arg_key>\n<arg_value>\n", {"path": ""}),
    ],
)
@pytest.mark.parametrize("more", ["", f"\n{GLM_LOOK}"])
def test_a_glm_value_or_key_without_its_closing_tag_ends_at_the_next(text: str, arguments: object, more: str) -> None:
    call, *rest = parse_in_any_pieces(GLM4, TOOLS, f"<tool_call>write\n{text}</tool_call>{more}")
    assert isinstance(call, Call) and call.value == arguments and call.flags == ("repaired",)
    assert rest == ([Call("look", '{"at": "x"}')] if more else [])


def test_a_glm_value_keeps_a_key_that_is_not_declared() -> None:
    text = "<tool_call>write\n<arg_key>path</arg_key>\n<arg_value>a <arg_key>b</arg_key> c</arg_value>\n</tool_call>"
    (call,) = parse_in_any_pieces(GLM4, TOOLS, text)
    assert isinstance(call, Call) and call.value == {"path": "a <arg_key>b</arg_key> c"} and call.flags == ()
    assert admits_beginning(GLM4, TOOLS, text)


@pytest.mark.parametrize("tool", ["write", "move"])
@pytest.mark.parametrize("value", ["", "a\n", "\n"])
@pytest.mark.parametrize("name", ["path", "content", "mode", "to"])
def test_the_grammar_admits_no_qwen_value_that_opens_a_declared_parameter(tool: str, value: str, name: str) -> None:
    """Whatever it admits has to be read as it was written."""
    begun = f"<tool_call>\n<function={tool}>\n<parameter=path>\n{value}"
    assert admits_beginning(QWEN3_CODER, TOOLS, f"{begun}<parameter={name[:-1]}")
    assert not admits_beginning(QWEN3_CODER, TOOLS, f"{begun}<parameter={name}>")


@pytest.mark.parametrize("value", ["", "a", "a\n"])
def test_the_grammar_admits_no_glm_value_that_opens_a_declared_argument(value: str) -> None:
    begun = f"<tool_call>write\n<arg_key>path</arg_key>\n<arg_value>{value}"
    assert admits_beginning(GLM4, TOOLS, f"{begun}<arg_key>content</arg_key")
    assert not admits_beginning(GLM4, TOOLS, f"{begun}<arg_key>content</arg_key>")


@pytest.mark.parametrize(
    ("dialect", "end"), [(QWEN3_CODER, "\n</tool_call>\n<tool_call>"), (GLM4, "</tool_call><tool_call>")]
)
def test_the_grammar_admits_no_value_that_the_next_call_ends(dialect: Dialect, end: str) -> None:
    begun = {
        QWEN3_CODER.name: f"{QWEN_OPEN}<parameter=path>\na",
        GLM4.name: "<tool_call>write\n<arg_key>path</arg_key>\n<arg_value>a",
    }
    assert admits_beginning(dialect, TOOLS, begun[dialect.name] + end[:-1])
    assert not admits_beginning(dialect, TOOLS, begun[dialect.name] + end)


@pytest.mark.parametrize("dialect", [QWEN3_CODER, GLM4], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    "text",
    [
        "</parameter></function>",
        "</parameter> <parameter=",
        "</arg_value><arg_key>",
        "<arg_key>tags</arg_key>",
        'a \\" </arg_value></tool_call>',
    ],
)
def test_a_json_string_may_contain_what_ends_a_value(dialect: Dialect, text: str) -> None:
    """The grammar admits it, and the value was cut there."""
    tool = Tool("note", {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}}}})
    written = write_call(dialect.name, "note", {"tags": [text, "b"]}, 0).removeprefix("\n")
    assert admits_beginning(dialect, [tool], written)
    (call,) = parse_in_any_pieces(dialect, [tool], written)
    assert isinstance(call, Call) and call.value == {"tags": [text, "b"]} and call.flags == ()


@pytest.mark.parametrize("dialect", [QWEN3_CODER, GLM4], ids=lambda dialect: dialect.name)
def test_a_json_value_with_an_open_string_ends_with_its_call(dialect: Dialect) -> None:
    tool = Tool("note", {"type": "object", "properties": {"tags": {"type": "array"}}})
    written = write_call(dialect.name, "note", {"tags": ["a"]}, 0).removeprefix("\n").replace('"a"', '"a')
    call = parse_in_any_pieces(dialect, [tool], written)[0]
    assert isinstance(call, Call) and "invalid" in call.flags and "truncated" not in call.flags
