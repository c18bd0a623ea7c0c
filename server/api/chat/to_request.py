"""A validated chat completion request -> the internal ChatRequest."""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from server.api.body import bad
from server.api.chat.conversation import to_messages
from server.api.chat.extensions import ThinkingSwitch, answer_of
from server.api.chat.schemas import ChatCompletionRequest
from server.api.chat.to_reply import ReplyStyle
from server.api.chat.tool_schemas import (
    AnyTool,
    Function,
    FunctionTool,
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    ToolChoice,
)
from server.api.sampling import SamplingMapper
from server.chat_request import ChatRequest
from server.dialects.base import Choice, CustomFormat, ResponseFormat, Tool
from server.dialects.schema.check import check_answer, check_parameters, check_sizes
from server.dialects.schema.custom import format_fault
from server.notes import Note

LONGEST_STRICT_NAME = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RequestMapper:
    """Maps requests for one checkpoint and one server's settings."""

    sampling: SamplingMapper
    strict: bool = False
    named_finish: Literal["tool_calls", "stop"] = "tool_calls"
    must_answer: bool = False
    repair_history: bool = False

    def to_request(self, request: ChatCompletionRequest, notes: tuple[Note, ...] = ()) -> ChatRequest:
        """The internal form, with these notes on its body. Raises RequestRefused or BadSchema."""
        messages, history_notes = to_messages(request.messages, self.repair_history)
        definitions, tools = self._tools(request)
        choice = _choice(request, tools)
        limit = request.max_completion_tokens or request.max_tokens
        template_kwargs = dict(request.chat_template_kwargs or {})
        thinking = _thinking(request, template_kwargs.pop("enable_thinking", None))
        return ChatRequest(
            id=secrets.token_hex(12),
            messages=messages,
            sampling=self.sampling.sampling(request, limit, (request.top_logprobs or 0) if request.logprobs else None),
            max_tokens=limit,
            tool_definitions=definitions,
            tools=tools,
            choice=choice,
            answer=_answer(request, self.strict),
            stop=tuple(request.stop or ()),
            n=request.n or 1,
            thinking=thinking.on,
            thinking_budget=thinking.budget,
            template_kwargs=template_kwargs,
            continue_final_message=bool(request.continue_final_message),
            on_overflow=request.on_overflow,
            cache_salt=request.cache_salt or "",
            must_answer=self.must_answer if request.must_answer is None else request.must_answer,
            notes=(*notes, *history_notes),
        )

    def style(self, request: ChatCompletionRequest) -> ReplyStyle:
        """How the reply is to be written."""
        options = request.stream_options
        legacy = bool(request.functions)
        choice = request.function_call if legacy else request.tool_choice
        named = choice is not None and choice.named
        return ReplyStyle(
            model=request.model,
            include_usage=bool(request.stream and options and options.include_usage),
            logprobs=bool(request.logprobs),
            legacy_functions=legacy,
            finish_of_calls=self.named_finish if named else "tool_calls",
            service_tier=request.service_tier is not None,
        )

    def _tools(self, request: ChatCompletionRequest) -> tuple[list[Mapping[str, Any]], list[Tool]]:
        """The client's own tool objects for the template, and the same tools for the dialect."""
        if request.functions:
            if request.tools:
                text = "'functions' and 'tools' cannot be used together; 'functions' is the older name."
                raise bad(text, "functions", "invalid_parameter_combination")
            offered: Sequence[AnyTool] = [FunctionTool(type="function", function=one) for one in request.functions]
            definitions: list[Mapping[str, Any]] = [
                {"type": "function", "function": one.sent} for one in request.functions
            ]
            paths = [f"functions[{i}]" for i in range(len(offered))]
        else:
            offered = request.tools or []
            definitions = [_sent_definition(tool) for tool in offered]
            paths = [f"tools[{i}].{tool.type}" for i, tool in enumerate(offered)]
        return definitions, self.declare(offered, paths)

    def declare(self, offered: Sequence[AnyTool], paths: Sequence[str]) -> list[Tool]:
        """The tools for the dialect; `paths` name them in errors. Raises RequestRefused or BadSchema."""
        functions = [(tool, path) for tool, path in zip(offered, paths, strict=True) if isinstance(tool, FunctionTool)]
        check_sizes([(f"{path}.parameters", tool.function.parameters) for tool, path in functions])
        tools: list[Tool] = []
        for tool, path in zip(offered, paths, strict=True):
            tools.append(self._tool(tool, path))
            if tools[-1].name in {other.name for other in tools[:-1]}:
                text = f"Invalid '{path}.name': '{tools[-1].name}' is declared twice; names of tools must be unique."
                raise bad(text, f"{path}.name", "invalid_value")
        return tools

    def _tool(self, tool: AnyTool, path: str) -> Tool:
        name = tool.function.name if isinstance(tool, FunctionTool) else tool.custom.name
        if self.strict and len(name) > LONGEST_STRICT_NAME:
            text = f"Invalid '{path}.name': string too long. Expected a string with maximum length"
            text += f" {LONGEST_STRICT_NAME}, but got a string with length {len(name)} instead."
            raise bad(text, f"{path}.name", "string_above_max_length")
        if isinstance(tool, FunctionTool):
            return self._function(tool.function, path)
        grammar = tool.custom.format
        if isinstance(grammar, GrammarFormat):
            format = CustomFormat(grammar.grammar.syntax, grammar.grammar.definition)
            return Tool(name, custom=True, format=format)
        return Tool(name, custom=True)

    def _function(self, function: Function, path: str) -> Tool:
        strict = bool(function.strict)
        check_parameters(function.parameters, strict, self.strict, function.name, f"{path}.parameters")
        return Tool(function.name, function.parameters, strict)


def _sent_definition(tool: AnyTool) -> Mapping[str, Any]:
    """The tool as it was sent, without the member of the other kind: dumps of a union hold it as null."""
    other = "custom" if isinstance(tool, FunctionTool) else "function"
    return {key: value for key, value in tool.sent.items() if key != other}


def _choice(request: ChatCompletionRequest, tools: Sequence[Tool]) -> Choice:
    legacy = bool(request.functions)
    choice, field = (request.function_call, "function_call") if legacy else (request.tool_choice, "tool_choice")
    offered = "functions" if legacy else "tools"
    if request.function_call is not None and not legacy and request.function_call.mode == "required":
        text = "Invalid value for 'function_call': 'function_call' is only allowed when 'functions' are specified."
        raise bad(text, "function_call")
    parallel = request.parallel_tool_calls is not False and not legacy
    if choice is None:
        return Choice("auto" if tools else "none", None, parallel)
    if choice.mode != "none" and (choice.mode == "required" or choice.names is not None):
        _check_names(choice, tools, field, offered)
    if not tools:
        return Choice("none", None, parallel)
    return Choice(choice.mode, None if choice.names is None else frozenset(choice.names), parallel)


def _check_names(choice: ToolChoice, tools: Sequence[Tool], field: str, offered: str) -> None:
    if not tools:
        text = f"Invalid value for '{field}': '{field}' is only allowed when '{offered}' are specified."
        raise bad(text, field)
    if choice.names is not None and not choice.names:
        text = f"Invalid '{field}.allowed_tools.tools': empty array. Expected an array with minimum length 1, but got"
        raise bad(f"{text} an empty array instead.", f"{field}.allowed_tools.tools", "empty_array")
    for name in choice.names or ():
        if name not in {tool.name for tool in tools}:
            text = f"no function named '{name}' was specified in the '{offered}' parameter."
            raise bad(f"Invalid value for '{field}': {text}", field)


def _thinking(request: ChatCompletionRequest, variable: Any) -> ThinkingSwitch:
    """The switch that the template's own variable sets, then the request's, the most particular first."""
    if variable is not None and not isinstance(variable, bool):
        at = "chat_template_kwargs.enable_thinking"
        raise bad(f"Invalid type for '{at}': expected a boolean.", at, "invalid_type")
    effort = None if request.reasoning_effort is None else request.reasoning_effort != "none"
    spelled = (request.enable_thinking, request.thinking, request.think, request.reasoning)
    sent = [switch for switch in spelled if switch is not None]
    budgets = (request.thinking_budget, request.thinking_token_budget, *(switch.budget for switch in sent))
    switches = (variable, *(switch.on for switch in sent), effort)
    return ThinkingSwitch(_first(switches), _first(budgets))


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def _answer(request: ChatCompletionRequest, strict_flag: bool) -> ResponseFormat | None:
    """What `response_format` or one of the extensions demands of the answer. Raises RequestRefused or BadSchema."""
    demands = list(_demands(request))
    of_format = _answer_format(request, strict_flag)
    if len(demands) + (of_format is not None) > 1:
        text = f"Invalid '{demands[-1][0]}': only one constraint of the answer can be given."
        raise bad(text, demands[-1][0], "invalid_parameter_combination")
    if not demands:
        return of_format
    ((param, kind, value),) = demands
    try:
        answer = replace(answer_of(kind, value), param=param)
    except ValueError as error:
        raise bad(f"Invalid '{param}': {error}", param, "invalid_value") from error
    if answer.schema is not None:
        check_answer(answer.schema, True, False, param=param)  # a promise: what cannot be enforced is refused
    if answer.format is not None and (fault := format_fault(answer.format)):
        raise bad(f"Invalid '{param}': {fault}", param, "invalid_value")
    return answer


def _demands(request: ChatCompletionRequest) -> Iterator[tuple[str, str, Any]]:
    """Field, kind and value of each extension that constrains the answer."""
    fields = {
        "guided_json": "json", "json_schema": "json", "guided_regex": "regex", "regex": "regex",
        "guided_choice": "choice", "guided_grammar": "grammar", "ebnf": "grammar", "grammar": "grammar",
    }  # fmt: skip
    for name, kind in fields.items():
        if (value := getattr(request, name)) is not None:
            yield name, kind, value
    for kind, value in (request.structured_outputs or {}).items():
        if kind in (*fields.values(), "json_object"):
            yield f"structured_outputs.{kind}", kind, value


def _answer_format(request: ChatCompletionRequest, strict_flag: bool) -> ResponseFormat | None:
    format_ = request.response_format
    if isinstance(format_, JsonObjectFormat):
        schema = format_.value if format_.schema_ is None else format_.schema_
        if schema is not None and strict_flag:
            raise bad("Unknown parameter: 'response_format.schema'.", "response_format.schema", "unknown_parameter")
        if schema is not None:
            check_answer(schema, True, False, param="response_format")
        return ResponseFormat(schema, strict=schema is not None)
    if isinstance(format_, JsonSchemaFormat):
        schema, strict = format_.json_schema.schema_, bool(format_.json_schema.strict)
        if schema is not None:
            check_answer(schema, strict, strict_flag, format_.json_schema.name)
        return ResponseFormat(schema, strict)
    return None
