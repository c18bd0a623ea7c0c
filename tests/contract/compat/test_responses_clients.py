"""Foreign clients on Responses: tools, streams, answers of a schema, and conversations that are sent back or continued.

Each meets a scripted model behind the real server; what the model was asked shows what came back of a conversation.
"""

import asyncio
import gc
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.contract.node_programs import run_node
from tests.contract.requests import MODEL
from tests.contract.scripted import ScriptedModel, call_of, scripted_model

# Deprecations and unclosed sockets inside a client are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

QUESTION = "What is the weather in Paris and in Rome?"
PARIS, ROME = call_of("get_weather", city="Paris"), call_of("get_weather", city="Rome")
THOUGHT = "<think>\nBoth cities.\n</think>\n\n"
CALLS = f"{THOUGHT}{PARIS}\n{ROME}"
RESULT = "21 degrees and sunny"
ANSWER = "It is 21 degrees and sunny in both."
AGAIN = "You are welcome."
CITY = '{"name": "Paris", "sky": "sunny"}'


class City(BaseModel):
    """A city and its sky."""

    name: str
    sky: str


def get_weather(city: str) -> str:
    """Get the current weather for a city

    Args:
        city: Name of the city
    """
    return f"{city}: {RESULT}"


@pytest.fixture(scope="module")
def stage() -> Iterator[ScriptedModel]:
    with scripted_model() as model:
        yield model


@pytest.fixture(autouse=True)
def foreign_sockets() -> Iterator[None]:
    """Close sockets that a client leaves open, where its warnings are ignored."""
    yield
    gc.collect()


def check_results(prompt: str) -> None:
    """Both calls stand in the prompt once, each result behind them in their order."""
    places = [prompt.index(part) for part in (PARIS, ROME, f"Paris: {RESULT}", f"Rome: {RESULT}")]
    assert places == sorted(places)
    assert prompt.count(PARIS) == prompt.count(ROME) == 1 and prompt.count(RESULT) == 2


def test_openai_agents(stage: ScriptedModel) -> None:
    """Two tools behind a handoff, whole and streamed; then the conversation sent back, and continued by its id."""
    from agents import Agent, OpenAIResponsesModel, RunConfig, Runner, function_tool

    @function_tool
    def get_time(city: str) -> str:
        """Get the current time in a city"""
        return f"{city}: noon"

    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="any", max_retries=0) as client:
            model = OpenAIResponsesModel(MODEL, client)
            tools: Any = [function_tool(get_weather), get_time]
            forecaster: Any = Agent(name="Forecaster", instructions="You look outside.", model=model, tools=tools)
            desk: Any = Agent(name="Desk", instructions="You hand over.", model=model, handoffs=[forecaster])
            quiet = RunConfig(tracing_disabled=True)
            handoff, time = call_of("transfer_to_forecaster"), call_of("get_time", city="Rome")
            for streamed in (False, True):
                stage.plays(f"{THOUGHT}{handoff}", f"{THOUGHT}{PARIS}\n{time}", ANSWER)
                result: Any
                if streamed:
                    result = Runner.run_streamed(desk, QUESTION, run_config=quiet)
                    events = [event async for event in result.stream_events()]
                    raw = [event.data.type for event in events if event.type == "raw_response_event"]
                    assert raw.count("response.completed") == 3 and "response.output_text.delta" in raw
                    called = [event.name for event in events if event.type == "run_item_stream_event"]
                    assert called.count("tool_called") >= 2 and "handoff_occured" in called
                else:
                    result = await Runner.run(desk, QUESTION, run_config=quiet)
                assert result.final_output == ANSWER and result.last_agent.name == "Forecaster"
                last = stage.prompts[-1]
                assert last.count(PARIS) == last.count(time) == last.count(handoff) == 1
                assert f"Paris: {RESULT}" in last and "Rome: noon" in last and "Both cities." in last
            stage.plays(AGAIN, CITY)
            thanks = [*result.to_input_list(), {"role": "user", "content": "Thanks!"}]
            assert (await Runner.run(forecaster, thanks, run_config=quiet)).final_output == AGAIN
            said = stage.prompts[-1]
            poet: Any = Agent(name="Forecaster", instructions="You look outside.", model=model, output_type=City)
            known = {"previous_response_id": result.last_response_id, "run_config": quiet}
            named = await Runner.run(poet, "Name one.", **known)
            assert named.final_output == City(name="Paris", sky="sunny")
            for prompt in (said, stage.prompts[-1]):
                assert prompt.count(PARIS) == 1 and ANSWER in prompt

    asyncio.run(talk())


@pytest.mark.long
def test_pydantic_ai(stage: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """`openai:` is Responses: history sent back whole, with thoughts, and continued by its id."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{stage.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    from pydantic_ai import Agent, NativeOutput

    agent: Any = Agent(f"openai:{MODEL}", tools=[get_weather])

    async def talk() -> None:
        stage.plays(CALLS, ANSWER, CALLS, ANSWER, AGAIN)
        first = await agent.run(QUESTION)
        assert first.output == ANSWER
        check_results(stage.prompts[-1])
        async with agent.run_stream(QUESTION) as stream:
            assert [text async for text in stream.stream_text(delta=True)] and await stream.get_output() == ANSWER
        check_results(stage.prompts[-1])
        again = await agent.run("Thanks!", message_history=first.all_messages())
        assert again.output == AGAIN and stage.prompts[-1].count(PARIS) == 1 and ANSWER in stage.prompts[-1]
        stage.plays(CALLS, ANSWER, AGAIN)
        settings = {"openai_previous_response_id": "auto"}
        first = await agent.run(QUESTION, model_settings=settings)
        check_results(stage.prompts[-1])
        assert "Both cities." in stage.prompts[-1]
        again = await agent.run("Thanks!", message_history=first.all_messages(), model_settings=settings)
        assert again.output == AGAIN and stage.prompts[-1].count(PARIS) == 1 and ANSWER in stage.prompts[-1]
        stage.plays(CITY, call_of("final_result", name="Paris", sky="sunny"))
        for form in (NativeOutput(City), City):
            assert (await agent.run("Name one.", output_type=form)).output == City(name="Paris", sky="sunny")

    asyncio.run(talk())


def test_langchain(stage: ScriptedModel) -> None:
    """Messages sent back with their thoughts, opaque where nothing is stored, and conversations continued."""
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    weather = tool(get_weather)

    def talk(chat: Any, streamed: bool) -> None:
        bound = chat.bind_tools([weather])

        def ask(messages: list[Any]) -> Any:
            if not streamed:
                return bound.invoke(messages)
            first, *rest = bound.stream(messages)
            for piece in rest:
                first = first + piece
            return first

        stage.plays(CALLS, ANSWER, AGAIN)
        messages: list[Any] = [HumanMessage(QUESTION)]
        called = ask(messages)
        assert [call["args"] for call in called.tool_calls] == [{"city": "Paris"}, {"city": "Rome"}]
        results = [ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"]) for call in called.tool_calls]
        messages += [called, *results]
        answered = ask(messages)
        assert answered.text == ANSWER and answered.usage_metadata["output_tokens"] > 0
        check_results(stage.prompts[-1])
        assert "Both cities." in stage.prompts[-1]
        messages += [answered, HumanMessage("Thanks!")]
        assert ask(messages).text == AGAIN
        assert stage.prompts[-1].count(PARIS) == 1 and ANSWER in stage.prompts[-1]

    options: dict[str, Any] = {"base_url": f"{stage.url}/v1", "api_key": "any", "model": MODEL, "max_retries": 0}
    options["use_responses_api"] = True
    opaque = {"include": ["reasoning.encrypted_content"], "store": False}
    for form in ({"output_version": "responses/v1"}, {"use_previous_response_id": True}, opaque):
        for streamed in (False, True):
            talk(ChatOpenAI(**options, **form), streamed)
    stage.plays(CITY, CITY)
    named = ChatOpenAI(**options).with_structured_output(City)
    assert named.invoke("Name one.") == City(name="Paris", sky="sunny")
    assert list(named.stream("Name one."))[-1] == City(name="Paris", sky="sunny")


@pytest.mark.long
def test_agent_framework(stage: ScriptedModel) -> None:
    """Its session continues a response by its id; without one it sends the items back."""
    from agent_framework import Agent
    from agent_framework.openai import OpenAIChatClient

    async def talk() -> None:
        client = OpenAIChatClient(model=MODEL, base_url=f"{stage.url}/v1", api_key="any")
        agent: Any = Agent(client=client, instructions="You look outside.", tools=[get_weather])
        session = agent.create_session()
        stage.plays(CALLS, ANSWER, AGAIN)
        assert (await agent.run(QUESTION, session=session)).text == ANSWER
        check_results(stage.prompts[-1])
        assert (await agent.run("Thanks!", session=session)).text == AGAIN
        assert stage.prompts[-1].count(PARIS) == 1 and ANSWER in stage.prompts[-1]
        stage.plays(CALLS, ANSWER, CITY)
        pieces = [update.text async for update in agent.run(QUESTION, stream=True)]
        assert "".join(pieces).endswith(ANSWER)
        check_results(stage.prompts[-1])
        named = await agent.run("Name one.", options={"response_format": City})
        assert named.value == City(name="Paris", sky="sunny")

    asyncio.run(talk())


@pytest.mark.long
def test_llama_index(stage: ScriptedModel) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai import OpenAIResponses

    options: dict[str, Any] = {"model": MODEL, "api_base": f"{stage.url}/v1", "api_key": "any", "context_window": 2048}
    tool = FunctionTool.from_defaults(get_weather)
    for form in ({}, {"track_previous_responses": True}):
        for streamed in (False, True):
            llm: Any = OpenAIResponses(**options, **form, max_retries=0)
            stage.plays(CALLS, ANSWER)
            messages = [ChatMessage(role="user", content=QUESTION)]
            ask = llm.stream_chat_with_tools if streamed else llm.chat_with_tools
            called = ask([tool], chat_history=messages, allow_parallel_tool_calls=True)
            called = list(called)[-1] if streamed else called
            calls = llm.get_tool_calls_from_response(called)
            assert [call.tool_kwargs for call in calls] == [{"city": "Paris"}, {"city": "Rome"}]
            results = [
                ChatMessage(
                    role="tool", content=get_weather(**call.tool_kwargs), additional_kwargs={"call_id": call.tool_id}
                )
                for call in calls
            ]
            messages = results if form else [*messages, called.message, *results]
            answered = ask([tool], chat_history=messages)
            answered = list(answered)[-1] if streamed else answered
            assert answered.message.content == ANSWER
            check_results(stage.prompts[-1])
    stage.plays(CITY)
    named = OpenAIResponses(**options, max_retries=0).as_structured_llm(City).complete("Name one.")
    assert named.raw == City(name="Paris", sky="sunny")


def test_ai_sdk(stage: ScriptedModel) -> None:
    """It names kept items by their ids alone, and sends thoughts back opaque where nothing is kept."""
    rounds = [CALLS, ANSWER, AGAIN]
    stage.plays(*rounds * 5, CITY)
    told = json.loads(run_node("ai_sdk.mjs", f"{stage.url}/v1", MODEL, QUESTION, "Thanks!", "Name one."))
    assert told["named"] == {"name": "Paris", "sky": "sunny"} and told["continued"] == AGAIN
    for one in told["told"]:
        assert (one["answered"], one["again"]) == (ANSWER, AGAIN) and one["total"] > 0
    for place in range(0, 15, 3):
        _, with_results, with_thanks = stage.prompts[place : place + 3]
        check_results(with_results)
        assert "Both cities." in with_results
        assert with_thanks.count(PARIS) == 1 and ANSWER in with_thanks
