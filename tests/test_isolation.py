"""Isolation of requests: one key learns nothing of another's, and replies of many requests at once are not mixed up."""

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.live import SharedServer

SHARED_TEXT = "Customer file. Name: Ann Example. Street: Long Road 5. Town: Springfield. Notes: none so far. " * 3
DIGITS = "0123456789"


@pytest.fixture(scope="module")
def server() -> Iterator[SharedServer]:
    """A server with two keys."""
    shared = SharedServer("--api-key", "alice,bob", "--monitoring-key", "operator")
    yield shared
    shared.close()


def cached_tokens(http: httpx.Client, key: str, text: str, **fields: object) -> int:
    """How much of this prompt the server says it has seen."""
    body = {"model": "toolwire-demo", "messages": [{"role": "user", "content": text}], "max_tokens": 1, **fields}
    answer = http.post("/v1/chat/completions", json=body, headers={"x-api-key": key})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def read_secret(http: httpx.Client, prefix: str, length: int, spare: random.Random) -> str:
    """Guess digit after digit: the right one makes more of the prompt cached than the others."""
    known = ""
    for _ in range(length):
        counts = {digit: cached_tokens(http, "bob", prefix + known + digit) for digit in DIGITS}
        best = [digit for digit, count in counts.items() if count == max(counts.values())]
        known += best[0] if len(best) == 1 else spare.choice(DIGITS)
    return known


def test_no_key_reads_another_keys_prompt_through_the_cache(server: SharedServer, is_long: bool) -> None:
    """A five-digit number was read 6 times of 6, in 22 to 40 requests each."""
    spare = random.Random(5)
    num_read = 0
    with httpx.Client(base_url=server.get().url, timeout=60) as http:
        for index in range(6 if is_long else 1):
            secret = "".join(spare.choice(DIGITS) for _ in range(5))
            prefix = f"{SHARED_TEXT} File {index}. Secret number: "
            cached_tokens(http, "alice", f"{prefix}{secret}. That is all we know about this customer for today.")
            assert cached_tokens(http, "alice", f"{prefix}{secret}. That is all we know about it.") > 0
            length = 5 if is_long else 2
            num_read += read_secret(http, prefix, length, spare) == secret[:length]
    assert num_read == 0


def test_cached_tokens_are_whole_blocks_of_the_same_key_and_salt(server: SharedServer) -> None:
    text = "Read this. " + SHARED_TEXT * 2 + "Which town?"
    with httpx.Client(base_url=server.get().url, timeout=60) as http:
        assert cached_tokens(http, "alice", text) == 0
        again = cached_tokens(http, "alice", text)
        assert again > 0 and again % 32 == 0
        assert cached_tokens(http, "bob", text) == 0
        assert cached_tokens(http, "alice", text, cache_salt="one") == 0
        assert cached_tokens(http, "alice", text, cache_salt="one") == again
        assert cached_tokens(http, "bob", text, cache_salt="one") == 0


def test_the_figures_of_all_keys_are_for_the_operator(server: SharedServer) -> None:
    """Counters of tokens told every key the lengths of the others' requests."""
    url = server.get().url
    for path in ("/metrics", "/v1/memory"):
        statuses = [httpx.get(url + path, headers={"x-api-key": key}).status_code for key in ("alice", "operator", "x")]
        assert statuses == [401, 200, 401]
    assert httpx.get(f"{url}/v1/models", headers={"x-api-key": "operator"}).status_code == 401


def echo(http: httpx.Client, word: str, aborted: bool) -> str:
    """The reply to a request whose only peculiarity is this word; an aborted one is left after its first piece."""
    fields = {"name": "save", "parameters": {"type": "object", "properties": {"word": {"const": word}}}}
    fields["parameters"]["required"] = ["word"]  # type: ignore[index]
    body = {
        "model": "toolwire-demo", "messages": [{"role": "user", "content": f"Save {word}."}], "stream": True,
        "tools": [{"type": "function", "function": fields}], "tool_choice": "required", "max_tokens": 200,
    }  # fmt: skip
    text = ""
    with http.stream("POST", "/v1/chat/completions", json=body, headers={"x-api-key": "alice"}) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                for call in choice["delta"].get("tool_calls") or ():
                    text += call["function"].get("arguments", "")
            if aborted and text:
                return text
    return text


def test_replies_of_many_requests_at_once_are_not_mixed_up(server: SharedServer, is_long: bool) -> None:
    """Every third client leaves in the middle; what it held is used again at once."""
    rounds, at_once = (3, 600) if is_long else (1, 60)
    url, foreign, num_words = server.get().url, 0, 0
    start = threading.Barrier(at_once)
    # No connection is used twice: an idle one may be closed while the next request is on its way.
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=0)
    with httpx.Client(base_url=url, timeout=300, limits=limits) as http, ThreadPoolExecutor(at_once) as pool:

        def one(number: int) -> tuple[str, str]:
            word = f"w{number:05d}{random.Random(number).choice('abcdef') * 6}"
            start.wait()
            return word, echo(http, word, aborted=number % 3 == 0)

        for turn in range(rounds):
            for number, (word, text) in enumerate(pool.map(one, range(turn * at_once, (turn + 1) * at_once))):
                if number % 3 == 0:
                    foreign += not json.dumps({"word": word}, separators=(",", ":")).startswith(text.replace(": ", ":"))
                else:
                    num_words += 1
                    foreign += json.loads(text) != {"word": word}
    assert foreign == 0 and num_words == rounds * at_once * 2 // 3
