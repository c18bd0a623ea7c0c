"""The API over HTTP with a scripted backend that always writes two calls, then a sentence about the results.

Whether clients handle two calls at once must not depend on the built-in model.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import uvicorn

from server.api.app import create_app
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.messages import Generate
from server.prompt.builder import PromptBuilder
from server.settings import Settings
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


@contextmanager
def scripted_server(text_of: Callable[[str], str] = two_calls, max_model_len: int = 0) -> Iterator[str]:
    """The address of the API, served by uvicorn in a thread. `text_of` is what the model writes behind a prompt."""
    checkpoint = Checkpoint.open(BUILT_IN_FOLDER)
    checkpoint = replace(checkpoint, max_model_len=max_model_len or checkpoint.max_model_len)

    def write(request: Generate) -> Script:
        text = text_of(checkpoint.tokenizer.decode(request.token_ids, skip_special_tokens=False))
        return deltas([*checkpoint.tokenizer.encode(text, add_special_tokens=False).ids, checkpoint.stop_ids[0]])

    settings = Settings()
    app = create_app(settings, checkpoint, PromptBuilder(checkpoint, settings), ScriptedBackend(write), MODEL)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
