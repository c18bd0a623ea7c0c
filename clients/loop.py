"""Streamed tool loop: send a request, run the tool calls, return their results, until the model answers with text."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletionChunk

from clients.functions import Toolbox


@dataclass(slots=True)
class StreamedCall:
    """One tool call of a reply, accumulated from its chunks."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class AssistantReply:
    """One streamed reply, accumulated from its chunks."""

    text: str = ""
    calls: list[StreamedCall] = field(default_factory=list)

    def as_message(self) -> dict[str, Any]:
        """Return the reply as a message of the conversation."""
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.calls
        ]
        message = {"role": "assistant", "content": self.text or None}
        return message | ({"tool_calls": calls} if calls else {})


@dataclass(frozen=True, slots=True)
class LoopObserver:
    """Callbacks of a running loop: text and reasoning as they arrive, and calls with their results."""

    on_text: Callable[[str], None] = lambda _: None
    on_reasoning: Callable[[str], None] = lambda _: None
    on_call: Callable[[StreamedCall, str], None] = lambda _call, _result: None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A client, its tools and the messages so far; `messages` grows with every turn."""

    client: OpenAI
    model: str
    tools: Toolbox
    messages: list[Any] = field(default_factory=list)
    max_rounds: int = 10

    def send(self, text: str, observer: LoopObserver = LoopObserver()) -> str:
        """Send a user message and return the model's answer; raises RuntimeError after `max_rounds` rounds of calls."""
        self.messages.append({"role": "user", "content": text})
        for _ in range(self.max_rounds):
            reply = self._request(observer)
            self.messages.append(reply.as_message())
            if not reply.calls:
                return reply.text
            for call in reply.calls:
                result = self.tools.call(call.name, call.arguments)
                observer.on_call(call, result)
                self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        raise RuntimeError(f"no answer after {self.max_rounds} rounds of tool calls")

    def _request(self, observer: LoopObserver) -> AssistantReply:
        tools: dict[str, Any] = {"tools": self.tools.definitions} if self.tools.definitions else {}
        with self.client.chat.completions.create(
            model=self.model, messages=self.messages, stream=True, **tools
        ) as chunks:
            return gather(chunks, observer)


def gather(chunks: Iterable[ChatCompletionChunk], observer: LoopObserver) -> AssistantReply:
    """Accumulate the chunks of one choice and pass them to the observer as they arrive."""
    reply = AssistantReply()
    for delta in _deltas(chunks):
        if reasoning := (delta.model_extra or {}).get("reasoning_content"):
            observer.on_reasoning(reasoning)
        if delta.content:
            reply.text += delta.content
            observer.on_text(delta.content)
        for piece in delta.tool_calls or ():
            if piece.index == len(reply.calls):  # the first chunk of a call carries its id and name
                reply.calls.append(StreamedCall(piece.id or "", (piece.function and piece.function.name) or ""))
            if piece.function and piece.function.arguments:
                reply.calls[piece.index].arguments += piece.function.arguments
    return reply


def _deltas(chunks: Iterable[ChatCompletionChunk]) -> Iterator[Any]:
    for chunk in chunks:
        if chunk.choices:  # the usage chunk has none
            yield chunk.choices[0].delta
