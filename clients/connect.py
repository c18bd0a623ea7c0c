"""Command-line options shared by the clients, and the SDK client made from them."""

import argparse
from dataclasses import dataclass

from openai import AsyncOpenAI, OpenAI

LOCAL_URL = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True, slots=True)
class Server:
    """Base URL and API key of a server, and the model to use."""

    url: str
    key: str
    model: str

    def client(self) -> OpenAI:
        """Return a blocking client."""
        return OpenAI(base_url=self.url, api_key=self.key)

    def async_client(self) -> AsyncOpenAI:
        """Return a client for asyncio."""
        return AsyncOpenAI(base_url=self.url, api_key=self.key)


def options(about: str) -> argparse.ArgumentParser:
    """Return a parser with `--url`, `--key` and `--model`; a client adds its own options."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--url", default=LOCAL_URL, help="base URL of the API (default: %(default)s)")
    parser.add_argument("--key", default="none", help="API key, if the server requires one")
    parser.add_argument("--model", default="", help="model to use (default: the first that the server lists)")
    return parser


def server_of(chosen: argparse.Namespace) -> Server:
    """Return the server named by the options; without `--model` its first model is fetched."""
    model = chosen.model or first_model(chosen.url, chosen.key)
    return Server(chosen.url, chosen.key, model)


def first_model(url: str, key: str) -> str:
    """Return the first model of `GET /v1/models`."""
    return OpenAI(base_url=url, api_key=key).models.list().data[0].id
