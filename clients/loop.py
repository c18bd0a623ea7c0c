"""The tool loop: ask, run what the model calls, hand back the results, until it answers in words. Streamed."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletionChunk

from clients.functions import Toolbox


@dataclass(slots=True)
class Called:
    """One call of a reply, put together from its pieces."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class AssistantReply:
    """One streamed reply, put together from its chunks."""

    text: str = ""
    calls: list[Called] = field(default_factory=list)

    def as_message(self) -> dict[str, Any]:
        """The reply as the conversation keeps it."""
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.calls
        ]
        message = {"role": "assistant", "content": self.text or None}
        return message | ({"tool_calls": calls} if calls else {})


@dataclass(frozen=True, slots=True)
class LoopObserver:
    """What is told while a loop runs: pieces of text, pieces of thought, and calls with their results."""

    on_text: Callable[[str], None] = lambda _: None
    on_thought: Callable[[str], None] = lambda _: None
    on_call: Callable[[Called, str], None] = lambda _called, _result: None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Who is asked, with which tools; `messages` grows by every turn."""

    client: OpenAI
    model: str
    tools: Toolbox
    messages: list[Any] = field(default_factory=list)
    max_rounds: int = 10

    def say(self, text: str, watcher: LoopObserver = LoopObserver()) -> str:
        """One turn of the user: returns the model's answer; raises RuntimeError if it calls tools without end."""
        self.messages.append({"role": "user", "content": text})
        for _ in range(self.max_rounds):
            reply = self._ask(watcher)
            self.messages.append(reply.as_message())
            if not reply.calls:
                return reply.text
            for call in reply.calls:
                result = self.tools.call(call.name, call.arguments)
                watcher.on_call(call, result)
                self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        raise RuntimeError(f"no answer after {self.max_rounds} rounds of tool calls")

    def _ask(self, watcher: LoopObserver) -> AssistantReply:
        tools: dict[str, Any] = {"tools": self.tools.definitions} if self.tools.definitions else {}
        with self.client.chat.completions.create(
            model=self.model, messages=self.messages, stream=True, **tools
        ) as chunks:
            return gather(chunks, watcher)


def gather(chunks: Iterable[ChatCompletionChunk], watcher: LoopObserver) -> AssistantReply:
    """Put the chunks of one choice together, telling the watcher as they come."""
    reply = AssistantReply()
    for delta in _deltas(chunks):
        if thought := (delta.model_extra or {}).get("reasoning_content"):
            watcher.on_thought(thought)
        if delta.content:
            reply.text += delta.content
            watcher.on_text(delta.content)
        for piece in delta.tool_calls or ():
            if piece.index == len(reply.calls):  # the first piece of a call brings its id and name
                reply.calls.append(Called(piece.id or "", (piece.function and piece.function.name) or ""))
            if piece.function and piece.function.arguments:
                reply.calls[piece.index].arguments += piece.function.arguments
    return reply


def _deltas(chunks: Iterable[ChatCompletionChunk]) -> Iterator[Any]:
    for chunk in chunks:
        if chunk.choices:  # the chunk with the usage has none
            yield chunk.choices[0].delta
