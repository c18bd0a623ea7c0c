"""Repair of histories: ids for calls that have none, and, with `--repair-history`, results that do not match calls."""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace

from server.chat_request import AssistantMessage, Message, PastCall, ToolMessage, UserMessage
from server.notes import Note

MISSING_RESULT = "(The result of this call is missing from the conversation.)"
ORPHAN = "(Result of a call that is missing from the conversation.)"
Call = tuple[int, int]  # the position of its message, and its own in that message
Located = tuple[int, Message]  # a message, and the position of the one that it was sent in


def with_call_ids(located: Sequence[Located]) -> tuple[list[Located], list[Note]]:
    """The messages with an id for each call that has none (""), and a note for each reply that has such calls.

    Results up to the next reply whose id is none of its calls' answer those without an id: the one of their name, else
    in order.
    """
    messages = list(located)
    taken = {call.id for _, message in located for call in _calls_of(message)}
    notes: list[Note] = []
    for at, (index, message) in enumerate(located):
        if not isinstance(message, AssistantMessage) or all(call.id for call in message.calls):
            continue
        ids = [call.id for call in message.calls]
        answers = _answers(message.calls, messages, at + 1)
        for place, call in enumerate(message.calls):
            if call.id:
                continue
            answer = messages[answers[place]][1] if place in answers else None
            sent = answer.call_id if isinstance(answer, ToolMessage) else ""
            ids[place] = sent if sent and sent not in taken else _free_id(f"call_{index}_{place}", taken)
            taken.add(ids[place])
            if isinstance(answer, ToolMessage):
                messages[answers[place]] = (messages[answers[place]][0], replace(answer, call_id=ids[place]))
        calls = tuple(replace(call, id=new) for call, new in zip(message.calls, ids, strict=True))
        messages[at] = (index, replace(message, calls=calls))
        text = "Calls without an id were given one; results without a call of their id answer them in order."
        notes.append(Note("history", f"messages[{index}]", text))
    return messages, notes


def _calls_of(message: Message) -> tuple[PastCall, ...]:
    return message.calls if isinstance(message, AssistantMessage) else ()


def _answers(calls: Sequence[PastCall], messages: Sequence[Located], start: int) -> dict[int, int]:
    """For each call without an id, by its place, the position of its result, where there is one."""
    ids = {call.id for call in calls if call.id}
    results: list[tuple[int, ToolMessage]] = []
    for at in range(start, len(messages)):
        message = messages[at][1]
        if isinstance(message, AssistantMessage):
            break
        if isinstance(message, ToolMessage) and message.call_id not in ids:
            results.append((at, message))
    waiting: dict[int, str] = {place: call.name for place, call in enumerate(calls) if not call.id}
    by_name: dict[str, deque[int]] = {}
    for place, name in waiting.items():
        by_name.setdefault(name, deque()).append(place)
    answers: dict[int, int] = {}
    unnamed: list[int] = []
    for at, result in results:
        if result.name is not None and by_name.get(result.name):
            place = by_name[result.name].popleft()
            answers[place] = at
            del waiting[place]
        else:
            unnamed.append(at)
    return answers | dict(zip(waiting, unnamed, strict=False))


def _free_id(name: str, taken: Container[str]) -> str:
    while name in taken:
        name += "_"
    return name


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
