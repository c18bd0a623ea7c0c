"""Tags as models distort them: every call is read as it was meant, or its text is kept as it was written."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dialects.base import Choice, Dialect, Tool
from server.dialects.glm4 import GLM4
from server.dialects.hermes import HERMES
from server.dialects.qwen3_coder import QWEN3_CODER
from server.dialects.react import REACT
from server.dialects.registry import DIALECTS
from tests.dialects.fuzz import write_call
from tests.dialects.parse_helpers import Call, cut_evenly, parse_in_any_pieces, read, texts_and_calls
from tests.dialects.random_walks import admits_beginning, grammars, spec_for, spelled_ids_of

WRITE = Tool(
    "write",
    {
        "type": "object",
        "properties": {"path": {"type": "string"}, "content": {"type": "string"}, "mode": {"type": "integer"}},
        "required": ["path", "content"],
    },
)
LOOK = Tool("look", {"type": "object", "properties": {"at": {"type": "string"}}})
NOW = Tool("now")
TOOLS = (WRITE, LOOK, NOW)
TWO = {"path": "src/a.py", "content": "print(1)"}
HEAD = "<tool_call>\n<function=write>\n"
PATH = "<parameter=path>\nsrc/a.py\n</parameter>\n"
CONTENT = "<parameter=content>\nprint(1)\n</parameter>\n"
CLOSE = "</tool_call>"
END = f"</function>\n{CLOSE}"
GLM_HEAD, GLM_END = "<tool_call>write\n", "</tool_call>"
GLM_PATH = "<arg_key>path</arg_key>\n<arg_value>src/a.py</arg_value>\n"
GLM_CONTENT = "<arg_key>content</arg_key>\n<arg_value>print(1)</arg_value>\n"

QWEN_DISTORTED = {
    "indented, behind a lost closing tag": f"{HEAD}<parameter=path>\nsrc/a.py\n  {CONTENT}{END}",
    "in the line of the value": f"{HEAD}<parameter=path>\nsrc/a.py{CONTENT}{END}",
    "with its value in the line": f"{HEAD}<parameter=path>\nsrc/a.py <parameter=content>print(1)</parameter>\n{END}",
    "a blank behind a name": f"{HEAD}<parameter=path >\nsrc/a.py\n</parameter>\n{CONTENT}{END}",
    "a blank before a word": f"{HEAD}{PATH}< parameter=content>\nprint(1)\n</parameter>\n{END}",
    "blanks round the sign": f"{HEAD}{PATH}<parameter = content>\nprint(1)\n</parameter>\n{END}",
    "a blank, behind a lost closing tag": f"{HEAD}<parameter=path>\nsrc/a.py\n< {CONTENT[1:]}{END}",
    "double quotes": f'{HEAD}{PATH}<parameter="content">\nprint(1)\n</parameter>\n{END}',
    "single quotes": f"{HEAD}<parameter='path'>\nsrc/a.py\n{CONTENT}{END}",
    "an attribute": f'{HEAD}<parameter name="path">\nsrc/a.py\n</parameter>\n<parameter name=content>\nprint(1)\n{END}',
    "an attribute, behind a lost closing tag": f'{HEAD}{PATH[:-13]}<parameter name="content">\nprint(1)\n{END}',
    "the next argument behind </function>": f"{HEAD}<parameter=path>\nsrc/a.py\n</function>\n{CONTENT}{END}",
    "</function> between arguments": f"{HEAD}{PATH}</function>\n{CONTENT}{END}",
    "doubled closing tags": f"{HEAD}{PATH}</parameter>\n{CONTENT}</parameter>\n{END}",
    "a doubled opening tag": f"{HEAD}<parameter=path>\n{PATH}{CONTENT}{END}",
    "a doubled beginning": f"<tool_call>\n{HEAD}{PATH}{CONTENT}{END}\n</tool_call>",
    "a doubled tag of the function": f"{HEAD}<function=write>\n{PATH}{CONTENT}{END}",
    "both tags of an argument doubled": f"{HEAD}<parameter=path>\n{PATH}</parameter>\n{CONTENT}{END}",
    "the same in one line": f"{HEAD}<parameter=path><parameter=path>src/a.py</parameter></parameter>\n{CONTENT}{END}",
    "indented doubled closing tags": f"{HEAD}  {PATH[:-13]}  </parameter>\n  </parameter>\n{CONTENT}{END}",
    "doubled closing tags in a line": f"{HEAD}{PATH[:-1]}</parameter>\n{CONTENT[:-1]}</parameter>\n{END}",
    "</param>": f"{HEAD}<parameter=path>\nsrc/a.py\n</param>\n<parameter=content>\nprint(1)\n</param>\n{END}",
    "</Parameter>": f"{HEAD}<parameter=path>\nsrc/a.py\n</Parameter>\n{CONTENT}{END}",
    "closing tags with a name": f"{HEAD}<parameter=path>\nsrc/a.py\n</parameter=path>\n{CONTENT}{END}",
    "closing tags with a blank": f"{HEAD}<parameter=path>\nsrc/a.py\n</ parameter>\n{CONTENT}{END}",
    "line breaks of two characters": f"{HEAD}{PATH}{CONTENT}{END}".replace("\n", "\r\n"),
    "the same, and a lost closing tag": f"{HEAD}<parameter=path>\nsrc/a.py\n{CONTENT}{END}".replace("\n", "\r\n"),
    "no </function>": f"{HEAD}{PATH}{CONTENT}</tool_call>",
    "no > of an opening tag": f"{HEAD}<parameter=path\nsrc/a.py\n</parameter>\n<parameter=content\nprint(1)\n{END}",
    "no > of closing tags": f"{HEAD}<parameter=path>\nsrc/a.py\n</parameter\n{CONTENT}</function\n</tool_call",
    "no > of the beginning": f"<tool_call\n<function=write\n{PATH}{CONTENT}{END}",
    "a tag without > behind a lost one": f"{HEAD}<parameter=path>\nsrc/a.py\n<parameter=content\nprint(1)\n{END}",
    "the name of the tool in an attribute": f'<tool_call>\n<function name="write">\n{PATH}{CONTENT}{END}',
    "both closing tags at the end": f"{HEAD}<parameter=path>\nsrc/a.py\n{CONTENT}</parameter>\n{END}",
    "</parameters>": f"{HEAD}{PATH}{CONTENT}{END}".replace("</parameter>", "</parameters>"),
    "</parameters> behind the first": f"{HEAD}<parameter=path>\nsrc/a.py\n</parameters>\n{CONTENT}{END}",
    "no / of closing tags": f"{HEAD}{PATH}{CONTENT}{END}".replace("</parameter>", "<parameter>"),
    "no / of the first": f"{HEAD}<parameter=path>\nsrc/a.py\n<parameter>\n{CONTENT}{END}",
    "no / of the last": f"{HEAD}{PATH}<parameter=content>\nprint(1)\n<parameter>\n{END}",
    "no /, in a line": f"{HEAD}<parameter=path>src/a.py<parameter>\n<parameter=content>print(1)<parameter>\n{END}",
    "<parameter> between arguments": f"{HEAD}{PATH}<parameter>\n{CONTENT}<parameter>\n{END}",
    "<parameters> around the arguments": f"{HEAD}<parameters>\n{PATH}{CONTENT}</parameters>\n{END}",
    "</param> behind </parameter>": f"{HEAD}{PATH}</param>\n{CONTENT}</param>\n{END}",
    "everything indented": "".join(f"  {line}\n" for line in f"{HEAD}{PATH}{CONTENT}{END}".split("\n")).replace(
        "  src/a.py", "src/a.py").replace("  print(1)", "print(1)"),
}  # fmt: skip
WRAPPERS = {
    "in another case": ("<Tool_Call>", "</Tool_Call>"), "in capitals": ("<TOOL_CALL>", "</TOOL_CALL>"),
    "in brackets": ("[tool_call]", "[/tool_call]"), "in brackets and capitals": ("[TOOL_CALL]", "[/TOOL_CALL]"),
    "a plural": ("<tool_calls>", "</tool_calls>"), "without _": ("<toolcall>", "</toolcall>"),
    "with -": ("<tool-call>", "</tool-call>"),
    "a blank": ("< tool_call>", "</ tool_call>"), "the other blank": ("<tool_call >", "</tool_call >"),
    "distorted at its beginning alone": ("[tool_call]", "</tool_call>"),
}  # fmt: skip
ESCAPED = {
    "of HTML": ("&lt;tool_call&gt;", "&lt;/tool_call&gt;"),
    "of Markdown": ("\\<tool_call\\>", "\\</tool_call\\>"),
}
GLM_DISTORTED = {
    "doubled key tags": f"{GLM_HEAD}<arg_key><arg_key>path</arg_key></arg_key>\n{GLM_PATH[24:]}{GLM_CONTENT}{GLM_END}",
    "doubled value tags": f"{GLM_HEAD}{GLM_PATH}<arg_key>content</arg_key>\n"
    f"<arg_value><arg_value>print(1)</arg_value></arg_value>\n{GLM_END}",
    "a doubled opening tag": f"{GLM_HEAD}{GLM_PATH}<arg_key>content</arg_key>\n<arg_value>{GLM_CONTENT[27:]}{GLM_END}",
    "a doubled closing tag": f"{GLM_HEAD}{GLM_PATH[:-1]}</arg_value>\n{GLM_CONTENT}{GLM_END}",
    "doubled closing tags in two lines": f"{GLM_HEAD}{GLM_PATH}</arg_value>\n{GLM_CONTENT}</arg_value>\n{GLM_END}",
    "no <arg_key>": f"{GLM_HEAD}{GLM_PATH[9:]}{GLM_CONTENT[9:]}{GLM_END}",
    "no </arg_key>": f"{GLM_HEAD}{GLM_PATH.replace('</arg_key>', '')}{GLM_CONTENT.replace('</arg_key>', '')}{GLM_END}",
    "no <arg_value>": f"{GLM_HEAD}{GLM_PATH}{GLM_CONTENT.replace('<arg_value>', '')}{GLM_END}",
    "no </arg_value>": f"{GLM_HEAD}{GLM_PATH[:-13]}\n{GLM_CONTENT[:-13]}\n{GLM_END}",
    "swapped closing tags": f"{GLM_HEAD}<arg_key>path</arg_value>\n<arg_value>src/a.py</arg_key>\n"
    f"{GLM_CONTENT}{GLM_END}",
    "swapped tags": f"{GLM_HEAD}<arg_value>path</arg_value>\n<arg_key>src/a.py</arg_key>\n{GLM_CONTENT}{GLM_END}",
    "swapped opening tags": f"{GLM_HEAD}<arg_value>path</arg_key>\n<arg_key>src/a.py</arg_value>\n"
    f"{GLM_CONTENT}{GLM_END}",
    "an argument behind the end": f"{GLM_HEAD}{GLM_PATH}</tool_call>\n{GLM_CONTENT}{GLM_END}",
    "a doubled beginning": f"<tool_call>{GLM_HEAD}{GLM_PATH}{GLM_CONTENT}{GLM_END}</tool_call>",
    "no / of closing tags": f"{GLM_HEAD}{GLM_PATH}{GLM_CONTENT}{GLM_END}".replace("</arg_value>", "<arg_value>"),
    "no / of the first": f"{GLM_HEAD}{GLM_PATH}".replace("</arg_value>", "<arg_value>") + f"{GLM_CONTENT}{GLM_END}",
    "no <tool_call>": f"write\n{GLM_PATH}{GLM_CONTENT}{GLM_END}",
    "no <tool_call>, behind a line break": f"\nwrite\n{GLM_PATH}{GLM_CONTENT}{GLM_END}",
    "no <tool_call> and no line break": f"write{GLM_PATH}{GLM_CONTENT}{GLM_END}",
    "no > of <tool_call>": f"<tool_call\nwrite\n{GLM_PATH}{GLM_CONTENT}{GLM_END}",
    "blanks in tags": f"{GLM_HEAD}<arg_key >path</ arg_key>\n< arg_value>src/a.py</arg_value>\n{GLM_CONTENT}{GLM_END}",
}  # fmt: skip


@pytest.mark.parametrize("text", QWEN_DISTORTED.values(), ids=QWEN_DISTORTED)
def test_a_qwen_call_with_distorted_tags_is_the_call_that_was_meant(text: str) -> None:
    """The tags became text of a value, or the whole call was text."""
    (call,) = parse_in_any_pieces(QWEN3_CODER, TOOLS, text)
    assert isinstance(call, Call) and call.value == TWO and call.flags == ("repaired",)


@pytest.mark.parametrize("wrapper", [*WRAPPERS.values(), *ESCAPED.values()], ids=[*WRAPPERS, *ESCAPED])
@pytest.mark.parametrize("words", ["", "Let me write it.\n"])
@pytest.mark.parametrize("dialect", [QWEN3_CODER, GLM4], ids=lambda dialect: dialect.name)
def test_a_distorted_tool_call_around_tags_is_no_text(dialect: Dialect, wrapper: tuple[str, str], words: str) -> None:
    """Qwen's was shown to the user beside the call, and a whole call of GLM's was text."""
    text = write_call(dialect.name, "write", TWO, 0).replace("<tool_call>", wrapper[0]).replace(CLOSE, wrapper[1])
    *before, call = parse_in_any_pieces(dialect, TOOLS, words + text)
    assert before == ([words.strip()] if words else [])
    assert isinstance(call, Call) and call.value == TWO and call.flags == ("repaired",)


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("space", ["", "\n"])
def test_a_distorted_tool_call_around_json_is_a_call(wrapper: tuple[str, str], space: str) -> None:
    """The whole call was text."""
    call = json.dumps({"name": "write", "arguments": TWO})
    words, found = parse_in_any_pieces(HERMES, TOOLS, f"Look:\n{wrapper[0]}{space}{call}{space}{wrapper[1]}")
    assert words == "Look:" and isinstance(found, Call) and found.value == TWO and found.flags == ("repaired",)


ESCAPED_CALL = "\n".join(f"{HEAD}{PATH}{CONTENT}{END}".splitlines())
STAY_TEXT = [
    *((QWEN3_CODER, text) for text in (
        "Write [tool_call] before it, and [/tool_call] behind it.",
        "<Tool_Call> is the tag.",
        ESCAPED_CALL.replace("<", "&lt;").replace(">", "&gt;"),
        ESCAPED_CALL.replace("<", "\\<").replace(">", "\\>"),
        ESCAPED_CALL.replace("<", "[").replace(">", "]"),
        "[tool_call]\n<function=unknown>\n</function>\n[/tool_call]",
        "[tool_call]\n<Function=now>\n</Function>\n[/tool_call]",
    )),
    *((HERMES, text) for text in (
        '&lt;tool_call&gt;{"name": "now", "arguments": {}}&lt;/tool_call&gt;',
        '\\<tool_call\\>{"name": "now", "arguments": {}}\\</tool_call\\>',
        '[tool_call]{"name": "rm", "arguments": {}}[/tool_call]',
        '[tool_call]{"name": "write", "arguments": {"path": "a"}}[/tool_call]',
        '[tool_call]{"name": "now", "arguments": {}} and so on[/tool_call]',
        'Put it in [tool_call] and [/tool_call]: {"name": "now"}',
        '[tool_call]\n{"name": "now", "arguments": {}}\n',
    )),
    *((GLM4, text) for text in (
        "write\n<arg_key>mode</arg_key>\n<arg_value>x</arg_value>\n</tool_call>",
        "write\n<arg_key>path</arg_key>\n<arg_value>a</arg_value>\n</tool_call>",
        "write\n<arg_key>path</arg_key>\n<arg_value>a",
        f"first write\n{GLM_PATH}{GLM_CONTENT}{GLM_END}",
        f"rm\n{GLM_PATH}{GLM_CONTENT}{GLM_END}",
        f"[tool_call]rm\n{GLM_PATH}{GLM_CONTENT}[/tool_call]",
        "[tool_call] write [/tool_call]",
        "now\n</tool_call>",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "text"), STAY_TEXT)
def test_what_may_be_meant_as_text_stays_text(dialect: Dialect, text: str) -> None:
    """Escapes are how HTML and Markdown write a tag as text; no grammar holds a call that another opening begins."""
    assert parse_in_any_pieces(dialect, TOOLS, text) == [text]


@pytest.mark.parametrize("times", [120, 1500])
def test_a_reply_of_many_beginnings_of_calls_is_read_in_time(times: int) -> None:
    """Each beginning without its `<tool_call>` is read on to its end: a reply of them alone held up all others."""
    text = "write\n<arg_key>path</arg_key>\n<arg_value>" * times + "</tool_call>" * 50
    begun = time.process_time()
    (found,) = texts_and_calls(read(GLM4, TOOLS, [text]))
    assert found == text and time.process_time() - begun < 2


@pytest.mark.parametrize("opener", ["[tool_call]\n", "<Tool_Call>\n", "&lt;tool_call&gt;"])
def test_the_grammar_holds_what_follows_a_distorted_tool_call(opener: str) -> None:
    """What is read as a call must be held to its schema, whatever stands before it."""
    constraint = QWEN3_CODER.constrain(spec_for(TOOLS, Choice("auto"), markers=False))
    assert constraint is not None
    for text, admitted in (("<parameter=path>\na", True), ("<parameter=mode>\nx", False), ("<parameter=no>", False)):
        matcher = grammars().compile(constraint)
        assert matcher.advance(spelled_ids_of(f"{opener}<function=write>\n{text}")) == admitted, text


@pytest.mark.parametrize(
    "head",
    [
        "Action: Action: write\nAction Input: ", "Action:\nAction: write\nAction Input: ",
        "Action: write\nAction Input: Action Input: ", "Action: write\nAction Input:\nAction Input: ",
        "Action:Action:Action: write\nAction Input:Action Input: ",
    ],
)  # fmt: skip
def test_doubled_labels_of_react_are_labels(head: str) -> None:
    """The whole call was text, or one of the labels was."""
    words, call = parse_in_any_pieces(REACT, TOOLS, f"I write.\n{head}{json.dumps(TWO)}")
    assert words == "I write." and isinstance(call, Call) and call.value == TWO and call.flags == ("repaired",)
    text = f"{head.replace('write', 'rm')}{json.dumps(TWO)}"
    assert parse_in_any_pieces(REACT, TOOLS, text) == [text]


def test_a_number_behind_a_closing_tag_without_its_slash_is_a_number() -> None:
    (call,) = parse_in_any_pieces(QWEN3_CODER, TOOLS, f"{HEAD}{PATH}{CONTENT}<parameter=mode>\n3\n<parameter>\n{END}")
    assert isinstance(call, Call) and call.value == {**TWO, "mode": 3} and call.flags == ("repaired",)


MODE = "3\n</parameter>\n"
OPTIONAL = {
    "directly behind text, at the end of its line": f"<parameter=path>\nsrc/a.py<parameter=mode>\n{MODE}",
    "in an attribute": f'<parameter name="path">\nsrc/a.py\n<parameter name="mode">\n{MODE}',
    "in another case": f"<Parameter=path>\nsrc/a.py\n<Parameter=mode>\n{MODE}",
    "by another name": f"<param=path>\nsrc/a.py\n<param=mode>\n{MODE}",
    "without >": f"<parameter=path\nsrc/a.py\n<parameter=mode\n{MODE}",
}


@pytest.mark.parametrize("text", OPTIONAL.values(), ids=OPTIONAL)
@pytest.mark.parametrize("end", [END, "</tool_call>"], ids=["whole", "no </function>"])
def test_an_optional_argument_behind_a_lost_closing_tag_is_read_where_it_is_written_like_the_one_before(
    text: str, end: str
) -> None:
    """Only required ones were: the value swallowed it."""
    (call,) = parse_in_any_pieces(QWEN3_CODER, TOOLS, f"{HEAD}{CONTENT}{text}{end}")
    assert isinstance(call, Call) and call.value == {**TWO, "mode": 3} and "repaired" in call.flags


DOUBLED = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "kimi_k2": ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
                "<|tool_call_end|>", "<|tool_calls_section_end|>"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "tag"), [(name, tag) for name in DOUBLED for tag in DOUBLED[name]])
def test_a_doubled_marker_is_no_text_of_the_answer(name: str, tag: str) -> None:
    """One of the two was shown to the user."""
    (dialect,) = (one for one in DIALECTS if one.name == name)
    text = f"Look: {write_call(name, 'write', TWO, 0)}".replace(tag, tag * 2)
    words, call = parse_in_any_pieces(dialect, TOOLS, text)
    assert words == "Look: " and isinstance(call, Call) and call.value == TWO


@pytest.mark.parametrize("missing", ["<|tool_call_argument_begin|>", "<|tool_call_begin|>"])
def test_a_kimi_call_without_one_of_its_markers_is_a_call(missing: str) -> None:
    """It was shown as text."""
    (dialect,) = (one for one in DIALECTS if one.name == "kimi_k2")
    (call,) = parse_in_any_pieces(dialect, TOOLS, write_call("kimi_k2", "write", TWO, 0).replace(missing, ""))
    assert isinstance(call, Call) and call.value == TWO and call.flags == ("repaired",)


@pytest.mark.parametrize("text", GLM_DISTORTED.values(), ids=GLM_DISTORTED)
def test_a_glm_call_with_distorted_tags_is_the_call_that_was_meant(text: str) -> None:
    (call,) = parse_in_any_pieces(GLM4, TOOLS, text)
    assert isinstance(call, Call) and call.value == TWO and call.flags == ("repaired",)


@pytest.mark.parametrize("opener", ["", "<tool_call>\n"])
@pytest.mark.parametrize(
    ("next_call", "name"),
    [("<function=look>\n<parameter=at>\nx\n</parameter>\n", "look"), ("<function=now>\n", "now")],
)
def test_a_qwen_value_without_closing_tags_ends_where_another_tool_is_called(
    opener: str, next_call: str, name: str
) -> None:
    call, other = parse_in_any_pieces(QWEN3_CODER, TOOLS, f"{HEAD}{PATH}{CONTENT[:-13]}{opener}{next_call}{END}")
    assert isinstance(call, Call) and call.value == TWO and call.flags == ("repaired",)
    assert isinstance(other, Call) and other.name == name and other.flags == ()


FILES = {
    QWEN3_CODER: (
        f"Write it so:\n\n{HEAD}{PATH}{CONTENT}{END}\n\nand wait.",
        "Another tool:\n<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        "    <parameter=path>\n    x\n    </parameter>\n    <parameter=other>\n    y\n    </parameter>",
        "<parameter=other>\nx\n</parameter>\n<parameter=more>\ny\n</parameter>",
        "In a line: <tool_call><function=look><parameter=at>x</parameter></function></tool_call>.",
        "use <parameter=path>x</parameter> and <parameter=mode> here",
        '<all>\n  <parameter name="path">\n    x\n  </parameter>\n  <parameter name="b">y</parameter>\n</all>',
        "<function>\n<param>x</param>\n</function>\n<param name='a'/>",
        "/// <param name=\"path\">x</param>\n/// <returns>y</returns>",
        "case '</function>': return;\ncase '</tool_call>': break;\n  </parameter>\nand more",
    ),
    GLM4: (
        f"Write it so:\n\n{GLM_HEAD}{GLM_PATH}{GLM_CONTENT}{GLM_END}\n\nand wait.",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
        "the tags <arg_key> and </arg_key>, <arg_value> and </arg_value>, <arg_key>mode</arg_key>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("dialect", "value"), [(dialect, value) for dialect in FILES for value in FILES[dialect]])
def test_a_file_about_the_format_or_in_xml_is_a_value_whose_tags_are_whole(
    dialect: Dialect, value: str, first: bool
) -> None:
    """The value ended at the first of its own closing tags, or at its first tag of a declared argument."""
    arguments = {"content": value, "path": "d.md"} if first else {"path": "d.md", "content": value}
    (call,) = parse_in_any_pieces(dialect, TOOLS, write_call(dialect.name, "write", arguments, 0))
    assert isinstance(call, Call) and call.value == arguments and call.flags == ()


def test_an_example_in_a_file_that_is_cut_off_is_not_called() -> None:
    example = "<tool_call>\n<function=look>\n<parameter=at>\nx\n</parameter>\n</function>\n</tool_call>\nThis is"
    (call,) = parse_in_any_pieces(QWEN3_CODER, TOOLS, f"{HEAD}{PATH}<parameter=content>\nDoc:\n{example}")
    assert isinstance(call, Call) and call.flags == ("truncated",) and call.arguments.endswith("This is")


@pytest.mark.parametrize(
    "tag",
    [
        "\n  <parameter=content>", "\n\t<parameter=mode>", "\n<parameter=content >", "\n< parameter=content",
        "\n<parameter =content", '\n<parameter="', "\n<param=", "</parameter>\n</function>", "<parameter=content>",
        "</function>\n</tool_call>",
    ],
)  # fmt: skip
def test_the_grammar_admits_no_qwen_value_with_a_tag_that_ends_it(tag: str) -> None:
    """An indented tag of a declared parameter was text; it ends the value, so a constrained value has none."""
    begun = f"{HEAD}<parameter=path>\nsrc/a.py"
    assert admits_beginning(QWEN3_CODER, TOOLS, begun) and not admits_beginning(QWEN3_CODER, TOOLS, f"{begun}{tag}\nx")


RULES: tuple[dict[str, Any], ...] = ({"maxLength": 4000}, {"pattern": "a"}, {"pattern": "^[^x]*$", "minLength": 1})


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_qwen_value_with_rules_admits_no_tag_right_behind_text(rules: dict[str, Any]) -> None:
    """The grammar admitted a declared tag at the end of a line of text, where the parser ends the value."""
    members = {"path": {"type": "string", **rules}, **{f"p{i}": {"type": "string"} for i in range(40)}}
    tool = Tool("write", {"type": "object", "properties": members, "required": ["path"]})
    begun = f"{HEAD}<parameter=path>\nsrc/a.py"
    assert admits_beginning(QWEN3_CODER, [tool], f"{begun} <parameter> a < b")
    assert admits_beginning(QWEN3_CODER, [tool], f"{begun} <parameter=p1> a") == ("pattern" not in rules)
    assert not admits_beginning(QWEN3_CODER, [tool], f"{begun}<parameter=p1>")


@pytest.mark.parametrize(
    "tag",
    ["</arg_value>\n<arg_key>", "</tool_call>\n<arg_key>", "<arg_key>mode</arg_key>", "</arg_value>\n</arg_value>"],
)
def test_the_grammar_admits_no_glm_value_with_a_tag_that_ends_it(tag: str) -> None:
    begun = f"{GLM_HEAD}<arg_key>path</arg_key>\n<arg_value>src/a.py"
    assert admits_beginning(GLM4, TOOLS, begun) and not admits_beginning(GLM4, TOOLS, f"{begun}{tag}\nx")


@pytest.mark.parametrize(
    ("dialect", "value"),
    [
        *((QWEN3_CODER, value) for value in (
            "use <parameter=mode> here", "use <parameter=path>", "use <parameter=content>\nso",
            "a\n  <parameter=other>",
            "a\n</parameter></parameter>", 'say "<parameter=mode>"', "(<parameter=mode>)\nx", "a <parameter=mode>\nb",
            "</param>\n</function>\nx", "x</parameter>", "</Parameter>\n</function>", "a\n<parameter name=\"path\">",
            "a\n<parameter=mode", "\n<function=now>\n</function>\nx", "</tool_call>\nx", "x\r", "  </parameter>",
            "<parameter>\nx", "<parameters>\nx", "<parameters>\nx\n</parameters>", "a\n<parameter>",
            "a\n<parameter>\n</function>", "a\n<parameter>\n</function>\nb", "a\n<parameter>\n<parameter=other>\nb",
            "a <parameter></parameter> b", "a\n</parameters>\n</function>\nx", "a\n<parameters=content>\nb",
            "</param>\n</function>\n<parameters=content>\nx", "[tool_call]\n<function=now>\n</function>\n[/tool_call]",
        )),
        *((GLM4, value) for value in (
            "a <arg_key>other</arg_key> b", "<arg_key>x", "</arg_key>", "x</arg_value> mode</arg_key>",
            "a <arg_value>", "a<arg_value> </tool_call> b", "a\n<arg_value>\n<arg_key>other</arg_key>\n<arg_value>b",
            "[tool_call]now\n[/tool_call]", "a<arg_value></arg_key> b",
        )),
    ],
)  # fmt: skip
def test_what_the_grammar_admits_as_a_value_is_read_as_that_value(dialect: Dialect, value: str) -> None:
    """The text beside a value's closing tag must not make another tag of it."""
    arguments = {"path": value, "content": "x"}
    text = write_call(dialect.name, "write", arguments, 0)
    (call,) = parse_in_any_pieces(dialect, TOOLS, text)
    assert admits_beginning(dialect, TOOLS, text)
    assert isinstance(call, Call) and call.value == arguments and call.flags == ()


TAGS = {
    "qwen3_coder": ("<tool_call>", "<function=write>", "<parameter=path>", "<parameter=content>", "</parameter>",
                    "</function>", "</tool_call>"),
    "glm4": ("<tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>"),
    "hermes": ("<tool_call>", "</tool_call>", '{"name"', '"arguments": {', "}"),
    "kimi_k2": ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "functions.", "<|tool_call_argument_begin|>",
                "<|tool_call_end|>", "<|tool_calls_section_end|>"),
    "react": ("Action:", "Action Input:", "\nAction"),
}  # fmt: skip
EDITS = (
    lambda tag: "",
    lambda tag: tag * 2,
    lambda tag: tag[:-1],
    lambda tag: tag[1:],
    lambda tag: f" {tag}",
    lambda tag: f"\n{tag}\n",
    lambda tag: tag.replace(">", " >"),
    lambda tag: tag.replace("<", "< "),
    lambda tag: tag.title(),
    lambda tag: tag.replace("</", "<"),
    lambda tag: tag.replace("parameter", "param"),
    lambda tag: tag.replace("parameter", "parameters"),
    lambda tag: tag.replace("<", "[").replace(">", "]"),
    lambda tag: tag.replace("<", "&lt;").replace(">", "&gt;"),
    lambda tag: tag.replace("=path", "").replace("=content", ""),
    lambda tag: tag.replace("\n", "\r\n"),
)
VALUES = st.sampled_from(
    (
        "",
        "x",
        "a\nb\n",
        "  indented",
        "</parameter>",
        "<parameter=path>\nx\n</parameter>",
        "<arg_value>",
        '{"a": 1}',
        "é🌧️",
    )
)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_call_with_distorted_tags_loses_no_text_and_streams_as_it_is_whole(
    dialect: Dialect, data: st.DataObject
) -> None:
    arguments = {"path": f"Q1{data.draw(VALUES)}Q2", "content": f"Q3{data.draw(VALUES)}Q4"}
    text = f"Q5 {write_call(dialect.name, 'write', arguments, 0)}\n{write_call(dialect.name, 'now', {}, 1)} Q6"
    for _ in range(data.draw(st.integers(1, 3))):
        tag = data.draw(st.sampled_from(TAGS[dialect.name]))
        places = [place for place in range(len(text)) if text.startswith(tag, place)]
        if places:
            place = data.draw(st.sampled_from(places))
            text = text[:place] + data.draw(st.sampled_from(EDITS))(tag) + text[place + len(tag) :]
    whole = read(dialect, TOOLS, [text])
    for size in (1, 2, 5, data.draw(st.integers(3, 40))):
        assert read(dialect, TOOLS, cut_evenly(text, size)) == whole, text
    parts = texts_and_calls(whole)
    kept = "".join(part if isinstance(part, str) else part.arguments + part.raw for part in parts)
    assert all(f"Q{number}" in kept for number in range(1, 7)), text
