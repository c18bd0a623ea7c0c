"""A chat in one's own program: the same replies as over HTTP, functions as tools, and nothing left running."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from server.backends.local import LocalBackend
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.errors import BadRequest, CannotStart, PromptTooLong
from server.offline import Chat
from tests.adapter_folders import write_adapter
from tests.live import Live

QUESTION: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]


def get_weather(city: str) -> dict[str, object]:
    """Get the current weather for a city

    Args:
        city: Name of the city
    """
    return {"city": city, "weather": "sunny", "temperature": 21}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    """The built-in model with an adapter, loaded once for this file."""
    folder = write_adapter(tmp_path_factory.mktemp("adapter") / "one", BUILT_IN_FOLDER, rank=4, strength=3.0)
    with Chat("tiny", adapter=[f"one={folder}"]) as loaded:
        yield loaded


def joined(deltas: Iterator[dict[str, object]]) -> tuple[str, str]:
    """Text, and arguments of calls, of a stream."""
    text, arguments = "", ""
    for delta in deltas:
        text += str(delta.get("content") or "")
        for call in delta.get("tool_calls") or ():  # type: ignore[attr-defined]
            arguments += call["function"]["arguments"]
    return text, arguments


def test_a_function_becomes_a_tool_and_is_called(chat: Chat) -> None:
    message = chat.chat(QUESTION, tools=[get_weather], temperature=0)
    call = message["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Oslo"})


def test_stream_and_whole_are_the_same(chat: Chat) -> None:
    for fields in ({"tools": [get_weather], "tool_choice": "required"}, {"max_tokens": 40}):
        whole = chat.chat(QUESTION, temperature=0, **fields)
        text, arguments = joined(chat.chat(QUESTION, stream=True, temperature=0, **fields))
        assert text == (whole.get("content") or "")
        assert arguments == "".join(call["function"]["arguments"] for call in whole.get("tool_calls") or ())


def test_it_answers_as_the_server_does(chat: Chat, live: Live) -> None:
    """Offline chat and the server run the same code."""
    here = chat.chat(QUESTION, max_tokens=40, temperature=0)
    reply = live.client().chat.completions.create(
        model="toolwire-demo", messages=QUESTION, max_tokens=40, temperature=0
    )
    assert here["content"] == reply.choices[0].message.content


def test_model_names_an_adapter(chat: Chat) -> None:
    replies = {model: chat.chat(QUESTION, max_tokens=20, temperature=0, model=model) for model in ("one", "any")}
    assert replies["one"] != replies["any"] == chat.chat(QUESTION, max_tokens=20, temperature=0)


def test_the_loop_makes_the_calls_and_ends_in_words(chat: Chat) -> None:
    conversation = chat.run("What is the weather in Rome?", tools=[get_weather], temperature=0)
    roles = [message["role"] for message in conversation]
    assert roles[:3] == ["user", "assistant", "tool"]
    assert roles[-1] == "assistant"
    assert json.loads(conversation[2]["content"])["city"] == "Rome"
    assert conversation[-1]["content"]


def test_a_reader_that_stops_early_frees_the_sequence(chat: Chat) -> None:
    """A stream dropped in the middle must free its blocks."""
    stream = chat.chat(QUESTION, stream=True, max_tokens=2000, ignore_eos=True)
    for _, _ in zip(range(3), stream, strict=False):
        continue
    stream.close()  # type: ignore[attr-defined]
    assert chat._wait_for(_count_inboxes(chat)) == 0


async def _count_inboxes(chat: Chat) -> int:
    assert isinstance(chat._backend, LocalBackend)
    return len(chat._backend._requests._by_id)


def test_threads_share_the_batch(chat: Chat) -> None:
    messages: list[dict[str, object]] = []
    threads = [
        threading.Thread(target=lambda: messages.append(chat.chat(QUESTION, max_tokens=10, temperature=0)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(messages) == 4
    assert len({json.dumps(message) for message in messages}) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"n": 2}, "n"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ],
)
def test_a_wrong_request_is_refused_as_over_http(chat: Chat, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat.chat(QUESTION, **fields)
    assert caught.value.param == param


def test_half_of_a_surrogate_pair_is_read_as_over_http(chat: Chat) -> None:
    """A text cut in the middle of an emoji raised UnicodeEncodeError."""
    assert chat.chat([{"role": "user", "content": "21 \ud83d degrees"}], max_tokens=4)["role"] == "assistant"


def test_a_prompt_beyond_the_window_is_refused(chat: Chat) -> None:
    with pytest.raises(PromptTooLong):
        chat.chat([{"role": "user", "content": "word " * 100_000}])


def test_a_model_that_is_not_there_is_one_error() -> None:
    with pytest.raises(CannotStart, match="no-such-folder"):
        Chat("./no-such-folder")
    with pytest.raises(CannotStart, match="no_such_option"):
        Chat(no_such_option=1)


def test_closing_ends_the_engine(chat: Chat) -> None:
    """The last of this file: it closes the one of all."""
    engine = next(child for child in psutil.Process().children() if "server.engine" in child.cmdline())
    chat.close()
    chat.close()
    assert not engine.is_running()
