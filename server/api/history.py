"""Repair of histories whose calls and results do not match: cut, compacted or interrupted (`--repair-history`)."""

from collections.abc import Sequence
from dataclasses import replace

from server.chat_request import AssistantMessage, Message, ToolMessage, UserMessage
from server.notes import Note

MISSING_RESULT = "(The result of this call is missing from the conversation.)"
ORPHAN = "(Result of a call that is missing from the conversation.)"


def repaired(messages: Sequence[Message]) -> tuple[list[Message], list[Note]]:
    """The messages with each call followed by a result, and a note for each change.

    A result further down goes up to its call; one without an id belongs to the first call that has none yet. A result
    without a call stands as the text of a user, and a call without a result has one that says so.
    """
    results: dict[int, list[ToolMessage]] = {}  # by the position of their calls' message
    orphans: set[int] = set()
    notes: list[Note] = []
    caller = -1
    for position, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            caller = position if message.calls else caller
        elif isinstance(message, ToolMessage):
            answer = _answer(message, messages[caller] if caller >= 0 else None, results.get(caller, []))
            if answer is None:
                orphans.add(position)
                notes.append(_note(position, "This result has no call; it stands as text."))
            else:
                if position > caller + 1 + len(results.get(caller, [])):
                    notes.append(_note(position, "This result was put behind its call."))
                results.setdefault(caller, []).append(answer)
    whole: list[Message] = []
    for position, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            whole += [UserMessage(f"{ORPHAN}\n{message.text}")] if position in orphans else []
            continue
        whole.append(message)
        if isinstance(message, AssistantMessage):
            answered = {result.call_id for result in results.get(position, [])}
            missing = [call.id for call in message.calls if call.id not in answered]
            whole += [*results.get(position, []), *(ToolMessage(MISSING_RESULT, call_id) for call_id in missing)]
            notes += [_note(position, f"The result of the call '{call_id}' is missing.") for call_id in missing]
    return whole, notes


def _answer(result: ToolMessage, caller: Message | None, others: Sequence[ToolMessage]) -> ToolMessage | None:
    """The result with the id of its call in `caller`; None if there is none."""
    if not isinstance(caller, AssistantMessage):
        return None
    ids = [call.id for call in caller.calls]
    if result.call_id:
        return result if result.call_id in ids else None
    answered = {other.call_id for other in others}
    free = next((call_id for call_id in ids if call_id not in answered), None)
    return None if free is None else replace(result, call_id=free)


def _note(position: int, text: str) -> Note:
    return Note("history", f"messages[{position}]", text)
