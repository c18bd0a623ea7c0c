"""vLLM as the engine of the Ray Serve application: a call through it, and replies that end when a replica is to stop.

`make test-ray-vllm` runs these tests, with a Python that has Ray and another one that has vLLM.
"""

import json
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.servers import free_port
from server.cli.banner import EXAMPLE_TOOL
from tests.live import live_server
from tests.ray.test_ray_serve import Application

with warnings.catch_warnings():  # Ray's own modules are not written without
    warnings.simplefilter("ignore")
    from deploy.ray.engine import command, environment
    from deploy.ray.options import Options

START_TIMEOUT_S = 900
KEY = "a key of vllm"
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
FORCED = {"model": "toolwire-demo", "messages": QUESTION, "tools": [EXAMPLE_TOOL], "tool_choice": "required",
          "temperature": 0, "stream": True}  # fmt: skip
pytestmark = [pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest) -> Iterator[str]:
    """A Python that has vLLM, and what vLLM needs to know of a machine without a GPU."""
    given = request.config.getoption("ray_vllm")
    if not given:
        pytest.skip("give --ray-vllm PYTHON, one that has vLLM")
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**own, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}.items():
            patch.setenv(name, value)
        yield str(Path(given).absolute())


def options(python: str, **changes: Any) -> dict[str, Any]:
    """Of the built-in model, computed as it is: nothing is compiled."""
    return {"engine": "vllm", "engine_program": python, "engine_options": "--dtype float32 --enforce-eager", **changes}


def arguments_of(lines: Iterator[str]) -> str:
    """The arguments of the call that a stream writes; fails unless the stream is complete."""
    chunks = [json.loads(text) for line in lines if (text := line.removeprefix("data: ")).startswith("{")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[-1]["finish_reason"] == "tool_calls", chunks[-1]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls") or ()]
    return "".join(call["function"].get("arguments") or "" for call in calls)


def test_the_command_is_that_of_either_program() -> None:
    """Replies would be aborted, and calls end with an error, where vLLM is not told to let them end."""
    by_name, by_module = (
        command(Options.model_validate({"engine": "vllm", **given}), "10.0.0.1", 8100)
        for given in ({"drain_timeout_s": 12.5}, {"engine_program": "/v/bin/python3"})
    )
    assert by_name[:2] == ["vllm", "serve"] and by_name[by_name.index("--shutdown-timeout") + 1] == "13"
    assert by_module[:3] == ["/v/bin/python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert {"--enable-scale-out", "--structured-outputs-config"} <= set(by_name) & set(by_module)


def test_a_call_goes_through_an_engine_of_ray(python: str, tmp_path: Path) -> None:
    given = options(python, min_engines=1, max_engines=1)
    application = Application(tmp_path, **given)
    try:
        application.wait(lambda: len(application.urls()) == 1, START_TIMEOUT_S)
        assert [one["kind"] for one in application.engines()] == ["vllm"]
        with httpx.stream("POST", f"{application.live.url}/v1/chat/completions", json=FORCED, timeout=300) as reply:
            assert "city" in json.loads(arguments_of(reply.iter_lines()))
    finally:
        application.close()


@contextmanager
def vllm(given: Options, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address and the process of vLLM as a replica starts it, once it is ready."""
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command(given, "127.0.0.1", port), env=environment(given, KEY), stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    url, deadline_s = f"http://127.0.0.1:{port}", time.monotonic() + START_TIMEOUT_S
    try:
        while True:
            assert process.poll() is None and time.monotonic() < deadline_s, log.read_text(errors="replace")[-4000:]
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield url, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_call_under_way_ends_when_its_replica_is_to_stop(python: str, tmp_path: Path) -> None:
    """vLLM aborts what runs unless it is given a time to wait; a reply under a grammar cannot go on elsewhere."""
    text = {"type": "string", "pattern": "^(the ){60}$"}
    schema = {"type": "object", "properties": {"text": text}, "required": ["text"]}
    tool = {"type": "function", "function": {"name": "write", "parameters": schema}}
    body = {**FORCED, "tools": [tool], "max_tokens": 1500}
    with (
        vllm(Options.model_validate(options(python, drain_timeout_s=600)), tmp_path / "log") as (url, process),
        live_server("--engine", url, TOOLWIRE_ENGINE_KEY=KEY) as server,
        httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=300) as reply,
    ):
        lines = reply.iter_lines()
        begun = [next(lines) for _ in range(12)]
        threading.Thread(target=process.terminate).start()
        assert json.loads(arguments_of(iter([*begun, *lines]))) == {"text": "the " * 60}
        assert process.wait(120) == 0
