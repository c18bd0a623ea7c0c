"""A validated Messages request -> the internal ChatRequest."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.body import bad
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
    """Maps requests for one checkpoint; `must_answer` is the server's setting."""

    sampling: SamplingMapper
    must_answer: bool = False

    def to_request(self, request: MessagesRequest) -> ChatRequest:
        """The internal form. Raises RequestRefused or BadSchema."""
        conversation = BlockReader()
        messages = conversation.read(request.system or (), request.messages)
        offered = [(f"tools[{place}]", tool) for place, tool in enumerate(request.tools or ()) if not tool.is_foreign]
        left_out = [
            Note("left_out", f"tools[{place}]", f"Tools of type '{tool.type}' are not supported here.")
            for place, tool in enumerate(request.tools or ())
            if tool.is_foreign
        ]
        tools = _tools(offered)
        thinking = request.thinking
        return ChatRequest(
            id=secrets.token_hex(12),
            messages=messages,
            sampling=self.sampling.sampling(request, request.max_tokens),
            max_tokens=request.max_tokens,
            tool_definitions=[_definition(tool) for _, tool in offered],
            tools=tools,
            choice=_choice(request, tools),
            answer=_answer(request),
            stop=tuple(request.stop_sequences or ()),
            thinking=None if thinking is None else thinking.type != "disabled",
            thinking_budget=None if thinking is None else thinking.budget_tokens,
            continue_final_message=isinstance(messages[-1], AssistantMessage),
            must_answer=self.must_answer,
            notes=(*left_out, *conversation.notes),
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
        strict = bool(tool.strict)
        check_parameters(tool.input_schema, strict, False, tool.name, f"{path}.input_schema")
        if tool.name in {other.name for other in tools}:
            raise bad(f"Tool names must be unique; '{tool.name}' is declared twice.", f"{path}.name")
        tools.append(Tool(tool.name, tool.input_schema, strict))
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
    if choice.type == "tool" and choice.name not in {tool.name for tool in tools}:
        raise bad(f"Tool '{choice.name}' not found in provided tools.", "tool_choice.name")
    allowed = frozenset([choice.name]) if choice.type == "tool" and choice.name is not None else None
    return Choice(MODES[choice.type] if tools else "none", allowed, parallel)


def _answer(request: MessagesRequest) -> ResponseFormat | None:
    format_ = (request.output_config and request.output_config.format) or request.output_format
    if format_ is None:
        return None
    check_answer(format_.schema_, False, False, "output_config.format")
    return ResponseFormat(format_.schema_)
