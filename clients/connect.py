"""The options that every client here takes, and the SDK client that they come to."""

import argparse
from dataclasses import dataclass

from openai import AsyncOpenAI, OpenAI

LOCAL_URL = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True, slots=True)
class Server:
    """Where the server is, the key it wants, and the model to ask."""

    url: str
    key: str
    model: str

    def client(self) -> OpenAI:
        """A blocking client."""
        return OpenAI(base_url=self.url, api_key=self.key)

    def async_client(self) -> AsyncOpenAI:
        """A client for asyncio."""
        return AsyncOpenAI(base_url=self.url, api_key=self.key)


def options(about: str) -> argparse.ArgumentParser:
    """A parser with `--url`, `--key` and `--model`; a client adds its own."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--url", default=LOCAL_URL, help="base URL of the API (default: %(default)s)")
    parser.add_argument("--key", default="none", help="API key, where the server wants one")
    parser.add_argument("--model", default="", help="model to ask; left out, the first that the server names")
    return parser


def server_of(chosen: argparse.Namespace) -> Server:
    """The server that the options name; asks it for its model where none was given."""
    model = chosen.model or first_model(chosen.url, chosen.key)
    return Server(chosen.url, chosen.key, model)


def first_model(url: str, key: str) -> str:
    """The first model of `GET /v1/models`."""
    return OpenAI(base_url=url, api_key=key).models.list().data[0].id
