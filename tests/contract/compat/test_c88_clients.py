"""C88 and C89: foreign clients, each in a tool loop of three rounds with two calls at once.

Each is run against the built-in model behind the real server, and against a scripted reply of two calls, which a small
model writes only now and then.
"""

import asyncio
import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field

from tests.contract.requests import MODEL
from tests.live import Live

# Deprecations and unclosed sockets inside a client are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

QUESTION = "What is the weather in Paris and in Rome?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of the city"}},
    "required": ["city"],
}
RESULT = '{"temperature": 21, "sky": "sunny"}'


@dataclass(frozen=True, slots=True)
class Place:
    """A server under test. `scripted` always writes two calls, for Paris and Rome."""

    url: str
    scripted: bool

    def check(self, arguments: list[Any]) -> None:
        """The calls arrived whole and in order."""
        read = [json.loads(one) if isinstance(one, str) else one for one in arguments]
        assert read and all(set(one) == {"city"} for one in read)
        if self.scripted:
            assert [one["city"] for one in read] == ["Paris", "Rome"]


@pytest.fixture(params=["scripted", "built-in"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "scripted":
        return Place(request.getfixturevalue("script"), True)
    return Place(request.getfixturevalue("live").url, False)


@pytest.fixture(autouse=True)
def foreign_sockets() -> Iterator[None]:
    """Close sockets that a client leaves open, where its warnings are ignored."""
    yield
    gc.collect()


def test_c88_langchain(place: Place) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        base_url=f"{place.url}/v1", api_key="any", model=MODEL, temperature=0, max_retries=0, max_completion_tokens=300
    )
    tool = {"name": "get_weather", "description": "Get the current weather for a city", "parameters": SCHEMA}
    bound = chat.bind_tools([tool])
    messages: list[Any] = [HumanMessage(QUESTION)]
    whole = bound.invoke(messages)
    pieces = list(bound.stream(messages))
    merged = pieces[0]
    for piece in pieces[1:]:
        merged = merged + piece
    assert not merged.invalid_tool_calls and not whole.invalid_tool_calls
    assert [(call["name"], call["args"]) for call in merged.tool_calls] == [
        (call["name"], call["args"]) for call in whole.tool_calls
    ]
    place.check([call["args"] for call in whole.tool_calls])
    assert merged.response_metadata["finish_reason"] == "tool_calls"
    for _ in range(3):
        called = chat.bind_tools([tool], tool_choice="any").invoke(messages)
        messages += [called, *(ToolMessage(RESULT, tool_call_id=call["id"]) for call in called.tool_calls)]
        reply = chat.bind_tools([tool], tool_choice="none").invoke(messages)
        assert called.tool_calls and reply.content and not reply.tool_calls
        messages += [reply, HumanMessage(QUESTION)]


@pytest.mark.long
def test_c89_autogen(place: Place) -> None:
    from autogen_core.models import (
        AssistantMessage,
        FunctionExecutionResult,
        FunctionExecutionResultMessage,
        ModelInfo,
        UserMessage,
    )
    from autogen_core.tools import FunctionTool
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    def get_weather(city: str) -> str:
        """Get the current weather for a city"""
        return RESULT

    async def loop() -> None:
        info = ModelInfo(
            vision=False, function_calling=True, json_output=True, family="unknown", structured_output=True
        )
        client = OpenAIChatCompletionClient(
            model=MODEL, base_url=f"{place.url}/v1", api_key="any", model_info=info, temperature=0, max_tokens=300
        )
        tool = FunctionTool(get_weather, description="Get the current weather for a city")
        messages: list[Any] = [UserMessage(content=QUESTION, source="user")]
        for _ in range(3):
            options: dict[str, Any] = {"tools": [tool], "tool_choice": "required"}
            streamed = [part async for part in client.create_stream(messages, **options)][-1]
            assert not isinstance(streamed, str)
            whole = await client.create(messages, **options)
            assert whole.finish_reason == streamed.finish_reason == "function_calls"
            assert [call.name for call in whole.content] == [call.name for call in streamed.content]
            place.check([call.arguments for call in whole.content])
            place.check([call.arguments for call in streamed.content])
            results = [
                FunctionExecutionResult(content=RESULT, call_id=call.id, name=call.name, is_error=False)
                for call in streamed.content
            ]
            messages += [
                AssistantMessage(content=streamed.content, source="assistant"),
                FunctionExecutionResultMessage(content=results),
            ]
            reply = await client.create(messages, tools=[tool], tool_choice="none")
            assert isinstance(reply.content, str) and reply.content
            messages += [
                AssistantMessage(content=reply.content, source="assistant"),
                UserMessage(content=QUESTION, source="user"),
            ]
        await client.close()

    asyncio.run(loop())


def test_c89_litellm(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses a stream without a finish reason, and drops a call that lacks its id or its name."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # nothing is fetched from anywhere
    import litellm

    tool = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
    options: dict[str, Any] = {
        "model": f"openai/{MODEL}", "api_base": f"{place.url}/v1", "api_key": "any", "tools": [tool],
        "temperature": 0, "max_tokens": 300, "num_retries": 0,
    }  # fmt: skip
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for _ in range(3):
        whole = litellm.completion(messages=messages, tool_choice="required", **options)
        pieces = list(litellm.completion(messages=messages, tool_choice="required", stream=True, **options))
        streamed = litellm.stream_chunk_builder(pieces, messages=messages)
        for reply in (whole, streamed):
            assert reply.choices[0].finish_reason == "tool_calls"
            place.check([call.function.arguments for call in reply.choices[0].message.tool_calls])
        assert whole.usage.completion_tokens > 0
        called = streamed.choices[0].message
        results = [{"role": "tool", "tool_call_id": call.id, "content": RESULT} for call in called.tool_calls]
        messages += [called.model_dump(exclude_none=True), *results]
        reply = litellm.completion(messages=messages, tool_choice="none", **options).choices[0].message
        assert reply.content and not reply.tool_calls
        messages += [reply.model_dump(exclude_none=True), {"role": "user", "content": QUESTION}]


@pytest.mark.long
def test_c89_instructor(live: Live) -> None:
    """It forces one tool, named after a class, and reads the arguments while they are written."""
    import instructor

    class Weather(BaseModel):
        """Get the current weather for a city"""

        city: str = Field(description="Name of the city")

    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as bare:
        client = instructor.from_openai(bare, mode=instructor.Mode.TOOLS)
        options: dict[str, Any] = {"model": MODEL, "max_retries": 0, "temperature": 0, "max_tokens": 300}
        messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
        for _ in range(3):
            whole = client.create(response_model=Weather, messages=messages, **options)
            *parts, last = client.create_partial(response_model=Weather, messages=messages, **options)
            assert whole.city and last.city
            assert all(last.city.startswith(part.city or "") for part in parts)
            messages += [{"role": "assistant", "content": whole.city}, messages[0]]


@pytest.mark.long
def test_c89_smolagents(place: Place) -> None:
    from smolagents import ChatMessage, MessageRole, OpenAIModel, tool
    from smolagents.models import agglomerate_stream_deltas

    @tool
    def get_weather(city: str) -> str:
        """Get the current weather for a city

        Args:
            city: Name of the city
        """
        return RESULT

    model = OpenAIModel(model_id=MODEL, api_base=f"{place.url}/v1", api_key="any", temperature=0, max_tokens=300)
    messages = [ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": QUESTION}])]
    whole = model.generate(messages, tools_to_call_from=[get_weather], tool_choice="auto")
    streamed = agglomerate_stream_deltas(
        list(model.generate_stream(messages, tools_to_call_from=[get_weather], tool_choice="auto"))
    )
    for reply in (whole, streamed):
        assert reply.tool_calls is not None
        place.check([call.function.arguments for call in reply.tool_calls])
    assert whole.token_usage is not None and whole.token_usage.output_tokens > 0
    for _ in range(2):  # its own default is tool_choice "required"
        reply = model.generate(messages, tools_to_call_from=[get_weather])
        assert reply.tool_calls
        reply = f"The weather: {RESULT}"
        messages += [
            ChatMessage(role=MessageRole.ASSISTANT, content=[{"type": "text", "text": reply}]),
            ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": "And now?"}]),
        ]
    assert model.generate(messages, reasoning_effort="none").content  # thinking, a small model may reach its limit


@pytest.mark.parametrize("streamed", [pytest.param(False, marks=pytest.mark.long), True])
def test_c89_llm(place: Place, streamed: bool) -> None:
    import llm
    from llm.default_plugins.openai_models import Chat

    cities: list[str] = []

    def get_weather(city: str) -> str:
        """Get the current weather for a city"""
        cities.append(city)
        return RESULT

    model = Chat(model_id="toolwire", model_name=MODEL, api_base=f"{place.url}/v1", supports_tools=True)
    model.key = "any"
    conversation = model.conversation()
    for _ in range(3):
        chain = conversation.chain(
            QUESTION, tools=[llm.Tool.function(get_weather)], stream=streamed, chain_limit=6,
            options={"temperature": 0, "max_tokens": 300},
        )  # fmt: skip
        assert chain.text()
    if place.scripted:
        assert cities[:2] == ["Paris", "Rome"]


@pytest.mark.long
def test_c89_pydantic_ai(place: Place) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    cities: list[str] = []
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{place.url}/v1", api_key="any"))
    agent = Agent(model, model_settings={"temperature": 0, "max_tokens": 300})

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Get the current weather for a city"""
        cities.append(city)
        return RESULT

    async def loop() -> None:
        history: Any = None
        for _ in range(3):
            result = await agent.run(QUESTION, message_history=history)
            assert result.output
            history = result.all_messages()
        async with agent.run_stream(QUESTION) as stream:
            assert await stream.get_output()

    asyncio.run(loop())
    if place.scripted:
        assert sorted(cities[:2]) == ["Paris", "Rome"]  # it runs both at once


def test_langchain_anthropic(place: Place) -> None:
    from langchain_anthropic import ChatAnthropic
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = ChatAnthropic(base_url=place.url, api_key="any", model_name=MODEL, max_retries=0, max_tokens_to_sample=300)
    tool = {"name": "get_weather", "description": "Get the current weather for a city", "input_schema": SCHEMA}
    messages: list[Any] = [HumanMessage(QUESTION)]
    for stream in (False, True):
        bound = chat.bind_tools([tool], tool_choice="any")
        called = bound.invoke(messages)
        if stream:
            first, *rest = bound.stream(messages)
            for piece in rest:
                first = first + piece
            called = first
        place.check([call["args"] for call in called.tool_calls])
        messages += [called, *(ToolMessage(RESULT, tool_call_id=call["id"]) for call in called.tool_calls)]
        reply = chat.bind_tools([tool]).invoke(messages)
        assert reply.content
        messages += [reply, HumanMessage(QUESTION)] if not reply.tool_calls else []


def test_litellm_anthropic(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # nothing is fetched from anywhere
    import litellm

    tool = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
    options: dict[str, Any] = {
        "model": f"anthropic/{MODEL}", "api_base": place.url, "api_key": "any", "tools": [tool],
        "temperature": 0, "max_tokens": 300, "num_retries": 0,
    }  # fmt: skip
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    whole = litellm.completion(messages=messages, tool_choice="required", **options)
    pieces = list(litellm.completion(messages=messages, tool_choice="required", stream=True, **options))
    streamed = litellm.stream_chunk_builder(pieces, messages=messages)
    for reply in (whole, streamed):
        assert reply.choices[0].finish_reason == "tool_calls"
        place.check([call.function.arguments for call in reply.choices[0].message.tool_calls])
    called = whole.choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": RESULT} for call in called.tool_calls]
    messages += [called.model_dump(exclude_none=True), *results]
    assert litellm.completion(messages=messages, **options).choices[0].message.content
