"""The API over HTTP with a scripted backend: it always writes two calls, then a sentence about the results; or what a
test tells it to.

Whether clients handle two calls at once must not depend on the built-in model.
"""

import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import uvicorn
from starlette.types import ASGIApp

from server.api.app import create_app
from server.api.responses.state import open_state
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.messages import Generate
from server.prompt.builder import PromptBuilder
from server.settings import ApiSettings, Settings
from tests.backends.scripted import Script, ScriptedBackend, deltas
from tests.contract.requests import MODEL

CALLS = "\n".join(
    f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
    for city in ("Paris", "Rome")
)
ANSWER = "It is 21 degrees and sunny in both."


def two_calls(prompt: str) -> str:
    """Two calls, or a sentence where the prompt ends with results."""
    return ANSWER if "<tool_response>" in prompt.rsplit("<|im_start|>user", 1)[-1] else CALLS


def call_of(name: str, /, **arguments: object) -> str:
    """A call as the built-in model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@dataclass(slots=True)
class ScriptedModel:
    """A model that writes `replies` in their order; `prompts` are what it was asked since they were set."""

    url: str = ""
    replies: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def plays(self, *replies: str) -> None:
        """Set the replies to come."""
        assert not self.replies, "every reply of the script before was asked for"
        self.replies, self.prompts = list(replies), []

    def write(self, prompt: str) -> str:
        """The next reply."""
        self.prompts.append(prompt)
        return self.replies.pop(0)


@contextmanager
def scripted_model(pause_s: float = 0.0) -> Iterator[ScriptedModel]:
    """A scripted model behind a server that keeps responses."""
    model = ScriptedModel()
    with scripted_server(model.write, pause_s=pause_s) as model.url:
        yield model


@contextmanager
def scripted_server(
    text_of: Callable[[str], str] = two_calls,
    max_model_len: int = 0,
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    pause_s: float = 0.0,
) -> Iterator[str]:
    """The address of the API, served by uvicorn in a thread. `text_of` is what the model writes behind a prompt.

    `wrap` puts the application into another one, which sees the requests first. `pause_s` is waited before each token.
    """
    checkpoint = Checkpoint.open(BUILT_IN_FOLDER)
    checkpoint = replace(checkpoint, max_model_len=max_model_len or checkpoint.max_model_len)

    def write(request: Generate) -> Script:
        text = text_of(checkpoint.tokenizer.decode(request.token_ids, skip_special_tokens=False))
        written = deltas([*checkpoint.tokenizer.encode(text, add_special_tokens=False).ids, checkpoint.stop_ids[0]])
        return [piece for delta in written for piece in (delta, pause_s)] if pause_s else written

    settings = Settings()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        state = open_state(ApiSettings(state_dir=folder))
        prompter = PromptBuilder(checkpoint, settings)
        app = create_app(settings, checkpoint, prompter, ScriptedBackend(write), MODEL, state=state)
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(wrap(app), log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            if state.store.database is not None:
                state.store.database.close()
