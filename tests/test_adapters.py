"""Adapters over HTTP with a real server: every surface, batches, cached prefixes, loading and unloading, restarts."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.app import served_models
from server.api.info.adapters import check_adapter_folder
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.errors import CannotStart
from server.settings import resolve
from tests.adapter_folders import write_adapter
from tests.checkpoints import tiny_checkpoint
from tests.live import ROOT, Live, SharedServer

BASE = "toolwire-demo"
TEXT = "Tell me a long story about a river, a bridge and the people who live beside them. " * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters: one and two for the start, three and others to load, one of another model."""
    root: Path = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two", "three", "four"), 1):
        write_adapter(root / name, BUILT_IN_FOLDER, seed=seed, rank=4, strength=3.0)
    write_adapter(root / "foreign", tiny_checkpoint("qwen2"))
    (root / "empty").mkdir()
    (root / "out").symlink_to("/")
    return root


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[SharedServer]:
    """A server with two adapters, a key for clients and one for those who load more."""
    options = ["--adapter", f"one={folder / 'one'}", "--adapter", f"two={folder / 'two'}"]
    server = SharedServer(*options, "--adapter-folder", str(folder), "--adapter-key", "manager", "--api-key", "client")
    yield server
    server.close()


@pytest.fixture
def server(shared: SharedServer) -> Live:
    return shared.get()


def post(server: Live, path: str, body: dict[str, Any], key: str = "client") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(server.url + path, json=body, headers=headers, timeout=120)


def completion(server: Live, model: str, prompt: str = TEXT, **fields: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0, **fields}
    reply = post(server, "/v1/completions", body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def outcome(reply: dict[str, Any]) -> str:
    """Its text."""
    return str(reply["choices"][0]["text"])


def load(server: Live, name: str, path: str, key: str = "manager") -> httpx.Response:
    return post(server, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, key)


def unload(server: Live, name: str, key: str = "manager") -> httpx.Response:
    return post(server, "/v1/unload_lora_adapter", {"lora_name": name}, key)


def names(server: Live) -> list[str]:
    return [model.id for model in server.client(api_key="client").models.list().data]


def test_models_are_listed_with_their_parent(server: Live) -> None:
    models = {model.id: model for model in server.client(api_key="client").models.list().data}
    assert list(models)[:3] == [BASE, "one", "two"]
    assert models["one"].model_extra is not None and models["one"].model_extra["parent"] == BASE
    assert "parent" not in (models[BASE].model_extra or {})
    one = server.client(api_key="client").models.retrieve("two")
    assert one.id == "two"
    headers = {"x-api-key": "client", "anthropic-version": "2023-06-01"}
    anthropic = httpx.get(f"{server.url}/v1/models", headers=headers).json()
    assert [model["id"] for model in anthropic["data"]][:3] == [BASE, "one", "two"]
    assert httpx.get(f"{server.url}/v1/models/five", headers=headers).status_code == 404


SURFACES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 12, "temperature": 0}),
    ("/v1/responses", {"input": TEXT, "max_output_tokens": 16, "temperature": 0, "store": False}),
    ("/v1/messages", {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 12, "temperature": 0}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 12, "temperature": 0}),
]


@pytest.mark.parametrize(("path", "body"), SURFACES, ids=[path for path, _ in SURFACES])
def test_every_surface_takes_an_adapter_by_its_name(server: Live, path: str, body: dict[str, Any]) -> None:
    texts = []
    for model in (BASE, "one", "two"):
        reply = post(server, path, {"model": model, **body})
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == model
        found = reply.json()
        texts.append(json.dumps(found.get("choices") or found.get("output") or found.get("content")))
    contents = [_written(text) for text in texts]
    assert len(set(contents)) == 3, contents
    missing = post(server, path, {"model": "five", **body})
    assert missing.status_code == 404 and "five" in missing.text


def _written(text: str) -> str:
    """The texts of a reply, without ids."""
    found = json.loads(text)
    return json.dumps([_texts(part) for part in found])


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value[name] for name in ("text", "content") if isinstance(value.get(name), str)]
        return own + [text for part in value.values() for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list) else []


def test_replies_of_a_mixed_crowd_are_those_of_each_alone(server: Live) -> None:
    """Eight at once of the base model and two adapters: an index that slipped would answer with another's weights."""
    models = [(BASE, "one", "two")[index % 3] for index in range(8)]
    prompts = [f"{index}. {TEXT}"[: 60 + 40 * index] for index in range(8)]
    alone = [outcome(completion(server, *pair)) for pair in zip(models, prompts, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda pair: outcome(completion(server, *pair)), zip(models, prompts, strict=True)))
    assert together == alone


def test_gateways_see_which_adapters_are_in_use(server: Live) -> None:
    """A gateway sends a request where its adapter runs; without the figure every server is the same to it."""
    client = server.client(api_key="client")

    def label(name: str) -> str:
        text = httpx.get(f"{server.url}/metrics", headers={"Authorization": "Bearer client"}).text
        found = re.search(rf'^vllm:lora_requests_info{{.*{name}="([^"]*)"', text, re.MULTILINE)
        return found[1] if found else "no figure"

    with client.completions.create(
        model="one", prompt=TEXT, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
        deadline_s = time.monotonic() + 20
        while label("running_lora_adapters") != "one":
            assert time.monotonic() < deadline_s, label("running_lora_adapters")
            time.sleep(0.1)
    assert int(label("max_lora")) >= 2 and label("waiting_lora_adapters") == ""


def test_cached_prefixes_are_apart(server: Live) -> None:
    counts = []
    for model in (BASE, "one", "two", "one", BASE):
        reply = completion(server, model, prompt=f"Apart. {TEXT}")
        counts.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert counts[:3] == [0, 0, 0] and counts[3] == counts[4] > 0


def test_adapters_come_and_go_while_replies_are_written(server: Live) -> None:
    """A reply under way neither changes nor breaks; the one of an unloaded adapter is written to its end."""
    expected = outcome(completion(server, "one", max_tokens=300))
    with ThreadPoolExecutor(2) as pool:
        runs = pool.submit(completion, server, "one", max_tokens=300)
        loaded = load(server, "three", "three")
        assert loaded.status_code == 200, loaded.text
        assert loaded.json()["id"] == "three" and loaded.json()["parent"] == BASE
        alone = outcome(completion(server, "three", max_tokens=200))
        assert alone != expected
        assert outcome(runs.result()) == expected
        started = threading.Event()
        of_three = pool.submit(_stream, server, "three", started)
        assert started.wait(30)
        assert unload(server, "three").json() == {"id": "three", "object": "model", "deleted": True}
        assert of_three.result() == alone
    assert "three" not in names(server)
    assert post(server, "/v1/completions", {"model": "three", "prompt": "x"}).status_code == 404
    assert unload(server, "three").status_code == 404


def _stream(server: Live, model: str, started: threading.Event) -> str:
    """The text of a streamed reply; `started` is set at its first chunk."""
    body = {"model": model, "prompt": TEXT, "max_tokens": 200, "temperature": 0, "stream": True}
    text = ""
    headers = {"Authorization": "Bearer client"}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=120) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                started.set()
                text += "".join(choice["text"] for choice in json.loads(line.removeprefix("data: "))["choices"])
    return text


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("five", "nowhere", "no folder"),
        ("five", "empty", "adapter_config.json"),
        ("five", "foreign", "another model"),
        ("five", "../", "must lie in"),
        ("five", "/etc", "must lie in"),
        ("five", "out/etc", "must lie in"),
        ("five", ".", "must lie in"),
        ("five", "a\0b", "no path"),
        ("five", "x" * 300, "File name too long"),
        ("one", "three", "is taken"),
        (BASE, "three", "is taken"),
        ("", "three", "1 to 256"),
        ("a b", "three", "none of them blank"),
    ],
)
def test_what_cannot_be_loaded_is_a_400_that_says_why(server: Live, name: str, path: str, words: str) -> None:
    before = names(server)
    refused = load(server, name, path)
    assert refused.status_code == 400 and words in refused.json()["error"]["message"], refused.text
    assert names(server) == before


@pytest.mark.parametrize("body", [{}, {"lora_name": 5, "lora_path": "three"}, {"lora_name": "five"}])
def test_bodies_that_are_none(server: Live, body: dict[str, Any]) -> None:
    assert post(server, "/v1/load_lora_adapter", body, "manager").status_code == 400


def test_only_the_adapter_key_changes_adapters(server: Live, live: Live) -> None:
    """A key for requests is none for loading files, nor is the other for requests; without one nobody may."""
    for key in ("client", "wrong", ""):
        assert load(server, "three", "three", key).status_code == 401
        assert unload(server, "one", key).status_code == 401
    assert post(server, "/v1/completions", {"model": "one", "prompt": "x"}, "manager").status_code == 401
    for refused in (load(live, "three", "three"), unload(live, "three")):
        assert refused.status_code == 403 and "--adapter-key" in refused.text


def test_an_engine_that_is_started_again_has_the_adapters_again(
    shared: SharedServer, server: Live, folder: Path
) -> None:
    """Loaded while it ran, and unloaded: both are made again before the first request.

    What cannot be loaded again can be unloaded, or its name would be taken for ever.
    """
    assert load(server, "four", "four").status_code == 200
    write_adapter(folder / "gone", BUILT_IN_FOLDER)
    assert load(server, "gone", "gone").status_code == 200
    shutil.rmtree(folder / "gone")
    assert unload(server, "two").status_code == 200
    expected = outcome(completion(server, "four"))
    try:
        server.engine().kill()
        deadline_s = time.monotonic() + 60
        reply = post(server, "/v1/completions", {"model": "four", "prompt": "x"})
        while reply.status_code == 503 and time.monotonic() < deadline_s:
            time.sleep(0.1)
            reply = post(server, "/v1/completions", {"model": "four", "prompt": "x"})
        assert reply.status_code == 200, reply.text
        assert outcome(completion(server, "four")) == expected
        assert post(server, "/v1/completions", {"model": "two", "prompt": "x"}).status_code == 404
        assert load(server, "two", "two").status_code == 200
        assert post(server, "/v1/completions", {"model": "gone", "prompt": "x"}).status_code == 404
        assert unload(server, "gone").status_code == 200 and "gone" not in names(server)
    finally:
        shared.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--adapter", "five={}/foreign"], "another model"),
        (["--merge-adapter", "{}/foreign"], "another model"),
        (["--adapter", "one={}/one", "--engine", "http://127.0.0.1:1"], "engine here"),
    ],
    ids=str,
)
def test_a_start_that_is_refused_is_one_line_and_exit_code_2(folder: Path, arguments: list[str], words: str) -> None:
    given = [one.format(folder) for one in arguments]
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--no-self-test", *given]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ended.returncode == 2, ended.stderr
    assert words in ended.stderr.splitlines()[-1] and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"adapter": ["five={}/empty"]}, "adapter_config.json"),
        ({"adapter": [f"{BASE}={{}}/one"]}, "is taken"),
        ({"model": "tiny", "adapter": ["tiny={}/one"]}, "is taken"),
        ({"adapter_key": "x"}, "--adapter-folder"),
        ({"adapter_folder": "{}"}, "--adapter-key"),
        ({"adapter_key": "x", "adapter_folder": "{}/nowhere"}, "no folder"),
        ({"adapter_key": ","}, "--adapter-folder"),
    ],
    ids=str,
)
def test_options_that_end_the_start_before_an_engine_has_loaded(
    folder: Path, fields: dict[str, Any], words: str
) -> None:
    given = {
        name: [one.format(folder) for one in value] if isinstance(value, list) else value.format(folder)
        for name, value in fields.items()
    }
    settings = resolve(given, {}, {}).settings
    with pytest.raises(CannotStart, match=words) as refused:
        served_models(settings, BASE)
        check_adapter_folder(settings.api)
    assert "\n" not in str(refused.value)
