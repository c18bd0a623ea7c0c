"""Messages as clients send them -> typed messages, without the checks of fields: tests plant anything anywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from server.api.chat.conversation import to_messages
from server.api.chat.message_schemas import (
    AnyMessage,
    CalledCustom,
    ChatAssistantMessage,
    ChatFunctionMessage,
    ChatSystemMessage,
    ChatToolMessage,
    ChatUserMessage,
    PastCustomCall,
    PastFunction,
    PastFunctionCall,
    RefusalPart,
    TextPart,
)
from server.chat_request import Message

KINDS: dict[str, type[BaseModel]] = {
    "system": ChatSystemMessage,
    "developer": ChatSystemMessage,
    "user": ChatUserMessage,
    "assistant": ChatAssistantMessage,
    "tool": ChatToolMessage,
    "function": ChatFunctionMessage,
}


def typed(sent: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The typed messages. Raises RequestRefused where their order is wrong."""
    return to_messages([_message(one) for one in sent])[0]


def _message(sent: Mapping[str, Any]) -> AnyMessage:
    fields = dict(sent)
    if isinstance(fields.get("content"), list):
        fields["content"] = [_part(part) for part in fields["content"]]
    if fields.get("tool_calls"):
        fields["tool_calls"] = [_call(call) for call in fields["tool_calls"]]
    if fields.get("function_call"):
        fields["function_call"] = _function(fields["function_call"])
    return KINDS[sent["role"]].model_construct(**fields)  # type: ignore[return-value]


def _part(part: Mapping[str, Any]) -> TextPart | RefusalPart:
    return RefusalPart.model_construct(**part) if "refusal" in part else TextPart.model_construct(**part)


def _call(call: Mapping[str, Any]) -> PastFunctionCall | PastCustomCall:
    if "custom" in call:
        return PastCustomCall.model_construct(**{**call, "custom": CalledCustom.model_construct(**call["custom"])})
    return PastFunctionCall.model_construct(**{**call, "function": _function(call["function"])})


def _function(called: Mapping[str, Any]) -> PastFunction:
    return PastFunction.model_construct(**called)
