"""Evaluation of the demonstration model on the held-out cases.

    python -m demo.evaluate --in-process                  without a grammar, in transformers
    python -m demo.evaluate --url http://127.0.0.1:8000   through a running server, with its grammar
    python -m demo.evaluate                               starts a server of its own

"right tool" counts replies that call the expected tools in order (or none if none fits); "exact" counts those whose
arguments are all correct as well, or whose text contains what it must.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from demo.cases import Case, Outcome, Verdict, judge, write_cases
from demo.export import SHIPPED
from demo.requests import Call

CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
MAX_TOKENS = 240


def read_reply(text: str) -> Outcome:
    """Parse calls and text of a raw reply; a call that is not JSON is dropped."""
    text = text.rpartition("</think>")[2].strip()
    calls = []
    for body in CALL.findall(text):
        try:
            call = json.loads(body)
            calls.append(Call(call["name"], call["arguments"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return Outcome(tuple(calls), CALL.sub("", text).strip())


def answer_in_process(cases: Sequence[Case], folder: Path, rows: int = 24) -> list[Outcome]:
    """Return greedy replies of the weights in `folder` without a grammar, `rows` cases at a time."""
    import torch  # lazy: measuring a server needs neither
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [
        tokenizer.apply_chat_template(list(case.messages), tools=list(case.tools) or None, tokenize=False,
                                      add_generation_prompt=True, enable_thinking=case.thinking)
        for case in cases
    ]  # fmt: skip
    order = sorted(range(len(cases)), key=lambda index: len(prompts[index]))
    outcomes: dict[int, Outcome] = {}
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        inputs = tokenizer([prompts[index] for index in chosen], return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        replies = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        outcomes |= {index: read_reply(reply) for index, reply in zip(chosen, replies, strict=True)}
    return [outcomes[index] for index in range(len(cases))]


def answer_over_http(cases: Sequence[Case], url: str, clients: int = 4) -> list[Outcome]:
    """Return greedy replies of a server's chat completions."""
    with httpx.Client(base_url=url, timeout=300) as client, ThreadPoolExecutor(clients) as pool:
        model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        return list(pool.map(lambda case: send_case(client, model, case), cases))


def send_case(client: httpx.Client, model: str, case: Case) -> Outcome:
    """Send one case. Raises RuntimeError on an error status."""
    body: dict[str, Any] = {
        "model": model, "messages": case.messages, "temperature": 0, "max_tokens": MAX_TOKENS,
        "chat_template_kwargs": {"enable_thinking": case.thinking},
    }  # fmt: skip
    if case.tools:
        body["tools"] = case.tools
    reply = client.post("/v1/chat/completions", json=body)
    if reply.is_error:
        raise RuntimeError(f"{reply.status_code} from {reply.url}: {reply.text}")
    message = reply.json()["choices"][0]["message"]
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return Outcome(tuple(map(read_call, calls)), message.get("content") or "")


def read_call(function: dict[str, str]) -> Call:
    """Parse a call; one cut off at the token limit keeps its name, with wrong arguments."""
    try:
        return Call(function["name"], json.loads(function["arguments"]))
    except json.JSONDecodeError:
        return Call(function["name"], {"cut off": function["arguments"]})


@contextmanager
def own_server(port: int) -> Iterator[str]:
    """Run a server of the tiny model within the block."""
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "server", "serve", "--model", "tiny", "--port", str(port)])
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"{url}/ready").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        else:
            raise RuntimeError("the server did not become ready within two minutes")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def write_table(cases: Sequence[Case], verdicts: Sequence[Verdict]) -> str:
    """Return a Markdown table with one row for each kind of case."""
    lines = ["| cases | number | right tool | exact |", "| --- | ---: | ---: | ---: |"]
    for kind in dict.fromkeys(case.kind for case in cases):
        of_kind = [verdict for case, verdict in zip(cases, verdicts, strict=True) if case.kind == kind]
        right = sum(verdict.right_tools for verdict in of_kind) / len(of_kind)
        exact = sum(verdict.exact for verdict in of_kind) / len(of_kind)
        lines.append(f"| {kind} | {len(of_kind)} | {right:.1%} | {exact:.1%} |")
    return "\n".join(lines)


def show_failures(cases: Sequence[Case], outcomes: Sequence[Outcome], limit: int) -> None:
    """Print the first `limit` replies that are not exact."""
    for case, outcome in zip(cases, outcomes, strict=True):
        if not judge(case, outcome).exact and limit > 0:
            limit -= 1
            expected: object = list(case.calls) or list(case.mentions) or "no call"
            print(f"[{case.kind}, thinking {case.thinking}] {case.messages[-1]['content']}")
            print(f"    expected {expected}\n    got      {list(outcome.calls)} {outcome.text!r}")


def main() -> None:
    """Print the table of one evaluation."""
    parser = argparse.ArgumentParser(description="Measures the demonstration model on held-out cases.")
    parser.add_argument("--in-process", action="store_true", help="without server and grammar")
    parser.add_argument("--url", help="a running server")
    parser.add_argument("--port", type=int, default=8765, help="port of the server to start")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of the weights, with --in-process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the cases")
    parser.add_argument("--failures", type=int, default=0, help="how many wrong replies to print")
    options = parser.parse_args()
    cases = write_cases(options.seed, options.scale)
    if options.in_process:
        outcomes = answer_in_process(cases, options.model)
    elif options.url:
        outcomes = answer_over_http(cases, options.url)
    else:
        with own_server(options.port) as url:
            outcomes = answer_over_http(cases, url)
    show_failures(cases, outcomes, options.failures)
    print(write_table(cases, [judge(case, outcome) for case, outcome in zip(cases, outcomes, strict=True)]))


if __name__ == "__main__":
    main()
