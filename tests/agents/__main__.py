"""Coding agents against a scripted model: python -m tests.agents [PROGRAM...], or make test-agents.

Each is fetched from npm, asks, gets a tool call, runs it, sends the result and gets text. Prints a table.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from server.cli.launch import PACKAGES, PROGRAMS, AgentTarget
from tests.contract.requests import MODEL
from tests.contract.scripted import scripted_server

WINDOW = 131_072
FETCH_TIMEOUT_S, RUN_TIMEOUT_S = 300, 180
QUESTION = "What does note.txt say?"
ANSWER = "The note says that the tests are green."
NOTE = "The tests are green.\n"
# Arguments of one run without a terminal, and the tool that runs a command, with its arguments.
RUNS = {
    "claude": ["-p", QUESTION, "--output-format", "json", "--dangerously-skip-permissions"],
    "codex": ["exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", QUESTION],
    "opencode": ["run", "--format", "json", QUESTION],
    "qwen": ["-p", QUESTION, "-y"],
}
COMMAND_TOOLS: dict[str, dict[str, object]] = {
    "Bash": {"command": "cat note.txt", "description": "Show the note"},
    "bash": {"command": "cat note.txt", "description": "Show the note"},
    "run_shell_command": {"command": "cat note.txt", "description": "Show the note", "is_background": False},
    "exec_command": {"cmd": "cat note.txt"},
    "shell": {"command": ["cat", "note.txt"]},
}


def text_of(prompt: str) -> str:
    """A call of the tool that runs commands; the answer, once its result is there."""
    if NOTE.strip() in prompt.rsplit("<tool_response>", 1)[-1] and "<tool_response>" in prompt:
        return ANSWER
    for name, arguments in COMMAND_TOOLS.items():
        if f'"name": "{name}"' in prompt:
            return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    return "A note"


def run(program: str, folder: Path, url: str) -> str:
    """`ok` and the version of the program, or what went wrong."""
    fetch = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGES[program]]
    fetched = subprocess.run(fetch, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
    if fetched.returncode:
        return f"not fetched: {fetched.stderr.strip().splitlines()[-1]}"
    work = folder / "work"
    work.mkdir()
    (work / "note.txt").write_text(NOTE)
    command = PROGRAMS[program](AgentTarget(url, MODEL, "any"))
    home = {
        "HOME": str(folder),
        "IS_SANDBOX": "1",
        "CODEX_HOME": str(folder),
        "CLAUDE_CONFIG_DIR": str(folder / "conf"),
    }
    path = {"PATH": f"{folder / 'node_modules' / '.bin'}:{os.environ['PATH']}"}
    result = subprocess.run(
        [*command.arguments, *RUNS[program]], cwd=work, env={**os.environ, **home, **path, **command.environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_TIMEOUT_S,
    )  # fmt: skip
    if result.returncode or ANSWER not in result.stdout:
        return f"failed ({result.returncode}): {(result.stderr or result.stdout).strip()[-200:]}"
    manifest = folder / "node_modules" / PACKAGES[program] / "package.json"
    return f"ok, version {json.loads(manifest.read_text())['version']}"


def main() -> None:
    """Run the programs that are named, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=", ".join(RUNS))
    chosen = parser.parse_args()
    print("| program | result |\n|---|---|")
    failed = False
    for program in chosen.programs or RUNS:
        with tempfile.TemporaryDirectory() as folder, scripted_server(text_of, WINDOW) as url:
            try:
                outcome = run(program, Path(folder), url)
            except subprocess.TimeoutExpired as error:
                outcome = f"failed: no end after {error.timeout:.0f} s"
        failed = failed or not outcome.startswith("ok")
        print(f"| {program} | {outcome} |", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
