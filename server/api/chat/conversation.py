"""Messages of a chat request -> typed messages: their order checked, legacy calls and late results put right.

Results answer the calls of the nearest assistant message before them, each id once, in any order, with nothing
between. Errors are in OpenAI's words (`messages.[i]` is its spelling of the path here).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from server.api.body import bad
from server.api.chat.content import failed_text, thought_in
from server.api.chat.message_schemas import (
    AnyMessage,
    CallPart,
    ChatAssistantMessage,
    ChatFunctionMessage,
    ChatSystemMessage,
    ChatToolMessage,
    ChatUserMessage,
    FlatCall,
    PastCustomCall,
    PastFunction,
    PastFunctionCall,
    RefusalPart,
    ResultPart,
    TextPart,
    ThoughtPart,
)
from server.api.errors import RequestRefused
from server.api.history import Located, repaired, with_call_ids
from server.chat_request import AssistantMessage, Message, PastCall, SystemMessage, ToolMessage, UserMessage
from server.notes import Note

CUSTOM_KINDS = ("custom", "custom_tool_call")
AnyPart = TextPart | RefusalPart | ThoughtPart | CallPart | ResultPart


def to_messages(sent: Sequence[AnyMessage], repair: bool = False) -> tuple[tuple[Message, ...], list[Note]]:
    """The typed messages, results in the order of their calls, and notes. Raises RequestRefused unless `repair`.

    Templates of open models print no ids: the order is all that tells which result belongs to which call.
    """
    located, notes = with_call_ids(list(_typed(sent)))
    notes = [*_form_notes(sent), *notes]
    if repair:
        places = [index for index, _ in located]
        whole, repairs = repaired([message for _, message in located], lambda at: f"messages[{places[at]}]")
        located = [(places[at], message) for at, message in whole]
        notes += repairs
    else:
        _check_ids(sent, located)
    ordered: list[Message] = []
    at = 0
    while at < len(located):
        index, message = located[at]
        if isinstance(message, ToolMessage):
            text = (
                "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with"
                " 'tool_calls'."
            )
            raise _misplaced(text, index, "role")
        ordered.append(message)
        at += 1
        if isinstance(message, AssistantMessage) and message.calls:
            order = {call.id: place for place, call in enumerate(message.calls)}
            results = _results_of(located, at, list(order))
            results.sort(key=lambda result: order[result.call_id])
            ordered += results
            at += len(results)
    return tuple(ordered), notes


def _results_of(located: Sequence[Located], start: int, ids: list[str]) -> list[ToolMessage]:
    results: list[ToolMessage] = []
    for index, message in located[start:]:
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
        raise _misplaced(text + ", ".join(unanswered), located[start - 1][0], "role")
    return results


def _check_ids(sent: Sequence[AnyMessage], located: Sequence[Located]) -> None:
    """Raises RequestRefused for the result without an id that answers no call without one."""
    for index, message in located:
        is_legacy = isinstance(sent[index], ChatFunctionMessage)
        if isinstance(message, ToolMessage) and not message.call_id and not is_legacy:
            text = "Missing parameter 'tool_call_id': messages with role 'tool' must have a 'tool_call_id'."
            raise _misplaced(text, index, "tool_call_id")


def _typed(sent: Sequence[AnyMessage]) -> Iterator[Located]:
    """The messages. A legacy `function_call` is given an id, and the function message behind it answers that.

    Results that are parts of a message stand before its text: they answer what came before.
    """
    legacy_id = ""
    for index, message in enumerate(sent):
        text = _text_of(message.content)
        parts: Sequence[AnyPart] = message.content if isinstance(message.content, list) else ()
        results = [part for part in parts if isinstance(part, ResultPart)]
        if isinstance(message, ChatSystemMessage):
            yield index, SystemMessage(text)
        elif isinstance(message, ChatUserMessage):
            yield from ((index, _result(part)) for part in results)
            if not parts or len(results) < len(parts):
                yield index, UserMessage(text, message.name)
        elif isinstance(message, ChatAssistantMessage):
            reply = _assistant(message, text, index)
            if message.function_call is not None and not message.tool_calls:
                legacy_id = reply.calls[0].id
            yield index, reply
        elif isinstance(message, ChatToolMessage):
            call_id = message.tool_call_id or message.id or ""
            name = message.name or message.tool_name
            answers = [_result(part, call_id) for part in results] or [ToolMessage("", call_id, name)]
            answers[-1] = replace(answers[-1], text=f"{answers[-1].text}{text}")  # with the text between them
            yield from ((index, answer) for answer in answers)
        else:
            yield index, ToolMessage(text, legacy_id, message.name)


def _assistant(message: ChatAssistantMessage, text: str, index: int) -> AssistantMessage:
    content: Sequence[AnyPart] = message.content if isinstance(message.content, list) else ()
    if message.function_call is not None and not message.tool_calls:
        calls = [_function_call(f"call_{index}", message.function_call)]
    else:
        calls = [_past_call(call) for call in message.tool_calls or ()]
    ids = {call.id for call in calls}
    inner = [PastCall(part.id, part.name, part.input) for part in content if isinstance(part, CallPart)]
    calls += [call for call in inner if not call.id or call.id not in ids]  # some proxies send a call in both forms
    return AssistantMessage(text or message.refusal or "", _thought_of(message), tuple(calls))


def _past_call(call: PastFunctionCall | PastCustomCall | FlatCall) -> PastCall:
    if isinstance(call, PastCustomCall):
        return PastCall(call.id, call.custom.name, call.custom.input, custom=True)
    if isinstance(call, PastFunctionCall):
        return _function_call(call.id, call.function)
    arguments = next((one for one in (call.arguments, call.args, call.input) if one is not None), None)
    is_custom = call.type in CUSTOM_KINDS and isinstance(arguments, str)
    return PastCall(call.call_id or call.id, call.name, arguments, is_custom)


def _result(part: ResultPart, call_id: str = "") -> ToolMessage:
    text = _text_of(part.content)
    return ToolMessage(failed_text(text) if part.is_error else text, part.tool_use_id or call_id, part.name)


def _form_notes(sent: Sequence[AnyMessage]) -> Iterator[Note]:
    """One note on calls and results in the form of another API, at the first message that has such."""
    foreign: list[int] = []
    for index, message in enumerate(sent):
        calls = message.tool_calls or () if isinstance(message, ChatAssistantMessage) else ()
        parts = message.content if isinstance(message.content, list) else ()
        is_foreign = any(isinstance(one, FlatCall | CallPart | ResultPart) for one in (*calls, *parts))
        foreign += [index] if is_foreign else []
    if foreign:
        text = f"Calls or results in the form of another API were read, in messages: {len(foreign)}."
        yield Note("form", f"messages[{foreign[0]}]", text)


def _thought_of(message: ChatAssistantMessage) -> str | None:
    """The reasoning, under the first of its names that has any; proxies send the same thought under several."""
    content = message.content if isinstance(message.content, list) else []
    parts = [part.thinking for part in content if isinstance(part, ThoughtPart)]
    names = (message.reasoning_content, message.reasoning, message.thinking)
    thoughts = map(thought_in, (*names, message.reasoning_details, message.thinking_blocks, parts))
    return next(filter(None, thoughts), None)


def _function_call(call_id: str, function: PastFunction) -> PastCall:
    return PastCall(call_id, function.name, function.arguments)


def _text_of(content: str | Sequence[AnyPart] | None) -> str:
    """The text of a message's content; parts are joined as they stand."""
    if content is None or isinstance(content, str):
        return content or ""
    shown = [part for part in content if isinstance(part, TextPart | RefusalPart)]
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in shown)


def _misplaced(text: str, index: int, name: str) -> RequestRefused:
    return bad(text, f"messages.[{index}].{name}")
