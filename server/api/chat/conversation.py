"""What messages must be to each other, and the form in which they go to the prompt.

Results answer the calls of the nearest assistant message before them, each id once, in any order, with nothing
between. The faults are told in OpenAI's words (`messages.[i]` is its spelling of the path here).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.api.body import bad
from server.api.errors import RequestRefused

Plain = Mapping[str, Any]


def in_order(messages: Sequence[Plain]) -> list[Plain]:
    """The messages, checked, with results in the order of their calls and legacy calls in today's form.

    Templates of open models know no ids: the order is all that tells which result belongs to which call.
    Raises Refused.
    """
    messages = [_in_today_form(index, message) for index, message in enumerate(messages)]
    messages = list(_answering_legacy_calls(messages))
    out: list[Plain] = []
    index = 0
    while index < len(messages):
        message = messages[index]
        if message["role"] == "tool":
            text = (
                "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with"
                " 'tool_calls'."
            )
            raise _misplaced(text, index, "role")
        out.append(message)
        index += 1
        ids = [call["id"] for call in message.get("tool_calls") or ()] if message["role"] == "assistant" else []
        if ids:
            results = _results_of(messages, index, ids)
            out += sorted(results, key=lambda result: ids.index(result["tool_call_id"]))
            index += len(results)
    return out


def _results_of(messages: Sequence[Plain], start: int, ids: list[str]) -> list[Plain]:
    results: list[Plain] = []
    for index in range(start, len(messages)):
        message = messages[index]
        if message["role"] != "tool":
            break
        if message.get("tool_call_id") not in ids:
            text = (
                f"Invalid parameter: 'tool_call_id' of '{message.get('tool_call_id')}' not found in 'tool_calls' of"
                " previous message."
            )
            raise _misplaced(text, index, "tool_call_id")
        results.append(message)
    answered = {result["tool_call_id"] for result in results}
    unanswered = [call_id for call_id in ids if call_id not in answered]
    if unanswered:
        text = (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each"
            " 'tool_call_id'. The following tool_call_ids did not have response messages: "
        )
        raise _misplaced(text + ", ".join(unanswered), start - 1, "role")
    return results


def _in_today_form(index: int, message: Plain) -> Plain:
    message = {"content": "", **{name: value for name, value in message.items() if value is not None}}
    if message["role"] == "tool":
        call_id = message.get("tool_call_id", message.get("id"))
        if call_id is None:
            text = "Missing parameter 'tool_call_id': messages with role 'tool' must have a 'tool_call_id'."
            raise _misplaced(text, index, "tool_call_id")
        message["tool_call_id"] = call_id
    if message["role"] == "assistant" and not message.get("tool_calls"):
        message.pop("tool_calls", None)
    return message


def _answering_legacy_calls(messages: Sequence[Plain]) -> Iterator[Plain]:
    """`function_call` and role `function` as a call with an id and its result."""
    open_id = ""
    for index, message in enumerate(messages):
        call = message.get("function_call") if message["role"] == "assistant" else None
        if call is not None and "tool_calls" not in message:
            open_id = f"call_{index}"
            rest = {name: value for name, value in message.items() if name != "function_call"}
            yield {**rest, "tool_calls": [{"id": open_id, "type": "function", "function": call}]}
        elif message["role"] == "function":
            rest = {name: value for name, value in message.items() if name != "role"}
            yield {"role": "tool", "tool_call_id": open_id, **rest}
        else:
            yield message


def _misplaced(text: str, index: int, name: str) -> RequestRefused:
    return bad(text, f"messages.[{index}].{name}")
