"""`toolwire launch PROGRAM`: start a coding agent that is installed here, pointed at a running server."""

import argparse
import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from server.settings import read_environment

TIMEOUT_S = 5.0
REPLY_SHARE = 8  # programs that set a reply's limit leave it the eighth part of the window
MAX_REPLY_TOKENS = 32_000  # what Claude Code and opencode assume of models that they do not know


@dataclass(frozen=True, slots=True)
class AgentTarget:
    """The server that a program is to use: its address without `/v1`, its model, a key that it accepts, and the tokens
    of the model's window.
    """

    url: str
    model: str
    key: str
    window: int

    @property
    def reply_tokens(self) -> int:
        """Most tokens of a reply, for which programs keep room in the window."""
        return min(MAX_REPLY_TOKENS, self.window // REPLY_SHARE)


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """Arguments and environment that point a program at a server."""

    arguments: Sequence[str]
    environment: Mapping[str, str]


def codex(target: AgentTarget) -> AgentCommand:
    """Codex, by Responses. It reads the server's models, which offer its patch tool, where a command prints the key."""
    provider = {
        "model_provider": "toolwire",
        "model_providers.toolwire.name": "toolwire",
        "model_providers.toolwire.base_url": f"{target.url}/v1",
        "model_providers.toolwire.wire_api": "responses",
        "model_providers.toolwire.auth.command": "printenv",
        "model_providers.toolwire.auth.args": ["TOOLWIRE_KEY"],
        "web_search": "disabled",
    }
    options = [part for name, value in provider.items() for part in ("-c", f"{name}={json.dumps(value)}")]
    return AgentCommand(["codex", "-m", target.model, *options], {"TOOLWIRE_KEY": target.key})


def claude(target: AgentTarget) -> AgentCommand:
    """Claude Code, by Messages; its smaller and larger models are the one that is served.

    It assumes a window of a million tokens for models that it does not know, and would never compact a conversation.
    """
    names = ("ANTHROPIC_DEFAULT_HAIKU_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL")
    environment = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.key,
        "ANTHROPIC_API_KEY": "",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(target.window),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(target.reply_tokens),
        **dict.fromkeys(names, target.model),
    }
    return AgentCommand(["claude", "--model", target.model], environment)


def opencode(target: AgentTarget, sdk: str = "@ai-sdk/openai-compatible") -> AgentCommand:
    """opencode, by Chat Completions; by Responses with `@ai-sdk/openai`, by Messages with `@ai-sdk/anthropic`.

    Without the limit it never compacts a conversation; by itself it ends a request after five minutes.
    """
    limit = {"context": target.window, "output": target.reply_tokens}
    provider = {
        "npm": sdk,
        "name": "toolwire",
        "options": {"baseURL": f"{target.url}/v1", "apiKey": target.key, "timeout": False},
        "models": {target.model: {"name": target.model, "limit": limit}},
    }
    config = {"provider": {"toolwire": provider}, "model": f"toolwire/{target.model}"}
    environment = {"OPENCODE_CONFIG_CONTENT": json.dumps(config), "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    return AgentCommand(["opencode"], environment)


def qwen(target: AgentTarget) -> AgentCommand:
    """Qwen Code, by Chat Completions."""
    environment = {
        "OPENAI_BASE_URL": f"{target.url}/v1",
        "OPENAI_API_KEY": target.key,
        "OPENAI_MODEL": target.model,
    }
    return AgentCommand(["qwen", "--auth-type", "openai", "--model", target.model], environment)


PROGRAMS: Mapping[str, Callable[[AgentTarget], AgentCommand]] = {
    "codex": codex,
    "claude": claude,
    "opencode": opencode,
    "qwen": qwen,
}
PACKAGES = {
    "codex": "@openai/codex",
    "claude": "@anthropic-ai/claude-code",
    "opencode": "opencode-ai",
    "qwen": "@qwen-code/qwen-code",
}


class AnotherProgram(Exception):
    """What answers is no server of this kind."""


def served_models(url: str, key: str) -> Mapping[str, int]:
    """The windows of the models of `GET /v1/models`, by name. Raises OSError, AnotherProgram."""
    try:
        request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            cards = json.load(reply)["data"]
        return {str(card["id"]): int(card["max_model_len"]) for card in cards}
    except (ValueError, LookupError, TypeError, http.client.HTTPException) as error:
        raise AnotherProgram(repr(error)) from error


def read_arguments(sent: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What was chosen, and the program's own arguments: those that are not known here, and all behind `--`."""
    parser = argparse.ArgumentParser(
        prog="toolwire launch",
        description="Start a coding agent with a running server. Further arguments, and all behind --, are its own.",
        allow_abbrev=False,
    )
    parser.add_argument("program", choices=list(PROGRAMS))
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--key", default="none", help="API key, if the server requires one")
    parser.add_argument("--model", help="model or adapter (default: the first that is served)")
    end = sent.index("--") if "--" in sent else len(sent)
    chosen, own = parser.parse_known_args(sent[:end])
    behind = sent[end:] if own else sent[end + 1 :]  # `--` behind the program's own arguments is the program's too
    return chosen, [*own, *behind]


def main() -> None:
    """python -m server.cli.launch; arguments that it does not know are the program's."""
    chosen, own = read_arguments(sys.argv[1:])
    address = chosen.url if "://" in chosen.url else f"http://{chosen.url}"
    url = address.rstrip("/").removesuffix("/v1")
    if shutil.which(chosen.program) is None:
        sys.exit(f"{chosen.program} is not installed; install it with: npm install -g {PACKAGES[chosen.program]}")
    try:
        models = served_models(url, chosen.key)
    except urllib.error.HTTPError as error:
        hint = "; give its key with --key" if error.code == 401 else ""
        sys.exit(f"{url} answers {error.code}{hint}")
    except OSError as error:
        sys.exit(f"no server answers at {url} ({error}); start one with: toolwire serve")
    except AnotherProgram as error:
        sys.exit(f"what answers at {url} is not toolwire ({error}); give the address of toolwire serve with --url")
    model = chosen.model or next(iter(models), "")
    if model not in models:
        sys.exit(f"{url} does not serve the model {model!r}; it serves: {', '.join(models)}")
    command = PROGRAMS[chosen.program](AgentTarget(url, model, chosen.key, models[model]))
    environment = {**read_environment(), **command.environment}
    os.execvpe(chosen.program, [*command.arguments, *own], environment)


if __name__ == "__main__":
    main()
