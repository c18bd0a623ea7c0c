"""Messages of a chat request -> typed messages: their order checked, legacy calls and late results put right.

Results answer the calls of the nearest assistant message before them, each id once, in any order, with nothing
between. Errors are in OpenAI's words (`messages.[i]` is its spelling of the path here).
"""

from collections.abc import Iterator, Sequence

from server.api.body import bad
from server.api.chat.content import thought_in
from server.api.chat.message_schemas import (
    AnyMessage,
    ChatAssistantMessage,
    ChatSystemMessage,
    ChatToolMessage,
    ChatUserMessage,
    PastCustomCall,
    PastFunction,
    RefusalPart,
    TextPart,
    ThoughtPart,
)
from server.api.errors import RequestRefused
from server.api.history import repaired
from server.chat_request import AssistantMessage, Message, PastCall, SystemMessage, ToolMessage, UserMessage
from server.notes import Note


def to_messages(sent: Sequence[AnyMessage], repair: bool = False) -> tuple[tuple[Message, ...], list[Note]]:
    """The typed messages, results in the order of their calls, and notes. Raises RequestRefused unless `repair`.

    Templates of open models print no ids: the order is all that tells which result belongs to which call.
    """
    messages, notes = list(_typed(sent, repair)), list[Note]()
    if repair:
        located, notes = repaired(messages)
        messages = [message for _, message in located]
    ordered: list[Message] = []
    index = 0
    while index < len(messages):
        message = messages[index]
        if isinstance(message, ToolMessage):
            text = (
                "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with"
                " 'tool_calls'."
            )
            raise _misplaced(text, index, "role")
        ordered.append(message)
        index += 1
        if isinstance(message, AssistantMessage) and message.calls:
            places = {call.id: place for place, call in enumerate(message.calls)}
            results = _results_of(messages, index, list(places))
            results.sort(key=lambda result: places[result.call_id])
            ordered += results
            index += len(results)
    return tuple(ordered), notes


def _results_of(messages: Sequence[Message], start: int, ids: list[str]) -> list[ToolMessage]:
    results: list[ToolMessage] = []
    for index in range(start, len(messages)):
        message = messages[index]
        if not isinstance(message, ToolMessage):
            break
        if message.call_id not in ids:
            text = (
                f"Invalid parameter: 'tool_call_id' of '{message.call_id}' not found in 'tool_calls' of"
                " previous message."
            )
            raise _misplaced(text, index, "tool_call_id")
        results.append(message)
    answered = {result.call_id for result in results}
    unanswered = [call_id for call_id in ids if call_id not in answered]
    if unanswered:
        text = (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each"
            " 'tool_call_id'. The following tool_call_ids did not have response messages: "
        )
        raise _misplaced(text + ", ".join(unanswered), start - 1, "role")
    return results


def _typed(sent: Sequence[AnyMessage], repair: bool) -> Iterator[Message]:
    """One message each. A legacy `function_call` is given an id, and the function message behind it answers that."""
    legacy_id = ""
    for index, message in enumerate(sent):
        text = _text_of(message.content)
        if isinstance(message, ChatSystemMessage):
            yield SystemMessage(text)
        elif isinstance(message, ChatUserMessage):
            yield UserMessage(text, message.name)
        elif isinstance(message, ChatAssistantMessage):
            reply = _assistant(message, text, index)
            if message.function_call is not None and not message.tool_calls:
                legacy_id = reply.calls[0].id
            yield reply
        elif isinstance(message, ChatToolMessage):
            call_id = message.id if message.tool_call_id is None else message.tool_call_id
            if call_id is None and not repair:
                text = "Missing parameter 'tool_call_id': messages with role 'tool' must have a 'tool_call_id'."
                raise _misplaced(text, index, "tool_call_id")
            yield ToolMessage(text, call_id or "", message.name)
        else:
            yield ToolMessage(text, legacy_id, message.name)


def _assistant(message: ChatAssistantMessage, text: str, index: int) -> AssistantMessage:
    if message.function_call is not None and not message.tool_calls:
        calls = [_function_call(f"call_{index}", message.function_call)]
    else:
        calls = [
            PastCall(call.id, call.custom.name, call.custom.input, custom=True)
            if isinstance(call, PastCustomCall)
            else _function_call(call.id, call.function)
            for call in message.tool_calls or ()
        ]
    return AssistantMessage(text or message.refusal or "", _thought_of(message), tuple(calls))


def _thought_of(message: ChatAssistantMessage) -> str | None:
    """The reasoning, under the first of its names that has any; proxies send the same thought under several."""
    content = message.content if isinstance(message.content, list) else []
    parts = [part.thinking for part in content if isinstance(part, ThoughtPart)]
    names = (message.reasoning_content, message.reasoning, message.thinking)
    thoughts = map(thought_in, (*names, message.reasoning_details, message.thinking_blocks, parts))
    return next(filter(None, thoughts), None)


def _function_call(call_id: str, function: PastFunction) -> PastCall:
    return PastCall(call_id, function.name, function.arguments)


def _text_of(content: str | Sequence[TextPart | RefusalPart | ThoughtPart] | None) -> str:
    """The text of a message's content; parts are joined as they stand."""
    if content is None or isinstance(content, str):
        return content or ""
    shown = [part for part in content if not isinstance(part, ThoughtPart)]
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in shown)


def _misplaced(text: str, index: int, name: str) -> RequestRefused:
    return bad(text, f"messages.[{index}].{name}")
