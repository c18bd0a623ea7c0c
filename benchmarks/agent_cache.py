"""Share of cached prompt tokens in a coding agent's session: python -m benchmarks.agent_cache --url http://127.0.0.1:8000

Replays the ten rounds that a coding agent was recorded to send over Messages (tests/agents/fixtures): every field as it
came, all prose replaced by other prose of the same length. Each line is one round. Without `--url` a model of random
weights is served, with Qwen's vocabulary and template and a window that holds the session.
"""

import argparse
import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.agents.recorder import read_fixture
from tests.checkpoints import tiny_checkpoint
from tests.live import live_server

SESSION = "claude-session"
WINDOW = 65_536
REPLY_TOKENS = 4  # what the model writes does not matter: the recorded history goes on


@dataclass(frozen=True, slots=True)
class Round:
    """One request's prompt tokens, and how many of them were found in the cache."""

    prompt_tokens: int
    cached_tokens: int

    @property
    def share(self) -> float:
        """Cached tokens of all, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens


def run_session(url: str, model: str, session: str = SESSION) -> list[Round]:
    """Run the requests of a session that offer tools. Raises httpx.HTTPStatusError where one is refused."""
    rounds = []
    for request in read_fixture(session, model):
        if request.body.get("tools"):
            body = {**request.body, "stream": False, "max_tokens": REPLY_TOKENS}
            usage = httpx.post(url + request.path, json=body, timeout=600).raise_for_status().json()["usage"]
            cached = usage["cache_read_input_tokens"]
            rounds.append(Round(usage["input_tokens"] + cached, cached))
    return rounds


@contextlib.contextmanager
def _server(url: str) -> Iterator[str]:
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(tiny_checkpoint("qwen3"), folder, dirs_exist_ok=True)
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": WINDOW}))
        with live_server("--model", folder) as server:
            yield server.url


def main() -> None:
    """Print one line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="address of a running server, without /v1")
    parser.add_argument("--session", default=SESSION, help="recorded session (default: %(default)s)")
    chosen = parser.parse_args()
    with _server(chosen.url) as url:
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        for number, one in enumerate(run_session(url, model, chosen.session), 1):
            print(json.dumps({"round": number, "prompt": one.prompt_tokens, "cached": one.cached_tokens,
                              "share": round(one.share, 3)}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
