"""Chat without an HTTP server: the same service and engine, in the caller's own program.

    from server.offline import Chat

    with Chat("Qwen/Qwen3-0.6B", device="cuda") as chat:
        message = chat.chat([{"role": "user", "content": "What is the weather in Oslo?"}], tools=[get_weather])

A request is validated, prompted, constrained and parsed by the code that serves HTTP, and the engine is the same
separate process; only HTTP is missing.
"""

import asyncio
import atexit
import contextlib
import dataclasses
import json
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, overload

import msgspec

from clients.functions import Toolbox, as_tool
from server.adapter_folder import parse_adapters
from server.api.body import read_body_object
from server.api.chat.schemas import read_request
from server.api.chat.to_reply import ReplyStyle, chunks_of, whole_reply
from server.api.chat.to_request import RequestMapper
from server.api.errors import RequestRefused
from server.api.sampling import SamplingMapper
from server.backends.engine_process import EngineProcess
from server.checkpoint.locate import served_name
from server.checkpoint.shipped import choose_model
from server.errors import BadRequest
from server.prompt.builder import PromptBuilder
from server.service import Generation, build_service
from server.settings import AUTO_MODEL, resolve
from server.startup import build_backend, open_checkpoint

T = TypeVar("T")
Message = dict[str, Any]
Tool = Callable[..., Any] | Mapping[str, Any]


class Chat:
    """A loaded model to chat with; blocking, and usable from several threads at once.

    `options` are the server's own, by the names of `toolwire serve --help` (`max_model_len=8192`). Loads the model in
    an engine process; raises CannotStart. `close` ends that process, so does leaving the `with` block or the program.
    """

    def __init__(self, model: str = AUTO_MODEL, **options: Any) -> None:
        settings = choose_model(resolve({"model": model, **options}, {}, {}).settings)
        self._model = served_name(settings.model.model, settings.model.served_model_name)
        self._adapters = {one.name for one in parse_adapters(settings.engine.adapter, (self._model,))}
        with contextlib.ExitStack() as undo:
            # imports while the checkpoint is read
            engine = None if settings.remote.is_used else undo.enter_context(EngineProcess())
            checkpoint = open_checkpoint(settings)
            undo.pop_all()
        sampling, api = SamplingMapper(checkpoint.defaults, checkpoint.tokenizer.get_vocab_size()), settings.api
        self._mapper = RequestMapper(sampling, api.strict, api.named_finish, api.must_answer, api.repair_history)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="offline chat", daemon=True)
        self._thread.start()
        prompt_builder = PromptBuilder(checkpoint, settings)
        self._backend = self._wait_for(_call(lambda: build_backend(settings, checkpoint, engine)))
        self._service = build_service(checkpoint, prompt_builder, self._backend)
        atexit.register(self.close)
        try:
            self.ready = self._wait_for(self._backend.start())
            prompt_builder.window.narrow(self.ready.max_model_len)
        except BaseException:
            self.close()
            raise

    @overload
    def chat(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ..., stream: Literal[False] = ..., **fields: Any
    ) -> Message: ...

    @overload
    def chat(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ..., *, stream: Literal[True], **fields: Any
    ) -> Iterator[Message]: ...

    def chat(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), stream: bool = False, **fields: Any
    ) -> Message | Iterator[Message]:
        """The model's next message, ready to be appended to `messages`; with `stream` its deltas as they are written.

        `tools` are plain functions (annotations and docstring describe them) or OpenAI tool objects; calls are
        returned, not made. `fields` are further keys of a chat completion request (`temperature`, `tool_choice`,
        `response_format`, …; `model` may name an adapter), except `n`. Raises BadRequest and the other errors of
        `server.errors`.
        """
        if fields.get("n") not in (None, 1):
            raise BadRequest("one reply at a time here; ask again for another", param="n")
        body = {"model": self._model, "messages": list(messages), "stream": stream, **fields}
        if tools:
            body["tools"] = [as_tool(tool).definition if callable(tool) else tool for tool in tools]
        return self._deltas(body) if stream else self._wait_for(self._whole(body))

    def run(self, text: str, tools: Sequence[Callable[..., Any]], max_rounds: int = 10, **fields: Any) -> list[Message]:
        """The whole tool loop for one question: calls are made, results handed back, until it answers in words.

        Returns the conversation; raises BadRequest if there is no answer after `max_rounds`.
        """
        toolbox = Toolbox.of(tools)
        messages: list[Message] = [{"role": "user", "content": text}]
        for _ in range(max_rounds):
            message = self.chat(messages, tools, **fields)
            messages.append(message)
            if not message.get("tool_calls"):
                return messages
            for call in message["tool_calls"]:
                result = toolbox.call(call["function"]["name"], call["function"]["arguments"])
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        raise BadRequest(f"no answer after {max_rounds} rounds of tool calls; raise max_rounds or look at the tools")

    def close(self) -> None:
        """End the engine process; does nothing the second time."""
        atexit.unregister(self.close)
        if not self._loop.is_running():
            return
        self._wait_for(self._backend.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _start(self, body: dict[str, Any]) -> tuple[Generation, ReplyStyle]:
        try:
            # As if it had come over the wire: a copy, and only JSON; halves of surrogate pairs as escapes.
            raw = json.dumps(msgspec.to_builtins(body)).encode()
            body, notes = read_body_object(raw, self._mapper.strict)
            sent, more = read_request(body, self._mapper.strict)
            request = self._mapper.to_request(sent, notes + more)
            if request.model in self._adapters:
                request = dataclasses.replace(request, adapter=request.model)
        except RequestRefused as refused:
            raise BadRequest(str(refused), param=refused.error.param, code=refused.error.code) from refused
        return await self._service.start(request), self._mapper.style(sent)

    async def _whole(self, body: dict[str, Any]) -> Message:
        reply = await whole_reply(*await self._start(body))
        message: Message = msgspec.to_builtins(reply.choices[0].message)
        return message

    def _deltas(self, body: dict[str, Any]) -> Iterator[Message]:
        steps = chunks_of(*self._wait_for(self._start(body)))
        try:
            while (chunks := self._wait_for(_next(steps))) is not None:
                for chunk in chunks:
                    for choice in chunk.choices:
                        if delta := msgspec.to_builtins(choice.delta):
                            yield delta
        finally:
            self._wait_for(steps.aclose())  # a reader that stops early frees the sequence

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _next(steps: AsyncGenerator[T, None]) -> T | None:
    return await anext(steps, None)


async def _call(make: Callable[[], T]) -> T:
    """Run in the loop's own thread what must be made there."""
    return make()
