"""Notes: a reply says what of its request was changed, whole and in streams; the log says it once a kind."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from server.api.body import read_lenient
from tests.api.conftest import MODEL, Serve, Served, events_of
from tests.backends.scripted import Script

Reply = Callable[..., Script]
HALF = r'{"model": "org/tiny", "messages": [{"role": "user", "content": "21 \ud83d"}], MORE "n": 1}'
NOTE = {
    "kind": "half_surrogate",
    "param": "messages[0].content",
    "text": "Half of a surrogate pair, or bytes that are no UTF-8, were read as U+FFFD.",
}


async def send(served: Served, more: str = "") -> Any:
    return await served.http.post("/v1/chat/completions", content=HALF.replace("MORE", more))


async def test_a_whole_reply_has_the_notes_of_its_request(serve: Serve, reply: Reply) -> None:
    """A session whose history held half an emoji was refused for ever."""
    async with serve(reply("Hi")) as served:
        answer = await send(served)
        assert answer.status_code == 200, answer.text
        assert answer.json()["toolwire"] == {"notes": [NOTE]}


async def test_the_last_chunk_of_a_choice_and_of_the_stream_have_the_notes(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hi")) as served:
        answer = await send(served, '"stream": true, "stream_options": {"include_usage": true},')
        chunks = [json.loads(event) for event in events_of(answer.text)]
        with_notes = [place for place, chunk in enumerate(chunks) if "toolwire" in chunk]
        assert with_notes == [len(chunks) - 2, len(chunks) - 1]
        assert all(chunk["toolwire"]["notes"] == [NOTE] for chunk in chunks[-2:])


async def test_a_reply_without_notes_has_no_toolwire_object(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hi")) as served:
        assert "toolwire" not in (await served.chat()).json()


async def test_strict_refuses_half_surrogates(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hi"), strict=True) as served:
        answer = await send(served)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("We could not parse the JSON body of your request.")


@pytest.mark.parametrize("lines", [{"format": "json"}], indirect=True)
async def test_a_kind_is_logged_once_a_process(serve: Serve, reply: Reply, lines: io.StringIO) -> None:
    """A client that sends the same oddity with each request must not fill the log."""
    async with serve(reply("Hi")) as served:
        for _ in range(3):
            await send(served)
    logged = [json.loads(line) for line in lines.getvalue().splitlines() if "half_surrogate" in line]
    assert [(line["kind"], line["param"]) for line in logged] == [("half_surrogate", "messages[0].content")]


async def test_many_notes_are_bounded(serve: Serve, reply: Reply) -> None:
    """One half in each of 100 messages must not make the reply longer than the request."""
    messages = [{"role": "user", "content": "x\ud83d"}] * 100
    async with serve(reply("Hi")) as served:
        raw = json.dumps({"model": MODEL, "messages": messages})
        notes = (await served.http.post("/v1/chat/completions", content=raw)).json()["toolwire"]["notes"]
    assert len(notes) == 33
    assert notes[-1] == {"kind": "truncated", "param": "", "text": "68 further notes are not listed."}


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (rb'"cut \ud83d"', "cut �"),
        (rb'"cut \ude00 low"', "cut � low"),
        (rb'"two \ud83d\ud83d\ude00"', "two �😀"),
        (rb'"escaped \\ud83d and \\\ud83d"', "escaped \\ud83d and \\�"),
        (b'"written \xed\xa0\xbd"', "written �"),
        (b'"a pair, each written by itself \xed\xa0\xbd\xed\xb8\x80"', "a pair, each written by itself 😀"),
    ],
)
def test_every_spelling_of_half_a_pair_is_read(sent: bytes, read: str) -> None:
    body, notes = read_lenient(b'{"a": [{"b": ' + sent + b"}]}")
    assert body == {"a": [{"b": read}]}
    assert [note.param for note in notes] == (["a[0].b"] if "�" in read else [])
