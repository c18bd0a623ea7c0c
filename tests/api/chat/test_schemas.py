"""Every fault of a request, in OpenAI's words: message, param and code, the first fault alone."""

from typing import Any

import pytest

from server.api.chat.schemas import ChatCompletionRequest, read_request
from server.api.chat.to_request import RequestMapper
from server.api.errors import RequestRefused
from server.api.sampling import SamplingMapper
from server.chat_request import ChatRequest
from server.checkpoint.checkpoint import SamplingDefaults
from server.dialects.base import Choice, CustomFormat, ResponseFormat
from server.errors import BadSchema
from tests.api.conftest import WEATHER

USER = {"role": "user", "content": "Hi"}
MISSING, TYPE, VALUE = "missing_required_parameter", "invalid_type", "invalid_value"
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def request(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **fields}


def ask(body: dict[str, Any], strict: bool = False, defaults: SamplingDefaults | None = None) -> ChatRequest:
    return RequestMapper(SamplingMapper(defaults or SamplingDefaults(), 1000), strict).to_request(
        *read_request(body, strict)
    )


def refused(body: dict[str, Any], strict: bool = False) -> tuple[str | None, str | None, str]:
    """param, code and message of the fault."""
    try:
        ask(body, strict)
    except RequestRefused as error:
        assert (error.error.status, error.error.type) == (400, "invalid_request_error")
        return error.error.param, error.error.code, error.error.message
    except BadSchema as error:
        return error.param, error.code, str(error)
    raise AssertionError("accepted")


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def calling(name: str) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}}
    return [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "ok"}]


EXTENSIONS: dict[str, Any] = {
    "enable_thinking": False, "thinking": {"type": "disabled"}, "reasoning": {"effort": "none"}, "think": False,
    "thinking_token_budget": 5, "guided_json": {}, "guided_regex": "a", "guided_choice": ["a"], "top_k": 5,
    "chat_template_kwargs": {}, "extra_body": {"top_k": 5},
}  # fmt: skip


# ruff: noqa: E501 - the table stays one fault an entry, with the messages whole
FAULTS: list[tuple[dict[str, Any], str | None, str | None, str]] = [
    ({"model": None}, None, None, "you must provide a model parameter"),
    ({"model": ""}, None, None, "you must provide a model parameter"),
    ({"model": 7}, "model", TYPE, "Invalid type for 'model': expected a string, but got an integer instead."),
    ({"messages": None}, "messages", MISSING, "Missing required parameter: 'messages'."),
    (
        {"messages": []}, "messages", "empty_array",
        "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
    ),
    ({"messages": "hi"}, "messages", TYPE, "Invalid type for 'messages': expected an array, but got a string instead."),
    ({"messages": [7]}, "messages[0]", TYPE, "Invalid type for 'messages[0]': expected an object, but got an integer instead."),
    ({"messages": [{"content": "x"}]}, "messages[0].role", MISSING, "Missing required parameter: 'messages[0].role'."),
    (
        {"messages": [{"role": "bogus"}]}, "messages[0].role", VALUE,
        "Invalid value: 'bogus'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool', and 'developer'.",
    ),
    (
        {"messages": [{"role": "user", "content": 7}]}, "messages[0].content", TYPE,
        "Invalid type for 'messages[0].content': expected one of a string or array of objects, but got an integer instead.",
    ),
    ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type", MISSING, "'messages[0].content[0].type'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", MISSING,
        "Missing required parameter: 'messages[0].content[0].text'.",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
        "messages[0].content[1]", "unsupported_value", "image_url",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "refusal"}]}]}, "messages[0].content[0].type", VALUE, "'text'"),
    ({"temperature": 3}, "temperature", "decimal_above_max_value",
     "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead."),
    ({"temperature": "hot"}, "temperature", TYPE, "expected a decimal, but got a string instead."),
    ({"temperature": True}, "temperature", TYPE, "expected a decimal, but got a boolean instead."),
    ({"top_p": -1}, "top_p", "decimal_below_min_value", "Expected a value >= 0, but got -1 instead."),
    ({"n": 0}, "n", "integer_below_min_value", "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead."),
    ({"n": 1.5}, "n", TYPE, "expected an integer, but got a decimal instead."),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value", ">= 1, but got 0"),
    ({"stop": 7}, "stop", TYPE, "expected one of a string or array of strings"),
    ({"stop": [7]}, "stop[0]", TYPE, "expected a string"),
    ({"top_logprobs": 2}, "top_logprobs", None, "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value", "<= 20, but got 21"),
    ({"stream_options": {"include_usage": True}}, "stream_options", None,
     "The 'stream_options' parameter is only allowed when 'stream' is enabled."),
    ({"response_format": {}}, "response_format.type", MISSING, "'response_format.type'"),
    ({"response_format": {"type": "x"}}, "response_format.type", VALUE,
     "Invalid value: 'x'. Supported values are: 'text', 'json_object', and 'json_schema'."),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", MISSING, "Missing required"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name", MISSING, "Missing required"),
    ({"reasoning_effort": "much"}, "reasoning_effort", VALUE, "Invalid value: 'much'. Supported values are: 'none', 'minimal',"),
    ({"service_tier": 7}, "service_tier", TYPE, "expected a string, but got an integer"),
    ({"logit_bias": {"a": 1}}, "logit_bias", VALUE, "Invalid key in 'logit_bias': a."),
    ({"logit_bias": {"7": 101}}, "logit_bias.7", VALUE, "-100 to 100"),
    ({"logit_bias": {"1000": 1}}, "logit_bias", VALUE, "1000"),
    ({"modalities": ["text", "audio"]}, "modalities", VALUE, "'audio'"),
    ({"audio": {"voice": "a"}}, "audio", "unsupported_parameter", "'audio'"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter", "'web_search_options'"),
    ({"tools": "x"}, "tools", TYPE, "expected an array, but got a string"),
    ({"tools": [tool()] * 129}, "tools", "array_above_max_length",
     "Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with length 129 instead."),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type", MISSING, "Missing required parameter: 'tools[0].type'."),
    ({"tools": [{"type": "function"}]}, "tools[0].function", MISSING, "Missing required parameter: 'tools[0].function'."),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", MISSING, "'tools[0].function.name'"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].custom.name", MISSING, "'tools[0].custom.name'"),
    ({"tools": [tool(name="a b")]}, "tools[0].function.name", VALUE, "Expected a string that matches the pattern '^["),
    ({"tools": [tool(name="")]}, "tools[0].function.name", "empty_string", "empty string"),
    ({"tools": [tool(name="a\n")]}, "tools[0].function.name", VALUE, "pattern"),
    ({"tools": [tool(name="x" * 129)]}, "tools[0].function.name", "string_above_max_length", "maximum length 128"),
    ({"tools": [tool(), tool()]}, "tools[1].function.name", VALUE, "declared twice"),
    ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters", "invalid_function_parameters", "object"),
    ({"tools": [WEATHER], "tool_choice": "bogus"}, "tool_choice", VALUE,
     "Invalid value: 'bogus'. Supported values are: 'none', 'auto', and 'required'."),
    ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function", MISSING, "'tool_choice.function'"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name", MISSING, "name"),
    ({"tools": [WEATHER], "tool_choice": 7}, "tool_choice", TYPE, "got an integer"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "X"}}}, "tool_choice", None,
     "Invalid value for 'tool_choice': no function named 'X' was specified in the 'tools' parameter."),
    ({"tool_choice": "required"}, "tool_choice", None,
     "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."),
    ({"tool_choice": NAMED}, "tool_choice", None, "only allowed when 'tools' are specified."),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
     "tool_choice.allowed_tools.tools", "empty_array", "empty array"),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "X"}}]}}},
     "tool_choice", None, "no function named 'X'"),
    ({"function_call": {"name": "f"}}, "function_call", None, "only allowed when 'functions' are specified."),
    ({"functions": [], "tools": None}, "functions", "empty_array", "empty array"),
    ({"functions": [{"name": "f"}], "tools": [WEATHER]}, "functions", "invalid_parameter_combination", "together"),
    ({"continue_final_message": True}, "continue_final_message", None, "assistant"),
    ({"chat_template_kwargs": {"enable_thinking": 7}}, "chat_template_kwargs.enable_thinking", TYPE, "boolean"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code", "words"), FAULTS, ids=lambda value: str(value)[:50])
def test_a_fault_is_told_in_openais_words(fields: dict[str, Any], param: str, code: str, words: str) -> None:
    got_param, got_code, message = refused(request(**fields))
    assert (got_param, got_code) == (param, code)
    assert words in message
    assert "{" not in message


# What is served without `--strict`.
STRICT_FAULTS: list[tuple[dict[str, Any], str | None, str | None, str]] = [
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty_array", "empty array"),
    ({"stop": ["a"] * 5}, "stop", "array_above_max_length",
     "Invalid 'stop': array too long. Expected an array with maximum length 4, but got an array with length 5 instead."),
    ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "invalid_parameter_combination", "at the same time"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "object_above_max_properties", "at most 16"),
    ({"metadata": {"k": "x" * 513}}, "metadata.k", "string_above_max_length", "maximum length 512"),
    ({"tools": [tool(name="a b")]}, "tools[0].function.name", VALUE,
     "Invalid 'tools[0].function.name': string does not match pattern. Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'."),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", TYPE, "expected an object, but got an array"),
    ({"tools": [tool(name="catalog.get-entity")]}, "tools[0].function.name", VALUE, "'^[a-zA-Z0-9_-]+$'"),
    ({"tools": [tool(parameters={"type": "object", "properties": []})]}, "tools[0].function.parameters",
     "invalid_function_parameters", "[] is not of type"),
    ({"metadata": {"k": 7}}, "metadata.k", TYPE, "expected a string, but got an integer"),
    ({"metadata": "x"}, "metadata", TYPE, "expected an object"),
    ({"logprobs": False, "top_logprobs": 0}, "top_logprobs", None, "only allowed when 'logprobs' is enabled"),
    ({"max_tokens": -1}, "max_tokens", "integer_below_min_value", ">= 1, but got -1"),
    ({"messages": [{"role": "user", "content": {"type": "text", "text": "a"}}]}, "messages[0].content", TYPE, "an object"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]", TYPE, "expected an object"),
    ({"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "a"}]}]}, "messages[0].content[0].type", VALUE,
     "Invalid value: 'thinking'. Supported values are: 'text' and 'refusal'."),
    ({"messages": calling("functions.bash:3")}, "messages[1].tool_calls[0].function.name", VALUE, "pattern"),
    ({"messages": calling("")}, "messages[1].tool_calls[0].function.name", "empty_string", "empty string"),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", "unknown_parameter", "Unknown parameter"),
    *(({name: value}, name, "unknown_parameter", f"Unknown parameter: '{name}'.") for name, value in EXTENSIONS.items()),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code", "words"), STRICT_FAULTS, ids=lambda value: str(value)[:50])
def test_strict_refuses_what_openai_refuses(fields: dict[str, Any], param: str, code: str, words: str) -> None:
    """`--strict` is OpenAI to the letter; without it the same request is served."""
    got_param, got_code, message = refused(request(**fields), strict=True)
    assert (got_param, got_code) == (param, code)
    assert words in message
    if fields != {"tools": [tool(name="a b")]}:
        ask(request(**fields))


@pytest.mark.parametrize(("fields", "param", "code", "words"), FAULTS, ids=lambda value: str(value)[:50])
def test_every_fault_is_one_under_strict(fields: dict[str, Any], param: str, code: str, words: str) -> None:
    extensions = fields.keys() & {*EXTENSIONS, "continue_final_message"}  # unknown there, whatever their values
    expected = (extensions.pop(), "unknown_parameter") if extensions else (param, code)
    assert refused(request(**fields), strict=True)[:2] == expected


def test_faults_are_told_in_the_order_of_the_fields_not_of_the_body() -> None:
    assert refused({"temperature": 3, "n": 0, "tools": 7, "model": "m", "messages": 7})[0] == "messages"
    assert refused({"temperature": 3, "n": 0, "tools": 7, **request()})[0] == "tools"
    assert refused({"temperature": 3, "n": 0, **request()})[0] == "n"
    assert refused({"bogus": 1, "temperature": 3, **request()}, strict=True)[0] == "bogus"
    assert refused({"bogus": 1}, strict=True)[2] == "you must provide a model parameter"
    assert refused({"bogus": 1, "model": "m"}, strict=True)[0] == "messages"


def test_unknown_keys_are_ignored_unless_strict() -> None:
    body = request(bogus=1, stream=True, stream_options={"bogus": 2})
    ask(body)
    assert refused(body, strict=True) == ("bogus", "unknown_parameter", "Unknown parameter: 'bogus'.")
    del body["bogus"]
    assert refused(body, strict=True)[0] == "stream_options.bogus"


def test_every_optional_field_may_be_null() -> None:
    ask(request(**{name: None for name in ChatCompletionRequest.model_fields if name not in ("model", "messages")}))
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": None,
        "function_call": None,
        "refusal": None,
        "audio": None,
    }
    ask(request(messages=[USER, message, USER], tools=[tool(description=None, strict=None, parameters=None)]))


def test_names_of_64_characters_are_openais_limit_and_128_ours() -> None:
    body = request(tools=[tool(name="x" * 65)])
    assert ask(body).tools[0].name == "x" * 65
    assert refused(body, strict=True)[:2] == ("tools[0].function.name", "string_above_max_length")


def test_strict_functions_follow_openais_subset_only_under_the_strict_flag() -> None:
    loose = {"type": "object", "properties": {"a": {"type": "string"}}}
    body = request(tools=[tool(strict=True, parameters=loose)])
    ask(body)
    assert refused(body, strict=True)[:2] == ("tools[0].function.parameters", "invalid_function_parameters")


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, Choice("none")),
        ({"tools": []}, Choice("none")),
        ({"tools": [], "tool_choice": "auto"}, Choice("none")),
        ({"tool_choice": "none"}, Choice("none")),
        ({"tools": [WEATHER]}, Choice("auto")),
        ({"tools": [WEATHER], "tool_choice": "none"}, Choice("none")),
        ({"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}, Choice("required", None, False)),
        ({"tools": [WEATHER], "tool_choice": NAMED}, Choice("required", frozenset({"get_weather"}))),
        ({"functions": [{"name": "f"}]}, Choice("auto", None, False)),
        ({"functions": [{"name": "f"}], "function_call": {"name": "f"}}, Choice("required", frozenset({"f"}), False)),
        ({"functions": [{"name": "f"}], "function_call": "none"}, Choice("none", None, False)),
    ],
    ids=str,
)  # fmt: skip
def test_what_may_be_called(fields: dict[str, Any], choice: Choice) -> None:
    assert ask(request(**fields)).choice == choice


def test_allowed_tools_leave_the_prompt_alone() -> None:
    other = tool(name="other")
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    asked = ask(request(tools=[other, WEATHER], tool_choice=choice))
    assert asked.choice == Choice("required", frozenset({"get_weather"}))
    assert list(asked.tool_definitions) == [other, WEATHER]
    assert [one.name for one in asked.tools] == ["other", "get_weather"]


def test_custom_tools() -> None:
    grammar = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[a-z]+"}}
    asked = ask(request(tools=[{"type": "custom", "custom": {"name": "run", "format": grammar}}]))
    assert asked.tools[0].custom
    assert asked.tools[0].format == CustomFormat("regex", "[a-z]+")


def test_answer_formats() -> None:
    schema = {"type": "object", "properties": {}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": None}}
    assert ask(request(response_format={"type": "text"})).answer is None
    assert ask(request(response_format={"type": "json_object"})).answer == ResponseFormat()
    assert ask(request(response_format=wanted)).answer == ResponseFormat(
        schema, place="response_format.json_schema.schema"
    )


def test_sampling_comes_from_the_request_then_the_checkpoint_then_openai() -> None:
    defaults = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)
    drawn = ask(request(top_p=0.5), defaults=defaults).sampling
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.min_p) == (0.6, 0.5, 20, 0.0)
    assert ask(request(temperature=0, top_k=-1), defaults=defaults).sampling.temperature == 0.0
    plain = ask(request()).sampling
    assert (plain.temperature, plain.top_p, plain.top_k, plain.num_logprobs) == (1.0, 1.0, 0, None)
    assert ask(request(logprobs=True)).sampling.num_logprobs == 0
    assert ask(request(logprobs=True, top_logprobs=3)).sampling.num_logprobs == 3


def test_every_local_extension_reaches_the_rooms_below() -> None:
    asked = ask(
        request(
            top_k=5, min_p=0.1, repetition_penalty=1.1, ignore_eos=True, min_tokens=3, thinking_budget=9,
            chat_template_kwargs={"enable_thinking": False, "x": 1}, on_overflow="drop-oldest", must_answer=True, max_tokens=7,
            logit_bias={"3": -5}, presence_penalty=1, frequency_penalty=-1, seed=4, stop="END",
        )
    )  # fmt: skip
    drawn = asked.sampling
    assert (drawn.top_k, drawn.min_p, drawn.repetition_penalty) == (5, 0.1, 1.1)
    assert (drawn.ignore_eos, drawn.min_tokens, drawn.seed, drawn.logit_bias) == (True, 3, 4, {3: -5.0})
    assert (drawn.presence_penalty, drawn.frequency_penalty) == (1.0, -1.0)
    assert (asked.thinking, asked.template_kwargs, asked.thinking_budget) == (False, {"x": 1}, 9)
    assert (asked.on_overflow, asked.must_answer, asked.max_tokens, asked.stop) == ("drop-oldest", True, 7, ("END",))


def test_reasoning_effort_turns_thinking_on_or_off_unless_the_template_is_told() -> None:
    assert ask(request()).thinking is None
    assert ask(request(reasoning_effort="none")).thinking is False
    assert ask(request(reasoning_effort="low")).thinking is True
    assert ask(request(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})).thinking is True


def test_usage_in_streams_only_where_it_was_asked_for() -> None:
    options = {"include_usage": True, "include_obfuscation": True}
    mapper = RequestMapper(SamplingMapper(SamplingDefaults(), 1000))
    assert mapper.style(read_request(request(stream=True, stream_options=options), False)[0]).include_usage
    assert not mapper.style(read_request(request(stream=True), False)[0]).include_usage
