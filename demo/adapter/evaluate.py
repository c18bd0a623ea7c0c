"""Evaluation of a server on the requests written by hand (`trials.py`), each with its tools and `tool_choice: auto`.

    python -m demo.adapter.evaluate http://127.0.0.1:8000/v1

A reply is exact if its calls are those that the request means, in their order; arguments may come in any order.
"""

import argparse
import json
from typing import Any

import openai

from demo.adapter.trials import Call, Trial, read_trials

MAX_TOKENS = 200


def ask(client: openai.OpenAI, model: str, trial: Trial) -> tuple[list[Call], str]:
    """Calls and text of a greedy reply; the arguments of a call that was cut off are {"cut off": their text}."""
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": trial.text}],
        tools=list(trial.tools),  # type: ignore[arg-type]
        temperature=0,
        max_tokens=MAX_TOKENS,
    )
    message = reply.choices[0].message
    calls = [
        (call.function.name, _arguments(call.function.arguments))
        for call in message.tool_calls or ()
        if call.type == "function"
    ]
    return calls, message.content or ""


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        return {"cut off": text}
    return arguments


def main() -> None:
    """Ask all, and print what came."""
    parser = argparse.ArgumentParser(description="Sends the requests written by hand to a server.")
    parser.add_argument("url", help="base URL of the API, with /v1")
    parser.add_argument("--model", help="name of the model; else the first that the server lists")
    parser.add_argument("--api-key", default="none")
    options = parser.parse_args()
    client = openai.OpenAI(base_url=options.url, api_key=options.api_key, timeout=600)
    model = options.model or client.models.list().data[0].id
    num_exact = 0
    for trial in read_trials():
        calls, text = ask(client, model, trial)
        is_exact = calls == list(trial.calls)
        num_exact += is_exact
        print(f"{'exact' if is_exact else 'WRONG'}  {trial.text}")
        print(f"       {' '.join(f'{name}({json.dumps(args)})' for name, args in calls) or repr(text)}")
    print(f"{num_exact} of {len(read_trials())} exact; model {model}")


if __name__ == "__main__":
    main()
