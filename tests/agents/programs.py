"""Coding agents: where each is fetched from, and how one run of it without a terminal is pointed at a server."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.cli.launch import PACKAGES, AgentCommand, AgentTarget, claude, codex, opencode
from tests.live import ROOT

NODE = "node@24"  # for programs that need a newer one than the system may have
OPENCODE_SDKS = {"chat": "@ai-sdk/openai-compatible", "responses": "@ai-sdk/openai", "messages": "@ai-sdk/anthropic"}
QWEN_TYPES = {"chat": "openai", "responses": "openai-responses", "messages": "anthropic"}
PI = "@earendil-works/pi-coding-agent"
PI_RELEASES = ("latest", "~1.3")  # not every mirror of npm has what newer ones need
PI_LARK = (
    "--no-builtin-tools",
    "-e",
    str(Path(__file__).parent / "pi_lark.mjs"),
)  # a tool with a grammar, and no other
PI_APIS = {"chat": "openai-completions", "responses": "openai-responses", "messages": "anthropic-messages"}


@dataclass(frozen=True, slots=True)
class AgentRun:
    """One program by one surface. `commands` writes what it needs below `home`; the last of them asks the question.

    `package` is npm's, with `of_python` one of PyPI.
    """

    package: str
    surface: str
    commands: Callable[[AgentTarget, Path, str], Sequence[AgentCommand]]  # target, home, question
    needs: tuple[str, ...] = ()  # further packages
    releases: tuple[str, ...] = ("latest",)  # the first of them that can be fetched is
    of_python: bool = False
    edits: bool = False  # the task changes a file by the patch tool, instead of reading one


def _claude(target: AgentTarget, home: Path, question: str) -> list[AgentCommand]:
    command = claude(target)
    arguments = ["-p", question, "--output-format", "json", "--dangerously-skip-permissions"]
    return [_with(command, arguments, {"IS_SANDBOX": "1", "CLAUDE_CONFIG_DIR": str(home / "claude")})]


def _codex(target: AgentTarget, home: Path, question: str) -> list[AgentCommand]:
    arguments = ["exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", question]
    return [_with(codex(target), arguments, {"CODEX_HOME": str(home)})]


def _opencode(surface: str) -> Callable[[AgentTarget, Path, str], list[AgentCommand]]:
    def commands(target: AgentTarget, home: Path, question: str) -> list[AgentCommand]:
        return [_with(opencode(target, OPENCODE_SDKS[surface]), ["run", "--format", "json", question])]

    return commands


def _qwen(surface: str) -> Callable[[AgentTarget, Path, str], list[AgentCommand]]:
    def commands(target: AgentTarget, home: Path, question: str) -> list[AgentCommand]:
        name, base = ("ANTHROPIC", target.url) if surface == "messages" else ("OPENAI", f"{target.url}/v1")
        environment = {f"{name}_BASE_URL": base, f"{name}_API_KEY": target.key, f"{name}_MODEL": target.model}
        arguments = ["qwen", "--auth-type", QWEN_TYPES[surface], "--model", target.model, "-p", question, "-y"]
        return [AgentCommand(arguments, environment)]

    return commands


def _cline(target: AgentTarget, home: Path, question: str) -> list[AgentCommand]:
    provider = ["-p", "openai-compatible", "-k", target.key, "-m", target.model, "-b", f"{target.url}/v1"]
    task = ["--json", "--auto-approve", "true", "-P", "openai-compatible", "-m", target.model, question]
    return [AgentCommand(["cline", "auth", *provider], {}), AgentCommand(["cline", *task], {})]


def _pi(surface: str, *own: str) -> Callable[[AgentTarget, Path, str], list[AgentCommand]]:
    """With `own` arguments."""

    def commands(target: AgentTarget, home: Path, question: str) -> list[AgentCommand]:
        provider = {
            "baseUrl": target.url if surface == "messages" else f"{target.url}/v1",
            "api": PI_APIS[surface],
            "apiKey": target.key,
            "compat": {"supportsOpenAIGrammarTools": True} if surface != "messages" else {},
            "models": [{"id": target.model}],
        }
        (home / "models.json").write_text(json.dumps({"providers": {"toolwire": provider}}))
        arguments = ["pi", "--provider", "toolwire", "--model", target.model, *own, "--mode", "json", "-p", question]
        return [AgentCommand(arguments, {"PI_CODING_AGENT_DIR": str(home), "PI_OFFLINE": "1"})]

    return commands


def _goose(target: AgentTarget, home: Path, question: str) -> list[AgentCommand]:
    environment = {
        "GOOSE_PROVIDER": "openai",
        "GOOSE_MODEL": target.model,
        "GOOSE_MODE": "auto",
        "GOOSE_DISABLE_KEYRING": "1",
        "OPENAI_HOST": target.url,
        "OPENAI_BASE_PATH": "v1/chat/completions",
        "OPENAI_API_KEY": target.key,
    }
    arguments = ["goose-binary-linux-x64", "run", "--no-session", "--with-builtin", "developer", "-t", question]
    return [AgentCommand(arguments, environment)]


def _litellm(target: AgentTarget, home: Path, question: str) -> list[AgentCommand]:
    arguments = [sys.executable, "-m", "tests.agents.litellm_proxy", target.url, target.model, question]
    return [AgentCommand(arguments, {"PYTHONPATH": str(ROOT)})]


def _with(command: AgentCommand, arguments: Sequence[str], environment: Mapping[str, str] = {}) -> AgentCommand:
    return AgentCommand([*command.arguments, *arguments], {**command.environment, **environment})


AGENT_RUNS: Mapping[str, AgentRun] = {
    "claude": AgentRun(PACKAGES["claude"], "Messages", _claude),
    "codex": AgentRun(PACKAGES["codex"], "Responses", _codex),
    "codex-patch": AgentRun(PACKAGES["codex"], "Responses", _codex, edits=True),
    "opencode-chat": AgentRun(PACKAGES["opencode"], "Chat Completions", _opencode("chat")),
    "opencode-responses": AgentRun(PACKAGES["opencode"], "Responses", _opencode("responses")),
    "opencode-messages": AgentRun(PACKAGES["opencode"], "Messages", _opencode("messages")),
    "qwen-chat": AgentRun(PACKAGES["qwen"], "Chat Completions", _qwen("chat"), (NODE,)),
    "qwen-responses": AgentRun(PACKAGES["qwen"], "Responses", _qwen("responses"), (NODE,)),
    "qwen-messages": AgentRun(PACKAGES["qwen"], "Messages", _qwen("messages"), (NODE,)),
    "cline": AgentRun("cline", "Chat Completions", _cline, (NODE,)),
    "pi-chat": AgentRun(PI, "Chat Completions", _pi("chat"), (NODE,), PI_RELEASES),
    "pi-responses": AgentRun(PI, "Responses", _pi("responses"), (NODE,), PI_RELEASES),
    "pi-messages": AgentRun(PI, "Messages", _pi("messages"), (NODE,), PI_RELEASES),
    "pi-chat-lark": AgentRun(PI, "Chat Completions", _pi("chat", *PI_LARK), (NODE,), PI_RELEASES),
    "pi-responses-lark": AgentRun(PI, "Responses", _pi("responses", *PI_LARK), (NODE,), PI_RELEASES),
    "goose": AgentRun("@aaif/goose-binary-linux-x64", "Chat Completions", _goose),
    "litellm": AgentRun("litellm[proxy]", "all three, as a proxy", _litellm, of_python=True),
}
