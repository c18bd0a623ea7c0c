"""A validated Messages request -> the internal ChatRequest."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.body import bad
from server.api.chat.constraints import answer_of_format
from server.api.messages.conversation import BlockReader
from server.api.messages.schemas import MessagesRequest, OfferedTool
from server.api.messages.to_reply import MessageStyle
from server.api.sampling import SamplingMapper
from server.chat_request import AssistantMessage, ChatRequest
from server.dialects.base import Choice, ResponseFormat, Tool
from server.dialects.schema.check import check_answer, check_parameters, check_sizes
from server.notes import Note

MODES: Mapping[str, Any] = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


@dataclass(frozen=True, slots=True)
class MessagesMapper:
    """Maps requests for one checkpoint; `must_answer` and `repair_history` are the server's settings."""

    sampling: SamplingMapper
    must_answer: bool = False
    repair_history: bool = False

    def to_request(self, request: MessagesRequest) -> ChatRequest:
        """The internal form. Raises RequestRefused or BadSchema."""
        conversation = BlockReader(self.repair_history)
        messages = conversation.read(request.system or (), request.messages)
        offered = [(f"tools[{place}]", tool) for place, tool in enumerate(request.tools or ()) if not tool.is_foreign]
        left_out = [
            Note("left_out", f"tools[{place}]", f"Tools of type '{tool.type}' are not supported here.")
            for place, tool in enumerate(request.tools or ())
            if tool.is_foreign
        ]
        tools = _tools(offered)
        native = None if request.thinking is None else request.thinking.switch
        thinking = request.switch(native, request.reasoning, request.reasoning_effort)
        return ChatRequest(
            id=secrets.token_hex(12),
            model=request.model,
            messages=messages,
            sampling=self.sampling.sampling(request, request.max_tokens),
            max_tokens=request.max_tokens,
            tool_definitions=[_definition(tool) for _, tool in offered],
            tools=tools,
            choice=_choice(request, tools),
            answer=request.answer(*_answers(request)),
            stop=tuple(request.stop_sequences or ()),
            thinking=thinking.on,
            thinking_budget=thinking.budget,
            template_kwargs=request.template_variables,
            continue_final_message=isinstance(messages[-1], AssistantMessage),
            must_answer=self.must_answer,
            notes=(*left_out, *conversation.notes),
            trace=request.traces,
        )

    def style(self, request: MessagesRequest) -> MessageStyle:
        """How the reply is to be written."""
        omitted = request.thinking is not None and request.thinking.display == "omitted"
        return MessageStyle(request.model, request.max_tokens, omitted)


def _tools(offered: Sequence[tuple[str, OfferedTool]]) -> list[Tool]:
    check_sizes([(f"{path}.input_schema", tool.input_schema) for path, tool in offered])
    tools: list[Tool] = []
    for path, tool in offered:
        if tool.name is None:
            raise bad(f"Missing required parameter: '{path}.name'.", f"{path}.name", "missing_required_parameter")
        strict, param = bool(tool.strict), f"{path}.input_schema"
        check_parameters(tool.input_schema, strict, False, tool.name, param)
        if tool.name in {other.name for other in tools}:
            raise bad(f"Tool names must be unique; '{tool.name}' is declared twice.", f"{path}.name")
        tools.append(Tool(tool.name, tool.input_schema, strict, param=param))
    return tools


def _definition(tool: OfferedTool) -> Mapping[str, Any]:
    """The tool as Chat Completions has it, for the template: the prompt is the same whichever surface it came by."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _choice(request: MessagesRequest, tools: Sequence[Tool]) -> Choice:
    choice = request.tool_choice
    if choice is None:
        return Choice("auto" if tools else "none")
    parallel = not choice.disable_parallel_tool_use
    if MODES[choice.type] == "required" and not tools:
        raise bad("A call can only be forced while `tools` has one that is served.", "tool_choice")
    if choice.type == "tool" and choice.name is None:
        raise bad("Missing required parameter: 'tool_choice.name'.", "tool_choice.name", "missing_required_parameter")
    if choice.type == "tool" and choice.name not in {tool.name for tool in tools}:
        raise bad(f"Tool '{choice.name}' not found in provided tools.", "tool_choice.name")
    allowed = frozenset([choice.name]) if choice.type == "tool" and choice.name is not None else None
    return Choice(MODES[choice.type] if tools else "none", allowed, parallel)


def _answers(request: MessagesRequest) -> Iterator[ResponseFormat | None]:
    """What each of the fields that are not common to all surfaces demands of the answer."""
    config = request.output_config.format if request.output_config is not None else None
    for param, format_ in (("output_config.format", config), ("output_format", request.output_format)):
        if format_ is not None:
            check_answer(format_.schema_, False, False, param=f"{param}.schema")
            yield ResponseFormat(format_.schema_, param=f"{param}.schema")
    yield answer_of_format(request.response_format, strict=False)
