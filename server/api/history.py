"""Repair of histories whose calls and results do not match: cut, compacted or interrupted (`--repair-history`)."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from server.chat_request import AssistantMessage, Message, ToolMessage, UserMessage
from server.notes import Note

MISSING_RESULT = "(The result of this call is missing from the conversation.)"
ORPHAN = "(Result of a call that is missing from the conversation.)"
Call = tuple[int, int]  # the position of its message, and its own in that message


def repaired(
    messages: Sequence[Message], place_of: Callable[[int], str] = "messages[{}]".format
) -> tuple[list[tuple[int, Message]], list[Note]]:
    """The messages with each call followed by a result, with their old positions, and a note for each change.

    A result goes to the nearest call of its id that has none yet, before it or else behind it; one without an id
    to the first call of the nearest message with such calls. A result without a call stands as the text of a user, and
    a call without a result has one that says so. `place_of` names a position in notes.
    """
    waiting = _WaitingCalls(messages)
    results: dict[Call, int] = {}
    notes: list[Note] = []
    for position, message in enumerate(messages):
        if not isinstance(message, ToolMessage):
            continue
        call = waiting.take(message.call_id, position)
        if call is None:
            notes.append(Note("history", place_of(position), "This result has no call; it stands as text."))
            continue
        results[call] = position
        between = messages[call[0] + 1 : position]
        if position < call[0] or not all(isinstance(other, ToolMessage) for other in between):
            notes.append(Note("history", place_of(position), "This result was put behind its call."))
    for (position, _), call_id in waiting.left():
        notes.append(Note("history", place_of(position), f"The result of the call '{call_id}' is missing."))
    return list(_in_order(messages, results)), notes


class _WaitingCalls:
    """The calls of a conversation that have no result yet, in order."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._ids = {
            (position, index): call.id
            for position, message in enumerate(messages)
            if isinstance(message, AssistantMessage)
            for index, call in enumerate(message.calls)
        }
        self._all = list(self._ids)
        self._by_id: dict[str, list[Call]] = {}
        for call, call_id in self._ids.items():
            self._by_id.setdefault(call_id, []).append(call)

    def take(self, call_id: str, position: int) -> Call | None:
        """The call that a result at this position answers, which waits no longer; None if there is none."""
        calls = self._by_id.get(call_id, []) if call_id else self._all
        before = bisect_left(calls, (position, 0))
        if before:
            before = bisect_left(calls, (calls[before - 1][0], 0))  # the first of the nearest message
        elif not calls or not call_id:
            return None
        call = calls[before]
        for listed in (self._all, self._by_id[self._ids[call]]):
            del listed[bisect_left(listed, call)]
        return call

    def left(self) -> Iterator[tuple[Call, str]]:
        """The calls that still wait, with their ids."""
        return ((call, self._ids[call]) for call in self._all)


def _in_order(messages: Sequence[Message], results: dict[Call, int]) -> Iterator[tuple[int, Message]]:
    used = set(results.values())
    for position, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if position not in used:
                yield position, UserMessage(f"{ORPHAN}\n{message.text}")
            continue
        yield position, message
        for index, call in enumerate(message.calls if isinstance(message, AssistantMessage) else ()):
            at = results.get((position, index))
            answer = messages[at] if at is not None else None
            if isinstance(answer, ToolMessage):
                yield position, replace(answer, call_id=call.id)
            else:
                yield position, ToolMessage(MISSING_RESULT, call.id)
