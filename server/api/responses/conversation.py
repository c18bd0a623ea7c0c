"""Items -> typed messages: a run of the assistant's items is one message, results are placed behind their calls.

Items of one reply and the chat message of the same reply give the same AssistantMessage, so that a conversation has one
prompt whichever way it comes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from server.api.body import bad
from server.api.history import repaired
from server.api.responses.items import (
    CallOutputItem,
    CompactionItemIn,
    CustomCallItemIn,
    FunctionCallItemIn,
    InputItem,
    ItemReferenceIn,
    MessageItemIn,
    OtherItem,
    ReasoningItemIn,
)
from server.api.responses.tools import flat_name
from server.chat_request import AssistantMessage, Message, PastCall, SystemMessage, ToolMessage, UserMessage
from server.notes import Note

SUMMARY = "Summary of the conversation up to here, of which only the messages above are left:\n\n"
OpenSealed = Callable[[str, str], str]  # an opaque thought and its param -> the thought


@dataclass(slots=True)
class _Reply:
    """The assistant's message under way."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[PastCall] = field(default_factory=list)

    ends_with_call: bool = False

    def takes(self, item: InputItem) -> bool:
        """Whether this item may belong to the same reply: no thought behind anything else, no text behind text."""
        if isinstance(item, ReasoningItemIn):
            return not self.text and not self.calls
        return not isinstance(item, MessageItemIn) or not self.text or self.ends_with_call


class ConversationReader:
    """Reads the items of one conversation."""

    def __init__(
        self, open_sealed: OpenSealed, open_summary: OpenSealed, repairs: bool = False, strict: bool = False
    ) -> None:
        self._open_sealed = open_sealed
        self._open_summary = open_summary
        self._repairs = repairs
        self._strict = strict
        self._messages: list[Message | _Reply] = []
        self._places: list[str] = []  # of the messages: the param of their first item
        self._reply: _Reply | None = None
        self._results: dict[str, ToolMessage] = {}
        self._calls: dict[str, str] = {}  # by id: the param of the call
        self._waiting: dict[str, list[tuple[_Reply, deque[str]]]] = {}  # by sent id: calls without a result, by reply
        self._cut_off: set[str] = set()  # ids of calls that a limit ended
        self._notes: list[Note] = []

    def read(self, items: Sequence[InputItem], path: str = "input") -> None:
        """Add items; `path` is where they are from. Raises RequestRefused for what cannot stand where it stands."""
        for position, item in enumerate(items):
            self._add(item, f"{path}[{position}]")

    def close(self) -> tuple[tuple[Message, ...], tuple[Note, ...]]:
        """The messages. Raises RequestRefused for a call without its result, unless histories are repaired."""
        if self._repairs:
            located, notes = repaired([*self._whole_messages()], self._places.__getitem__)
            return tuple(message for _, message in located), (*self._notes, *notes)
        messages: list[Message] = []
        for one in self._messages:
            if not isinstance(one, _Reply):
                messages.append(one)
                continue
            calls = tuple(call for call in one.calls if self._is_answered(call.id))
            reasoning = "".join(one.reasoning) or None
            messages.append(AssistantMessage("".join(one.text), reasoning, calls))
            messages += [self._results[call.id] for call in calls]
        return tuple(messages), tuple(self._notes)

    def _whole_messages(self) -> Iterator[Message]:
        for one in self._messages:
            if isinstance(one, _Reply):
                calls = (call for call in one.calls if call.id not in self._cut_off or self._is_answered(call.id))
                yield AssistantMessage("".join(one.text), "".join(one.reasoning) or None, tuple(calls))
            else:
                yield one

    def _is_answered(self, call_id: str) -> bool:
        if call_id in self._results:
            return True
        param = self._calls[call_id]
        if call_id not in self._cut_off:
            raise bad(f"No tool output found for function call {call_id}.", "input")
        self._notes.append(Note("history", param, "a call that was cut off and has no output is left out."))
        return False

    def _add(self, item: InputItem, param: str) -> None:
        match item:
            case MessageItemIn(role="assistant"):
                reply = self._reply_for(item, param)
                reply.reasoning += [item.thought] if item.thought else []
                reply.text.append(item.content)
                reply.ends_with_call = False
            case MessageItemIn():
                make = UserMessage if item.role == "user" else SystemMessage
                self._append(make(item.content), param)
            case ReasoningItemIn():
                self._reply_for(item, param).reasoning.append(self._thought_of(item, param))
            case FunctionCallItemIn():
                name = flat_name(item.namespace, item.name)
                call_id = self._add_call(PastCall(item.call_id, name, item.arguments), item, param)
                if item.status == "incomplete":
                    self._cut_off.add(call_id)
            case CustomCallItemIn():
                name = flat_name(item.namespace, item.name)
                call_id = self._add_call(PastCall(item.call_id, name, item.input, custom=True), item, param)
                if item.status == "incomplete":
                    self._cut_off.add(call_id)
            case CallOutputItem():
                self._add_result(item, param)
            case CompactionItemIn():
                summary = self._open_summary(item.encrypted_content, f"{param}.encrypted_content")
                self._append(UserMessage(SUMMARY + summary), param)
            case ItemReferenceIn():
                text = f"Item with id '{item.id}' not found."
                raise bad(text, f"{param}.id", "item_not_found")
            case OtherItem(text=""):
                self._notes.append(Note("left_out", param, f"items of type '{item.type[:64]}' have no meaning here."))
            case OtherItem():
                self._notes.append(Note("left_out", param, f"of items of type '{item.type[:64]}' the text is read."))
                self._append(UserMessage(item.text), param)

    def _append(self, message: Message, param: str) -> None:
        self._reply = None
        self._messages.append(message)
        self._places.append(param)

    def _reply_for(self, item: InputItem, param: str) -> _Reply:
        if self._reply is None or not self._reply.takes(item):
            self._reply = _Reply()
            self._messages.append(self._reply)
            self._places.append(param)
        return self._reply

    def _add_call(self, call: PastCall, item: InputItem, param: str) -> str:
        """Add a call; return its id, a new one where it is another call's too."""
        sent_id = call.id
        if not sent_id:
            call = replace(call, id=f"call in {param}")
            text = "A call without an id was given one; outputs without an id answer the calls of a reply in order."
            self._notes.append(Note("history", f"{param}.call_id", text))
        if call.id in self._calls and not self._repairs:
            if self._strict:
                text = f"Invalid '{param}.call_id': '{call.id}' is the id of another call as well; ids must be unique."
                raise bad(text, f"{param}.call_id", "invalid_value")
            if self._waiting[call.id] and _root(self._calls[call.id]) != _root(param):
                self._notes.append(Note("history", param, "A call that is continued was sent again; it stands once."))
                return call.id
            # Other servers count calls from the beginning in each reply.
            call = replace(call, id=f"{call.id} in {param}")
            text = "This id is another call's as well: outputs answer the calls of one reply in their order."
            self._notes.append(Note("history", f"{param}.call_id", text))
        self._calls[call.id] = param
        reply = self._reply_for(item, param)
        reply.calls.append(call)
        waiting = self._waiting.setdefault(sent_id, [])
        if not waiting or waiting[-1][0] is not reply:
            waiting.append((reply, deque()))
        waiting[-1][1].append(call.id)
        reply.ends_with_call = True
        return call.id

    def _add_result(self, item: CallOutputItem, param: str) -> None:
        if self._repairs:
            self._append(ToolMessage(item.output, item.call_id), param)
            self._results[item.call_id] = ToolMessage(item.output, item.call_id)
            return
        if item.call_id not in self._waiting:
            text = f"No tool call found for function call output with call_id {item.call_id}."
            raise bad(text, param)
        waiting = self._waiting[item.call_id]
        if not waiting:
            text = f"Invalid '{param}.call_id': the call '{item.call_id}' has an output already."
            raise bad(text, f"{param}.call_id", "invalid_value")
        call_id = waiting[-1][1].popleft()
        if not waiting[-1][1]:
            waiting.pop()
        self._results[call_id] = ToolMessage(item.output, call_id)
        self._reply = None  # what the assistant says behind a result is another reply

    def _thought_of(self, item: ReasoningItemIn, param: str) -> str:
        if item.encrypted_content:
            return self._open_sealed(item.encrypted_content, f"{param}.encrypted_content")
        return "".join(part.text for part in item.content or item.summary or ())


def _root(param: str) -> str:
    return param.partition("[")[0]
