"""A validated chat completion request -> the internal ChatRequest."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.api.body import bad
from server.api.chat.constraints import answer_of_format
from server.api.chat.conversation import to_messages
from server.api.chat.schemas import ChatCompletionRequest
from server.api.chat.to_reply import ReplyStyle
from server.api.chat.tool_schemas import (
    AnyTool,
    Function,
    FunctionTool,
    GrammarFormat,
    ToolChoice,
)
from server.api.sampling import SamplingMapper
from server.chat_request import ChatRequest
from server.dialects.base import Choice, CustomFormat, Tool
from server.dialects.schema.check import check_parameters, check_sizes
from server.notes import Note

LONGEST_STRICT_NAME = 64


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
        thinking = request.switch(request.thinking, request.reasoning, request.reasoning_effort)
        return ChatRequest(
            id=secrets.token_hex(12),
            model=request.model,
            messages=messages,
            sampling=self.sampling.sampling(request, limit, (request.top_logprobs or 0) if request.logprobs else None),
            max_tokens=limit,
            tool_definitions=definitions,
            tools=tools,
            choice=choice,
            answer=request.answer(answer_of_format(request.response_format, self.strict)),
            stop=tuple(request.stop or ()),
            n=request.n or 1,
            thinking=thinking.on,
            thinking_budget=thinking.budget,
            template_kwargs=request.template_variables,
            continue_final_message=bool(request.continue_final_message),
            on_overflow=request.on_overflow,
            cache_salt=request.cache_salt or "",
            must_answer=self.must_answer if request.must_answer is None else request.must_answer,
            notes=(*notes, *history_notes),
            trace=request.traces,
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
            return Tool(name, custom=True, format=format, param=path)
        return Tool(name, custom=True, param=path)

    def _function(self, function: Function, path: str) -> Tool:
        strict, param = bool(function.strict), f"{path}.parameters"
        check_parameters(function.parameters, strict, self.strict, function.name, param)
        return Tool(function.name, function.parameters, strict, param=param)


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
