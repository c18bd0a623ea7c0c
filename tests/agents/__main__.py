"""Coding agents against a scripted model: python -m tests.agents [PROGRAM...], or make test-agents.

Each is fetched from npm into a cache folder, asks, gets a tool call, runs it, sends the result and gets text. Prints a
table. `--record` writes the shape of its requests to the fixtures that the fast tests replay.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from server.cli.launch import AgentTarget
from tests.agents.programs import AGENT_RUNS, AgentRun
from tests.agents.recorder import Recorder, write_fixture
from tests.contract.requests import MODEL
from tests.contract.scripted import scripted_server

WINDOW = 131_072
FETCH_TIMEOUT_S, RUN_TIMEOUT_S = 1200, 120
QUESTION = "What does note.txt say?"
ANSWER = "The note says that the tests are green."
NOTE = "The tests are green.\n"
PATCHED = "The tests are green again.\n"
PATCH = f"*** Begin Patch\n*** Update File: note.txt\n@@\n-{NOTE}+{PATCHED}*** End Patch"
# The tools that run a command, and their arguments for it.
COMMAND_TOOLS: dict[str, Callable[[str], dict[str, object]]] = {
    "Bash": lambda command: {"command": command, "description": "Show the note"},
    "bash": lambda command: {"command": command, "description": "Show the note"},
    "run_shell_command": lambda command: {"command": command, "description": "Show the note", "is_background": False},
    "run_commands": lambda command: {"commands": [command]},
    "exec_command": lambda command: {"cmd": command},
    "shell": lambda command: {"command": command},
    "show": lambda command: {"input": "SHOW note.txt"},
}


def model_of(num_calls: int) -> Callable[[str], str]:
    """A model that calls the tool for commands this often, then answers if the note came back each time."""

    def text_of(prompt: str) -> str:
        results = prompt.split("<tool_response>")[1:]
        if len(results) >= num_calls:
            return ANSWER if all(NOTE.strip() in result for result in results) else "The tool has failed."
        command = f"cat note.txt # {len(results)}"
        for name, arguments_of in COMMAND_TOOLS.items():
            if f'"name": "{name}"' in prompt:
                call = {"name": name, "arguments": arguments_of(command)}
                return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
        return "A note"

    return text_of


def patch_of_note(prompt: str) -> str:
    """A model that patches the note by a custom tool, then answers."""
    if "<tool_response>" in prompt:
        return ANSWER
    if '"name": "apply_patch"' not in prompt:
        return "No tool takes patches."
    return f'<tool_call>\n{{"name": "apply_patch", "arguments": {{}}}}\n<input>\n{PATCH}\n</input>\n</tool_call>'


def fetched(agent: AgentRun) -> Path:
    """The folder that the program is installed in; it is fetched once. Raises CalledProcessError or TimeoutExpired."""
    folder = Path(tempfile.gettempdir()) / "toolwire-agents" / re.sub(r"\W+", "-", agent.package).strip("-")
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    python, npm = str(folder / "bin" / "python"), ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder)]
    if agent.of_python:
        _fetch([sys.executable, "-m", "venv", str(folder)], folder)
        _fetch([python, "-m", "pip", "install", "-q", agent.package], folder)
    for package in agent.needs:
        _fetch([*npm, package], folder)
    for position, release in enumerate(() if agent.of_python else agent.releases, 1):
        try:  # npm itself picks a version that runs on the Node it is run by
            _fetch([*npm, f"{agent.package}@{release}"], folder)
            break
        except subprocess.CalledProcessError:
            if position == len(agent.releases):
                raise
    (folder / "done").touch()
    return folder


def _fetch(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PATH": path_of(folder)}
    subprocess.run(command, env=environment, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=True)


def path_of(installed: Path) -> str:
    """The search path with the programs that are installed there."""
    return f"{installed / 'node_modules' / '.bin'}:{installed / 'bin'}:{os.environ['PATH']}"


def version_of(agent: AgentRun, installed: Path) -> str:
    """The version that is installed."""
    if agent.of_python:
        name = agent.package.partition("[")[0]
        code = f"import importlib.metadata as metadata; print(metadata.version('{name}'))"
        return subprocess.run([installed / "bin" / "python", "-c", code], capture_output=True, text=True).stdout.strip()
    manifest = installed / "node_modules" / agent.package / "package.json"
    return str(json.loads(manifest.read_text())["version"])


def run(agent: AgentRun, installed: Path, url: str) -> str:
    """`ok` and the version of the program, or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        home, work = Path(folder) / "home", Path(folder) / "work"
        home.mkdir()
        work.mkdir()
        (work / "note.txt").write_text(NOTE)
        for command in agent.commands(AgentTarget(url, MODEL, "any", WINDOW), home, QUESTION):
            own = {"HOME": str(home), "PATH": path_of(installed), "PWD": str(work)}  # opencode works in what PWD says
            with subprocess.Popen(
                command.arguments, cwd=work, env={**os.environ, **own, **command.environment}, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            ) as process:  # fmt: skip
                try:
                    out, errors = process.communicate(timeout=RUN_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    return f"failed: no end after {RUN_TIMEOUT_S} s"
                finally:
                    _end(process)
        note = (work / "note.txt").read_text()
    if process.returncode or ANSWER not in out:
        return f"failed ({process.returncode}): {(errors or out).strip()[-300:]}"
    if note != (PATCHED if agent.edits else NOTE):
        return f"failed: the note says {note!r}"
    return f"ok, version {version_of(agent, installed)}"


def _end(process: subprocess.Popen[str]) -> None:
    """End what the program has started too: it leads a session of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main() -> None:
    """Run the programs that are named, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=", ".join(AGENT_RUNS))
    parser.add_argument("--calls", type=int, default=1, help="calls before the answer (default: %(default)s)")
    parser.add_argument(
        "--record", metavar="SUFFIX", nargs="?", const="", help="write the fixtures of those that end well"
    )
    chosen = parser.parse_args()
    print("| program | by | result |\n|---|---|---|")
    failed = False
    for name in chosen.programs or AGENT_RUNS:
        agent, recorder = AGENT_RUNS[name], Recorder()
        try:
            installed = fetched(agent)
            model = patch_of_note if agent.edits else model_of(chosen.calls)
            with scripted_server(model, WINDOW, recorder.wrap) as url:
                outcome = run(agent, installed, url)
        except subprocess.CalledProcessError as error:
            outcome = f"not fetched: {error.stderr.strip().splitlines()[-1]}"
        except subprocess.TimeoutExpired as error:
            outcome = f"not fetched: no end after {error.timeout:.0f} s"
        failed = failed or not outcome.startswith("ok")
        print(f"| {name} | {agent.surface} | {outcome} |", flush=True)
        if chosen.record is not None and outcome.startswith("ok"):
            write_fixture(name + chosen.record, recorder.requests)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
