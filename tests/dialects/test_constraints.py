"""Third law of a dialect: whatever a grammar admits is parsed as schema-valid calls. Replies that each mode admits."""

import json
import re
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from server.dialects.base import Choice, ConstraintSpec, CustomFormat, Dialect, ResponseFormat, Tool
from server.dialects.glm4 import GLM4
from server.dialects.hermes import HERMES
from server.dialects.qwen3_coder import QWEN3_CODER
from server.dialects.react import REACT
from server.dialects.registry import DIALECTS
from server.dialects.schema.custom import satisfies
from server.errors import BadSchema
from tests.dialects.fuzz import write_call
from tests.dialects.parse_helpers import Call, cut_evenly, parse_in_any_pieces, read, texts_and_calls
from tests.dialects.random_walks import (
    MARKER_IDS,
    STOP_IDS,
    allowed_ids,
    grammars,
    ids_of,
    spec_for,
    spelled_ids_of,
    walk,
)
from tests.dialects.tools import make_tools

TOOLS = make_tools()
FORCED = Choice("required")
every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
LOOK = Tool("look", {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]})
GO = Tool("go", {"type": "object", "properties": {"n": {"type": "integer"}}})


def accepts(dialect: Dialect, spec: ConstraintSpec, text: str) -> bool:
    """Whether the grammar admits exactly this reply."""
    constraint = dialect.constrain(spec)
    assert constraint is not None
    matcher = grammars().compile(constraint)
    ids = ids_of(text) if spec.marker_ids else spelled_ids_of(text)
    if not matcher.advance(ids):
        return False
    return any(stop in allowed_ids(matcher) for stop in STOP_IDS)


def check_calls(dialect: Dialect, tools: Sequence[Tool], text: str) -> list[Call]:
    """Return the calls of a reply of calls alone; each satisfies its schema by an independent validator."""
    events = read(dialect, tools, [text])
    assert read(dialect, tools, cut_evenly(text, 3)) == events
    calls = texts_and_calls(events)
    schemas = {tool.name: tool.parameters for tool in tools}
    for call in calls:
        assert isinstance(call, Call), (call, text)
        assert call.flags == (), (call, text)
        schema = schemas[call.name]
        errors = list(Draft202012Validator(dict(schema)).iter_errors(call.value)) if schema else []
        assert not errors and isinstance(call.value, dict), (errors, text)
    return [call for call in calls if isinstance(call, Call)]


DOMAINS = [
    pytest.param(dialect, domain, marks=() if domain // 2 == place else pytest.mark.long, id=f"{dialect.name}-{domain}")
    for place, dialect in enumerate(DIALECTS)
    for domain in range(10)
]
# Formats of one kind share the code of their grammars: one of JSON and one of tags.
one_of_each_kind = pytest.mark.parametrize(
    "dialect",
    [
        pytest.param(dialect, marks=() if dialect in (HERMES, QWEN3_CODER) else pytest.mark.long, id=dialect.name)
        for dialect in DIALECTS
    ],
)


@pytest.mark.parametrize(("dialect", "domain"), DOMAINS)
def test_every_call_that_the_grammar_admits_satisfies_its_schema(dialect: Dialect, domain: int) -> None:
    ended = 0
    for number in range(domain, len(TOOLS), 10):
        tool = TOOLS[number]
        found = walk(dialect, spec_for([tool], Choice("required", parallel=False)), (dialect.name, number))
        if found.ended:
            (call,) = check_calls(dialect, [tool], found.text)
            assert call.name == tool.name
        ended += found.ended
    assert ended >= 18, "walks must come to an end, or they show nothing"


OPENERS = {
    "hermes": "<tool_call>",
    "qwen3_coder": "<tool_call>",
    "glm4": "<tool_call>",
    "kimi_k2": "<|tool_calls_section_begin|>",
    "react": "\nAction:",
}


@every_dialect
@pytest.mark.parametrize("cut", [ids_of, spelled_ids_of], ids=["token", "spelled"])
def test_in_auto_a_call_that_was_opened_is_valid_to_its_end(dialect: Dialect, cut: Callable[[str], Any]) -> None:
    ended = 0
    for number in range(0, 60, 5):
        tool, begun = TOOLS[number], cut("Let me see: a < b." + OPENERS[dialect.name])
        spec = spec_for([tool], Choice("auto", parallel=False))
        found = walk(dialect, spec, (dialect.name, "auto", number), begun=begun)
        if found.ended:
            text, call = texts_and_calls(read(dialect, [tool], [found.text]))
            assert text == "Let me see: a < b." and isinstance(call, Call)
            assert call.name == tool.name and call.flags == (), found.text
        ended += found.ended
    assert ended >= 9


@every_dialect
def test_several_calls_of_many_tools(dialect: Dialect) -> None:
    tools = TOOLS[40:72]
    counts = []
    for seed in range(12):
        found = walk(dialect, spec_for(tools, FORCED), (dialect.name, "many", seed), most=900)
        if found.ended:
            counts.append(len(check_calls(dialect, tools, found.text)))
    assert min(counts) >= 1 and max(counts) > 1


@every_dialect
def test_case_19_and_21_required_gives_a_call_and_can_stop_after_it(dialect: Dialect) -> None:
    call = write_call(dialect.name, "look", {"at": "x"}, 0).lstrip()
    for choice in (FORCED, Choice("required", frozenset({"look"})), Choice("required", parallel=False)):
        assert accepts(dialect, spec_for([LOOK, GO], choice), call)
        for text in ("", "I will look.", "{}"):
            assert not accepts(dialect, spec_for([LOOK, GO], choice), text)


@every_dialect
def test_case_22_required_admits_several_calls(dialect: Dialect) -> None:
    call = write_call(dialect.name, "look", {"at": "x"}, 0).lstrip()
    between = "" if dialect.name == "kimi_k2" else "\n"
    two = call + between + call
    if dialect.name == "kimi_k2":
        two = two.replace("<|tool_calls_section_end|><|tool_calls_section_begin|>", "")
    assert accepts(dialect, spec_for([LOOK], FORCED), two)
    assert len(check_calls(dialect, [LOOK], two)) == 2
    assert not accepts(dialect, spec_for([LOOK], Choice("required", parallel=False)), two)


@every_dialect
def test_case_23_none_admits_text_but_no_call(dialect: Dialect) -> None:
    spec = spec_for([LOOK], Choice("none"))
    call = write_call(dialect.name, "look", {"at": "x"}, 0).lstrip()
    assert accepts(dialect, spec, "a < b, {}, <tool>, Actions, ünïcödé\n\n| t |")
    assert not accepts(dialect, spec, call)
    assert not accepts(dialect, spec, f"Well:\n{call}")


@every_dialect
def test_case_24_a_named_or_disallowed_tool_is_the_only_one_or_none(dialect: Dialect) -> None:
    look, go = (write_call(dialect.name, name, args, 0).lstrip() for name, args in (("look", {"at": "x"}), ("go", {})))
    for mode in ("auto", "required"):
        spec = spec_for([LOOK, GO], Choice(mode, frozenset({"go"})))
        assert accepts(dialect, spec, go)
        assert not accepts(dialect, spec, look)


@every_dialect
@pytest.mark.parametrize("markers", [True, False])
def test_auto_admits_any_text_and_what_opens_a_call_is_one(dialect: Dialect, markers: bool) -> None:
    """The opener may be one token, or several where the vocabulary has no such token."""
    spec = spec_for([LOOK], Choice("auto"), markers)
    call = write_call(dialect.name, "look", {"at": 'a "b" <c>'}, 0)
    for text in (
        "",
        "Hello, a < b.",
        "<tool> </tool_call",
        "```json\n{}\n```",
        '{"name": "look"}',
        "Action",
        "Act: x\n\n",
    ):
        assert accepts(dialect, spec, text), text
    assert accepts(dialect, spec, f"Let me see.{call}")
    assert not accepts(dialect, spec, f"Let me see.{call}".replace("look", "hook"))
    assert not accepts(dialect, spec, f"Let me see.{call[: call.index('look')]}")


@every_dialect
def test_case_27_auto_without_parallel_calls_ends_after_the_first(dialect: Dialect) -> None:
    spec = spec_for([GO], Choice("auto", parallel=False))
    call = write_call(dialect.name, "go", {"n": 1}, 0)
    assert accepts(dialect, spec, f"Going.{call}")
    assert not accepts(dialect, spec, f"Going.{call} Gone.")
    assert not accepts(dialect, spec, f"Going.{call}\n{call.lstrip()}")


@every_dialect
def test_case_26_an_answer_format_with_tools_admits_valid_json_or_a_valid_call(dialect: Dialect) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    spec = ConstraintSpec([GO], Choice("auto"), ResponseFormat(schema), MARKER_IDS)
    assert accepts(dialect, spec, '{"ok": true}')
    assert accepts(dialect, spec, write_call(dialect.name, "go", {"n": 1}, 0).lstrip())
    assert not accepts(dialect, spec, "Sure!")
    assert not accepts(dialect, spec, '{"ok": 1}')
    assert not accepts(dialect, ConstraintSpec([GO], Choice("none"), ResponseFormat(schema), MARKER_IDS), "Sure!")
    assert accepts(dialect, ConstraintSpec([], Choice("none"), ResponseFormat(None), {}), '{"any": [1, null]}')


@every_dialect
def test_case_18_after_a_think_block_a_forced_call_may_begin_with_a_blank_line(dialect: Dialect) -> None:
    call = write_call(dialect.name, "go", {"n": 1}, 0).lstrip()
    plain = spec_for([GO], FORCED)
    after = ConstraintSpec([GO], FORCED, None, MARKER_IDS, after_thinking=True)
    assert [accepts(dialect, spec, f"\n\n{call}") for spec in (plain, after)] == [False, True]
    assert accepts(dialect, after, call)
    assert parse_in_any_pieces(dialect, [GO], f"\n\n{call}") == [Call("go", '{"n": 1}')]


@every_dialect
def test_a_request_without_tools_or_format_has_no_constraint(dialect: Dialect) -> None:
    assert dialect.constrain(ConstraintSpec([], Choice("none"), None, MARKER_IDS)) is None


CUSTOM = (
    Tool("sums", custom=True, format=CustomFormat("lark", 'start: NUM ("+" NUM)*\nNUM: /[0-9]+/')),
    Tool("word", custom=True, format=CustomFormat("regex", '[a-c]{2,3}[."\\n]')),
    Tool("free", custom=True),
    Tool("page", custom=True, format=CustomFormat("regex", r"[\s\S]{0,60}")),
)


@every_dialect
@pytest.mark.parametrize("tool", CUSTOM, ids=lambda tool: tool.name)
def test_custom_tools_are_given_text_that_their_grammar_admits(dialect: Dialect, tool: Tool) -> None:
    patterns = {"sums": r"[0-9]+(\+[0-9]+)*", "word": CUSTOM[1].format.definition}  # type: ignore[union-attr]
    ended = 0
    for seed in range(8):
        found = walk(dialect, spec_for([tool], Choice("required", parallel=False)), (dialect.name, tool.name, seed))
        if found.ended:
            (call,) = texts_and_calls(read(dialect, [tool], [found.text]))
            assert isinstance(call, Call) and call.flags == () and call.name == tool.name
            assert re.fullmatch(patterns.get(tool.name, r"[\s\S]*"), call.arguments), (call, found.text)
        ended += found.ended
    assert ended >= 4, "walks must come to an end, or they show nothing"


@every_dialect
@pytest.mark.parametrize("definition", [r"[\s\S]{0,60}", r"(.|\n)*", r"[a-z<>/=\n]+", r"ls|pwd"])
def test_a_custom_text_ends_where_the_model_ends_it_even_if_its_pattern_takes_markup(
    dialect: Dialect, definition: str
) -> None:
    """In the tagged formats the pattern must not match the closing tag, or the call could not end."""
    tool = Tool("run", custom=True, format=CustomFormat("regex", definition))
    text = write_call(dialect.name, "run", {"input": "ls"}, 0).removeprefix("\n")
    for markers in (True, False):
        assert accepts(dialect, spec_for([tool], FORCED, markers), text)


CLOSED_EARLY = {  # what closes a custom tool's raw text in each format
    "hermes": "\n</input>\n",
    "qwen3_coder": "\n</parameter>\n</function>\n",
    "glm4": "</arg_value>\n</tool_call>",
    "kimi_k2": "<|tool_call_end|>",
    "react": "\nObservation:",
}


@every_dialect
def test_a_lark_text_that_holds_its_own_closing_markup_ends_there_and_is_flagged_invalid(dialect: Dialect) -> None:
    """In raw text such markup cannot be distinguished from the real one; the text after it is not lost."""
    grammar = f"start: {json.dumps('a' + CLOSED_EARLY[dialect.name] + 'b')}"
    tool = Tool("odd", custom=True, format=CustomFormat("lark", grammar))
    found = walk(dialect, spec_for([tool], Choice("required", parallel=False)), dialect.name)
    call, *rest = texts_and_calls(read(dialect, [tool], [found.text]))
    assert isinstance(call, Call) and (call.arguments, call.flags) == ("a", ("invalid",))
    assert "b" in str(rest) or dialect is REACT  # a ReAct reply ends before "Observation:" in any case


@pytest.mark.parametrize(
    ("form", "text", "good"),
    [
        (CustomFormat("lark", 'start: "a"+'), "aaa", True),
        (CustomFormat("lark", 'start: "a"+'), "", False),
        (CustomFormat("lark", 'start: "a"+'), "aab", False),
        (CustomFormat("regex", "[a-z]+\\."), "abc.", True),
        (CustomFormat("regex", "[a-z]+\\."), 'a"b.', False),
        (CustomFormat("lark", "start: /(?s:.*)/"), "äö 🏔\n" * 1000, True),
    ],
)
def test_a_custom_text_is_checked_against_its_grammar_when_it_is_complete(
    form: CustomFormat, text: str, good: bool
) -> None:
    assert satisfies(form, text) is good


def test_a_custom_grammar_that_does_not_compile_is_refused_by_the_tool_s_place() -> None:
    for syntax, text in (("lark", "start: nothing"), ("regex", "a("), ("lark", "start: /a/\n}\nx: {")):
        bad = Tool("bad", custom=True, format=CustomFormat(syntax, text), param="tools[1]")  # type: ignore[arg-type]
        with pytest.raises(BadSchema) as caught:
            HERMES.constrain(spec_for([LOOK, bad], FORCED))
        assert caught.value.param == "tools[1]"


@every_dialect
def test_compact_json_admits_no_run_of_white_space_and_no_endless_integer(dialect: Dialect) -> None:
    tool = Tool("f", {"type": "object", "properties": {"x": {"type": "integer"}, "o": {"type": "object"}}})
    for arguments in ({"x": 5}, {"o": {"a": 1}}):
        text = write_call(dialect.name, "f", arguments, 0).lstrip()
        assert accepts(dialect, spec_for([tool], FORCED), text)
    text = write_call(dialect.name, "f", {"x": 5, "o": {}}, 0).lstrip()
    assert not accepts(dialect, spec_for([tool], FORCED), text.replace("{}", "{  }"))
    assert not accepts(dialect, spec_for([tool], FORCED), text.replace("5", "3" * 40))


@every_dialect
def test_a_number_beyond_a_double_is_a_number(dialect: Dialect) -> None:
    """JSON bounds no exponent, so the grammar admits it; flagged invalid, an allowed call would not be valid."""
    tool = Tool("f", {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]})
    text = write_call(dialect.name, "f", {"x": 5}, 0).lstrip().replace("5", "-923e+370")
    assert accepts(dialect, spec_for([tool], FORCED), text)
    assert texts_and_calls(read(dialect, [tool], [text])) == [Call("f", '{"x": -923e+370}')]


@every_dialect
@pytest.mark.parametrize("more", [{}, {"anyOf": [{"required": ["x"]}, {"properties": {"y": {}}}]}])
def test_arguments_are_an_object_whether_the_schema_says_so_or_not(dialect: Dialect, more: Any) -> None:
    tool = Tool("f", {"properties": {"x": {"type": "integer"}}, **more})
    text = write_call(dialect.name, "f", {"x": 1}, 0).lstrip()
    assert accepts(dialect, spec_for([tool], FORCED), text)
    for value in ("5", '"x"', "null", "[]"):
        if '{"x": 1}' in text:
            assert not accepts(dialect, spec_for([tool], FORCED), text.replace('{"x": 1}', value))


PAIR = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}


@every_dialect
def test_members_come_in_the_schema_s_order_and_are_read_in_any(dialect: Dialect) -> None:
    tool = Tool("f", {**PAIR, "properties": {"o": PAIR, "n": {"type": "integer"}}, "required": ["n"]})
    spec = spec_for([tool], FORCED)
    orders: tuple[tuple[dict[str, Any], bool], ...] = (
        ({"o": {"a": 1, "b": 2}, "n": 1}, True),
        ({"o": {"b": 2}, "n": 1}, True),
        ({"n": 1}, True),
        ({"o": {}}, False),
        ({"n": 1, "o": {}}, False),
        ({"o": {"b": 2, "a": 1}, "n": 1}, False),
    )
    for arguments, good in orders:
        text = write_call(dialect.name, "f", arguments, 0).lstrip()
        assert accepts(dialect, spec, text) is good, arguments
        if "n" in arguments:
            assert check_calls(dialect, [tool], text)[0].value == arguments


def test_tags_that_are_tokens_of_the_vocabulary_are_written_as_tokens() -> None:
    """GLM's vocabulary has its tags; three of Qwen's tokens replace them here."""
    spare = {"</arg_value>": 151_659, "<arg_key>": 151_660, "</arg_key>": 151_661, "<arg_value>": 151_662}
    constraint = GLM4.constrain(ConstraintSpec([LOOK], FORCED, None, {**MARKER_IDS, **spare}))
    assert constraint is not None
    matcher = grammars().compile(constraint)
    head = [MARKER_IDS["<tool_call>"], *ids_of("look\n"), spare["<arg_key>"], *ids_of("at"), spare["</arg_key>"]]
    head += [*ids_of("\n"), spare["<arg_value>"], *ids_of("a </arg_value> b")]
    assert matcher.advance(head)
    assert matcher.advance([spare["</arg_value>"], *ids_of("\n"), MARKER_IDS["</tool_call>"]])


def test_a_react_action_opens_only_at_the_beginning_of_a_line() -> None:
    spec = spec_for([LOOK], Choice("auto"))
    assert accepts(REACT, spec, "My Action: nothing")
    assert not accepts(REACT, spec, "Action: nothing")
    assert not accepts(REACT, spec, "Thought: so\nAction: nothing")


def big_schema(properties: int) -> dict[str, Any]:
    inner = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": ["integer", "null"]}}}
    return {
        "type": "object",
        "properties": {f"property_{i}": {**inner, "description": "x" * 40} for i in range(properties)},
    }


@one_of_each_kind
@pytest.mark.parametrize(
    "tools",
    [
        [Tool("big", big_schema(500))],
        [Tool(f"tool_{i}", big_schema(4)) for i in range(128)],
        [Tool("long", {"type": "object", "properties": {"s": {"type": "string", "maxLength": 10**6}}})],
        [Tool("evil", {"type": "object", "properties": {"s": {"type": "string", "pattern": "^(a+)+$"}}})],
        [Tool("huge", {"type": "object", "properties": {"s": {"type": "string", "pattern": "(x{1,999}){1,999}"}}})],
        [Tool("looks", {"type": "object", "properties": {"s": {"type": "string", "pattern": "(?=a)b"}}})],
        [Tool("many", {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(48)}})],
        [Tool("not", {"type": "object", "properties": {"s": {"not": {"type": "null"}}}, "if": {}, "then": {}})],
    ],
    ids=lambda tools: tools[0].name,
)
def test_case_31_big_and_hostile_schemas_compile_or_are_refused(dialect: Dialect, tools: list[Tool]) -> None:
    found = walk(dialect, spec_for(tools, FORCED), (dialect.name, "hostile"), most=40)
    assert found.text


@every_dialect
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "anyOf": [{"minLength": 3}, {"maxLength": 1}]}, ("abc", "a", ""), ("ab",)),
        ({"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "b$"}]}, ("ab", "a-b"), ("a", "b")),
        (
            {"type": "string", "minLength": 2, "anyOf": [{"pattern": "^x"}, {"$ref": "#/$defs/y"}]},
            ("xx", "yy"),
            ("x", "z"),
        ),
        ({"type": ["string", "null"], "anyOf": [{"const": None}, {"pattern": "^[0-9]+$"}]}, ("42", None), ("forty",)),
    ],
)
def test_strings_keep_every_rule_beside_another(
    dialect: Dialect, schema: Any, good: tuple[Any, ...], bad: tuple[Any, ...]
) -> None:
    """In the tagged formats the grammar must enforce the keywords beside the type, under `strict` too."""
    shape = {"type": "object", "properties": {"at": schema}, "required": ["at"], "additionalProperties": False}
    tool = Tool("look", {**shape, "$defs": {"y": {"pattern": "^y"}}}, strict=True)
    for value in (*good, *bad):
        text = write_call(dialect.name, "look", {"at": value}, 0).removeprefix("\n")
        assert accepts(dialect, spec_for([tool], FORCED), text) is (value in good), value
        if value in good:
            assert check_calls(dialect, [tool], text)[0].value == {"at": value}


def with_definitions(count: int, shared: bool) -> Tool:
    """A tool whose members refer to a definition each; `shared`: each definition reaches all others."""
    definitions: dict[str, Any] = {
        f"d{i}": {"type": "object", "properties": {"x": {"enum": [f"{'y' * 80}{i}"]}}, "additionalProperties": False}
        for i in range(count)
    }
    if shared:
        definitions["d0"] = {"anyOf": [{"$ref": f"#/$defs/d{i}"} for i in range(1, count)]}
    members = {f"p{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{0 if shared else i}"}} for i in range(count)}
    return Tool("f", {"type": "object", "properties": members, "$defs": definitions})


@one_of_each_kind
def test_definitions_are_not_copied_into_every_rule(dialect: Dialect) -> None:
    tool = with_definitions(700, shared=False)
    constraint = dialect.constrain(spec_for([tool], FORCED))
    assert constraint and len(constraint.source) < 3 * len(json.dumps(tool.parameters))


@pytest.mark.parametrize("dialect", [QWEN3_CODER, GLM4], ids=lambda dialect: dialect.name)
def test_a_grammar_that_grows_beyond_the_engine_s_limit_is_refused_while_it_is_built(dialect: Dialect) -> None:
    tracemalloc.start()
    with pytest.raises(BadSchema, match="longer than"):
        dialect.constrain(spec_for([with_definitions(350, shared=True)], FORCED))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
