"""Parsing problems reported by users of other servers; numbers refer to the list of cases."""

import json

import pytest

from server.dialects.base import Dialect, Tool
from server.dialects.glm4 import GLM4
from server.dialects.hermes import HERMES
from server.dialects.kimi_k2 import KIMI_K2
from server.dialects.qwen3_coder import QWEN3_CODER
from server.dialects.react import REACT
from server.dialects.registry import DIALECTS
from server.events import CallArguments, CallOpened
from tests.dialects.fuzz import write_call
from tests.dialects.parse_helpers import Call, cut_evenly, parse_in_any_pieces, read

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "ratio": {"type": "number"},
            "detail": {"type": "boolean"},
            "note": {"type": ["string", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "code": {"type": "string"},
        },
        "required": ["city"],
    },
)
NOW = Tool("now")
TOOLS = (WEATHER, NOW)
every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


def hermes(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def hermes_call(arguments: str) -> str:
    return hermes(f'{{"name": "get_weather", "arguments": {arguments}}}')


def one_call(text: str, dialect: Dialect = HERMES) -> Call:
    (call,) = parse_in_any_pieces(dialect, TOOLS, text)
    assert isinstance(call, Call)
    return call


@every_dialect
def test_case_01_a_call_without_parameters_has_empty_arguments(dialect: Dialect) -> None:
    assert one_call(write_call(dialect.name, "now", {}, 0), dialect) == Call("now", "{}")


@pytest.mark.parametrize("text", [hermes('{"name": "now"}'), hermes('{"name": "now", "arguments": null}')])
def test_case_02_no_arguments_at_all_are_empty_arguments(text: str) -> None:
    assert one_call(text).arguments == "{}"


@every_dialect
def test_case_03_joined_pieces_are_the_whole_whatever_the_pieces(dialect: Dialect) -> None:
    arguments = {"city": 'a "b" \\ c\n\t天気🌧️', "days": -3, "tags": ["x", "</s>"]}
    text = "First.\n" + write_call(dialect.name, "get_weather", arguments, 0)
    assert parse_in_any_pieces(dialect, TOOLS, text)[0] == "First."
    found = parse_in_any_pieces(dialect, TOOLS, text)[1]
    assert isinstance(found, Call) and found.value == arguments


@every_dialect
def test_case_04_several_whole_calls_in_one_piece_are_all_emitted(dialect: Dialect) -> None:
    text = "\n".join(write_call(dialect.name, "get_weather", {"city": f"c{i}"}, i) for i in range(5))
    found = parse_in_any_pieces(dialect, TOOLS, text)
    assert [call.value["city"] for call in found if isinstance(call, Call)] == [f"c{i}" for i in range(5)]
    assert len(found) == 5


@every_dialect
def test_case_05_arguments_after_an_empty_call_belong_to_the_next(dialect: Dialect) -> None:
    text = write_call(dialect.name, "now", {}, 0) + "\n" + write_call(dialect.name, "get_weather", {"city": "Oslo"}, 1)
    events = read(dialect, TOOLS, [text])
    assert [event for event in events if isinstance(event, CallArguments)] == [
        CallArguments(0, "{}"),
        CallArguments(1, '{"city": "Oslo"}'),
    ]


@every_dialect
@pytest.mark.parametrize("inside", ["</tool_call>", "<tool_call>", "</parameter>", "</arg_value>", "<|tool_call_end|>"])
def test_case_06_markup_inside_a_string_is_kept(dialect: Dialect, inside: str) -> None:
    value = f"see {inside} and {inside}\nthere"
    call = one_call(write_call(dialect.name, "get_weather", {"city": value}, 0), dialect)
    assert call.value == {"city": value} and call.flags == ()


@every_dialect
def test_case_07_a_call_that_is_cut_off_is_flagged_and_leaves_no_markup_in_text(dialect: Dialect) -> None:
    whole = write_call(dialect.name, "get_weather", {"city": "Paris"}, 0)
    cut = whole[: whole.index("Paris") + 3]
    call = one_call(cut, dialect)
    assert call == Call("get_weather", '{"city": "Par', ("truncated",), cut)


@every_dialect
def test_case_08_text_before_between_and_after_calls_is_kept_in_order(dialect: Dialect) -> None:
    a, b = (write_call(dialect.name, "get_weather", {"city": city}, i) for i, city in enumerate("AB"))
    found = parse_in_any_pieces(dialect, TOOLS, f"before {a}\nbetween {b}\nafter")
    assert [one if isinstance(one, str) else one.value["city"] for one in found] == [
        "before ", "A", "\nbetween ", "B", "\nafter",
    ]  # fmt: skip


MALFORMED = {
    HERMES: hermes('{"name": get_weather, "arguments": {}}'),
    QWEN3_CODER: "<tool_call>\n<function=get_weather>\nParis\n</function>\n</tool_call>",
    GLM4: "<tool_call>get_weather\nParis\n</tool_call>",
    KIMI_K2: "<|tool_calls_section_begin|>now<|tool_calls_section_end|>",
    REACT: "\nAction: get_weather\nAction Input: Paris",
}


@every_dialect
def test_case_09_a_malformed_call_is_text_and_the_valid_one_after_it_is_a_call(dialect: Dialect) -> None:
    bad = MALFORMED[dialect]
    text, call = parse_in_any_pieces(dialect, TOOLS, f"{bad}\n" + write_call(dialect.name, "now", {}, 0))
    assert text == bad
    assert call == Call("now", "{}")


def json_call(dialect: Dialect, arguments: str) -> str:
    """Return a call with this text as arguments, in one of the JSON formats."""
    return write_call(dialect.name, "get_weather", {}, 0).replace("{}", arguments)


every_json_dialect = pytest.mark.parametrize("dialect", [HERMES, KIMI_K2, REACT], ids=lambda dialect: dialect.name)


@every_json_dialect
@pytest.mark.parametrize("raw", ["a\nb", "a\tb", "a\r\nb", "a\x00b", "a\x1bb"])
def test_case_10_control_characters_in_strings_are_escaped(dialect: Dialect, raw: str) -> None:
    call = one_call(json_call(dialect, f'{{"city": "{raw}"}}'), dialect)
    assert call.value == {"city": raw}
    assert call.flags == ("repaired",) and raw in call.raw


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('{"city": "C:\\dir"}', {"city": "C:\\dir"}),
        ('{"city": "\\u12"}', {"city": "\\u12"}),
        ('{"city": "it\\\'s"}', {"city": "it's"}),
        ('{"city": "he said "hi" to me"}', {"city": 'he said "hi" to me'}),
        ('{"city": "he said "hi", twice"}', {"city": 'he said "hi", twice'}),
        ('{"city": "x", "detail": True, "note": None}', {"city": "x", "detail": True, "note": None}),
        ("{'city': 'it is \"x\"', 'days': 3}", {"city": 'it is "x"', "days": 3}),
        ('{"city": "x", "tags": ["a", "b",],}', {"city": "x", "tags": ["a", "b"]}),
        ('{"city": "x", "tags": ["a"', {"city": "x", "tags": ["a"]}),
    ],
)
def test_case_11_mistakes_with_one_meaning_are_repaired_and_flagged(written: str, meant: object) -> None:
    head = '{"name": "get_weather", "arguments": '
    call = one_call(hermes(head + written + ("}" if written[-1] == "}" else "")))
    assert call.value == meant
    assert call.flags == ("repaired",) and written in call.raw


@every_json_dialect
@pytest.mark.parametrize("written", ['{"city": "C:\\dir"}', "{'city': 'C:\\\\dir'}", '{"city": "C:\\dir",}'])
def test_case_11_every_json_format_repairs_the_same_mistakes(dialect: Dialect, written: str) -> None:
    call = one_call(json_call(dialect, written), dialect)
    assert call.value == {"city": "C:\\dir"} and call.flags == ("repaired",)


def test_case_11_ambiguous_mistakes_are_passed_on_and_flagged_invalid() -> None:
    call = one_call(hermes_call('{"city": Paris, "days": 2}'))
    assert call.arguments == '{"city": Paris, "days": 2}'
    assert call.flags == ("invalid",) and "Paris" in call.raw


@pytest.mark.parametrize(
    ("body", "flags"),
    [
        ('{"name": "get_weather", "parameters": {"city": "Rome"}}', ("repaired",)),
        ('{"arguments": {"city": "Rome"}, "name": "get_weather"}', ()),
        ('{"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\"}"}', ("repaired",)),
        ('{"name": "get_weather", "arguments": "\\"{\\\\\\"city\\\\\\": \\\\\\"Rome\\\\\\"}\\""}', ("repaired",)),
        ('{"type": "function", "name": "get_weather", "arguments": {"city": "Rome"}}', ("repaired",)),
    ],
)
def test_case_12_other_spellings_are_normal_calls(body: str, flags: tuple[str, ...]) -> None:
    call = one_call(hermes(body))
    assert call.value == {"city": "Rome"} and call.flags == flags


@every_json_dialect
def test_case_12_arguments_in_a_json_string_are_decoded(dialect: Dialect) -> None:
    call = one_call(json_call(dialect, json.dumps('{"city": "Rome"}')), dialect)
    assert call.value == {"city": "Rome"} and call.flags == ("repaired",)


@pytest.mark.parametrize(
    ("dialect", "closing"),
    [
        (HERMES, "\n</tool_call>"),
        (QWEN3_CODER, "\n</tool_call>"),
        (KIMI_K2, "<|tool_calls_section_end|>"),
        (KIMI_K2, "<|tool_call_end|><|tool_calls_section_end|>"),
    ],
)
def test_case_13_a_missing_end_of_the_last_call_does_not_hide_it(dialect: Dialect, closing: str) -> None:
    """In GLM's format only that end distinguishes a whole call from one cut off between two arguments."""
    whole = write_call(dialect.name, "get_weather", {"city": "Rome"}, 0)
    assert whole.endswith(closing)
    assert one_call(whole.removesuffix(closing), dialect).value == {"city": "Rome"}


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "now", "arguments": {}}</tool_call>',
        '<tool_call>\n{"name": "now", "arguments": {}}',
        '<tool_call> {"name": "now", "arguments": {}} ',
        '<tool_call>\n[{"name": "now", "arguments": {}}]\n</tool_call>',
    ],
)
def test_case_13_missing_line_breaks_and_closing_tags_do_not_hide_a_call(text: str) -> None:
    assert one_call(text) == Call("now", "{}")


def test_case_13_several_calls_in_one_tag() -> None:
    body = '{"name": "now", "arguments": {}}\n{"name": "get_weather", "arguments": {"city": "x"}}'
    assert [call.name for call in parse_in_any_pieces(HERMES, TOOLS, hermes(body)) if isinstance(call, Call)] == [
        "now",
        "get_weather",
    ]


@pytest.mark.parametrize(("opening", "closing"), [("<tools>", "</tools>"), ("```json", "```")])
def test_case_14_calls_without_their_tag_are_calls_if_they_are_nothing_else(opening: str, closing: str) -> None:
    def wrapped(body: str) -> str:
        return f"{opening}\n{body}\n{closing}"

    call = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
    found = one_call(wrapped(call))
    assert found.value == {"city": "Rome"} and found.flags == ("repaired",)
    assert len(parse_in_any_pieces(HERMES, TOOLS, wrapped(f"{call}\n{call}"))) == 2
    for other in (
        '{"city": "Rome"}',
        '{"name": "unknown", "arguments": {}}',
        '{"name": "get_weather", "arguments": {}}',
    ):
        assert parse_in_any_pieces(HERMES, TOOLS, wrapped(other)) == [wrapped(other)]


def test_case_14_an_example_in_a_fence_is_not_held_back() -> None:
    parser = HERMES.parser(TOOLS)
    assert parser.feed('```json\n{"a": 1')


@every_dialect
def test_case_28_indices_count_calls_from_zero(dialect: Dialect) -> None:
    text = "\n".join(write_call(dialect.name, name, {"city": "x"}, 0) for name in ("get_weather", "now", "get_weather"))
    opened = [event for event in read(dialect, TOOLS, cut_evenly(text, 5)) if isinstance(event, CallOpened)]
    assert [(event.index, event.name) for event in opened] == [(0, "get_weather"), (1, "now"), (2, "get_weather")]


@every_dialect
def test_case_29_a_call_of_an_unknown_tool_is_text_and_the_next_call_is_kept(dialect: Dialect) -> None:
    unknown = write_call(dialect.name, "delete_all", {"city": "x"}, 0)
    text, call = parse_in_any_pieces(dialect, TOOLS, unknown + "\n" + write_call(dialect.name, "now", {}, 1))
    assert isinstance(text, str) and text.strip() == unknown.strip()
    assert call == Call("now", "{}")


def tagged(dialect: Dialect, **parameters: str) -> str:
    if dialect is QWEN3_CODER:
        inner = "".join(f"<parameter={name}>\n{text}\n</parameter>\n" for name, text in parameters.items())
        return f"<tool_call>\n<function=get_weather>\n{inner}</function>\n</tool_call>"
    inner = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in parameters.items())
    return f"<tool_call>get_weather\n{inner}</tool_call>"


@pytest.mark.parametrize("dialect", [QWEN3_CODER, GLM4], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("days", "5", 5),
        ("ratio", "0.5", 0.5),
        ("detail", "true", True),
        ("note", "null", None),
        ("note", "5", "5"),
        ("tags", '["a", "b"]', ["a", "b"]),
        ("code", "5", "5"),
        ("code", "null", "null"),
        ("code", '"quoted"', '"quoted"'),
        ("code", '{"a": 1}', '{"a": 1}'),
        ("code", "if x:\n    y()\n", "if x:\n    y()\n"),
        ("code", "", ""),
        ("undeclared", "7", 7),
        ("undeclared", "seven", "seven"),
    ],
)
def test_case_32_tagged_values_have_the_types_of_the_schema(
    dialect: Dialect, name: str, text: str, meant: object
) -> None:
    call = one_call(tagged(dialect, city="x", **{name: text}), dialect)
    assert call.value == {"city": "x", name: meant} and call.flags == ()


@pytest.mark.parametrize("dialect", [QWEN3_CODER, GLM4], ids=lambda dialect: dialect.name)
def test_case_32_of_a_parameter_written_twice_the_first_counts(dialect: Dialect) -> None:
    once = tagged(dialect, city="first")
    inner = once[once.index("<parameter" if dialect is QWEN3_CODER else "<arg_key>") :]
    twice = once.replace(
        inner, inner[: inner.rindex("</" + ("function" if dialect is QWEN3_CODER else "tool_call"))] + inner
    )
    call = one_call(twice.replace("first", "second").replace("second", "first", 1), dialect)
    assert call.value == {"city": "first"} and call.flags == ("repaired",) and "second" in call.raw


def test_case_32_values_on_the_line_of_their_tags() -> None:
    text = "<function=get_weather><parameter=city>Rome</parameter><parameter=days>2</parameter></function>"
    assert one_call(text, QWEN3_CODER).value == {"city": "Rome", "days": 2}


@every_dialect
def test_case_38_text_beyond_ascii_is_written_raw(dialect: Dialect) -> None:
    call = one_call(write_call(dialect.name, "get_weather", {"city": "東京 🗼"}, 0), dialect)
    assert "東京 🗼" in call.arguments


def test_case_38_a_surrogate_pair_is_never_split_between_pieces() -> None:
    text = hermes_call('{"city": "\\ud83d\\ude00"}')
    parser = HERMES.parser(TOOLS)
    pieces = [event.text for char in text for event in parser.feed(char) if isinstance(event, CallArguments)]
    assert "\\ud83d\\ude00" in pieces
    assert json.loads("".join(pieces)) == {"city": "😀"}


@every_dialect
def test_arguments_are_streamed_while_they_are_written(dialect: Dialect) -> None:
    """A long string is streamed, not delivered at the end."""
    text = write_call(dialect.name, "get_weather", {"city": "word " * 200}, 0)
    parser = dialect.parser(TOOLS)
    events = [event for piece in cut_evenly(text, 4) for event in parser.feed(piece)]
    assert sum(isinstance(event, CallArguments) for event in events) > 200


@every_dialect
def test_text_is_held_back_only_while_it_may_be_markup(dialect: Dialect) -> None:
    parser = dialect.parser(TOOLS)
    out = 0
    text = "Is a < b? Use <code>x</code>, a list:\n- one\n\n- two <|x|> and `tool`. Thoughts: none, Actions: two."
    for fed, char in enumerate(text, 1):
        out += sum(len(event.text) for event in parser.feed(char))  # type: ignore[union-attr, misc]
        assert fed - out <= 14
