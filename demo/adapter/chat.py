"""Conversations without tools, whose replies are the base model's own: so that the adapter leaves these as they are.

    python -m demo.adapter.chat http://127.0.0.1:8000/v1

asks a server of the base model, with the adapter's template, every question of questions.txt and writes chat.jsonl.
"""

import argparse
import json
from functools import cache
from pathlib import Path

import openai

QUESTIONS, REPLIES = (Path(__file__).parent / name for name in ("questions.txt", "chat.jsonl"))
MAX_TOKENS = 160


@cache
def read_chat() -> tuple[tuple[str, str], ...]:
    """Questions and replies; none where they have not been made."""
    if not REPLIES.is_file():
        return ()
    lines = map(json.loads, REPLIES.read_text(encoding="utf-8").splitlines())
    return tuple((line["user"], line["assistant"]) for line in lines)


def main() -> None:
    """Ask all; a reply that is longer than MAX_TOKENS is left out."""
    parser = argparse.ArgumentParser(description="Writes the base model's replies to questions without tools.")
    parser.add_argument("url", help="base URL of the API, with /v1")
    options = parser.parse_args()
    client = openai.OpenAI(base_url=options.url, api_key="none", timeout=600)
    model = client.models.list().data[0].id
    lines = []
    for question in QUESTIONS.read_text(encoding="utf-8").splitlines():
        reply = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=MAX_TOKENS,
        )
        if reply.choices[0].finish_reason == "stop":
            lines.append(json.dumps({"user": question, "assistant": reply.choices[0].message.content}))
    REPLIES.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} replies")


if __name__ == "__main__":
    main()
