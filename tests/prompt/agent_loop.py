"""Walks an agent's loop and reports how much of each prompt the prefix cache already holds.

    python -m tests.prompt.agent_loop        a table over all templates

Before round k+1 the cache holds the blocks of prompt k and of the reply to it. What the next prompt begins with in
common with them, in whole blocks, is not computed again.
"""

from dataclasses import dataclass, replace
from typing import Any

from server.chat_request import AssistantMessage, PastCall
from server.prompt.normalize import normalize_messages
from server.prompt.render import Renderer
from tests.model_templates import TEMPLATES, checkpoint, ids_of
from tests.typed_messages import typed

ROUNDS = 10
BLOCK = 16
PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}, "line": {"type": "integer"}}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": PARAMETERS}}
    for name in ("read_file", "write_file", "run_tests")
]


@dataclass(frozen=True, slots=True)
class Step:
    """One prompt of the loop: its length, how much of it was in the cache, how much the cache held."""

    prompt_tokens: int
    cached_tokens: int
    held_tokens: int

    @property
    def share(self) -> float:
        """Of the prompt, from the cache."""
        return self.cached_tokens / self.prompt_tokens

    @property
    def reused(self) -> float:
        """Of what the cache held of the round before."""
        return self.cached_tokens / (self.held_tokens // BLOCK * BLOCK)


def walk(name: str, thoughts: bool, sent_back: bool, questions: int = 1) -> list[Step]:
    """The rounds of `questions` loops. `thoughts`: the model thinks; `sent_back`: the client returns its thoughts."""
    steps: list[Step] = []
    held: list[int] = []
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You repair programs. " * 10}]
    for question in range(questions):
        messages.append({"role": "user", "content": f"Repair file {question}, please. " * 5})
        for i in range(ROUNDS):
            prompt = ids_of(name, messages, tools=TOOLS)
            steps.append(Step(len(prompt), _common(held, prompt) // BLOCK * BLOCK, len(held)))
            reply = _reply(f"{question}:{i}", thoughts, last=i == ROUNDS - 1)
            held = prompt + _ids_of_reply(name, messages, reply)
            messages += _sent(reply, sent_back)
    return steps


def _reply(at: str, thoughts: bool, last: bool) -> dict[str, Any]:
    reply: dict[str, Any] = {"role": "assistant", "content": f"Step {at} is done." if last else ""}
    if thoughts:
        reply["reasoning_content"] = f"The file of step {at} must be read before anything else. " * 3
    if not last:
        function = {"name": "read_file", "arguments": {"path": f"src/{at}.py", "line": 7}}
        reply["tool_calls"] = [{"id": f"functions.read_file:{at}", "type": "function", "function": function}]
    return reply


def _sent(reply: dict[str, Any], thoughts: bool) -> list[dict[str, Any]]:
    """The reply as the client sends it back, and the results of its calls."""
    message = {key: item for key, item in reply.items() if thoughts or key != "reasoning_content"}
    text = "def repair(thing):\n    return thing\n" * 6
    results = [{"role": "tool", "tool_call_id": call["id"], "content": text} for call in reply.get("tool_calls", ())]
    return [message, *results]


def _ids_of_reply(name: str, messages: list[dict[str, Any]], reply: dict[str, Any]) -> list[int]:
    """The ids that the model writes: those of its turn as the template writes it, up to its end."""
    there = checkpoint(name)
    renderer = Renderer(there.template, there.encoder)
    prompt = renderer.render(
        renderer.template_input(normalize_messages(typed(messages), there.capabilities), TOOLS, {})
    ).text
    script = renderer.template_input(
        normalize_messages([*typed(messages), _typed_reply(reply)], there.capabilities), TOOLS, {}
    )
    whole = renderer.render_text(replace(script, ask_for_reply=False))
    assert whole.text.startswith(prompt)
    ids = there.encoder.encode(whole.after(len(prompt)))
    ends = [i for i, one in enumerate(ids) if one in there.stop_ids]
    return ids[: ends[0] + 1] if ends else ids


def _typed_reply(reply: dict[str, Any]) -> AssistantMessage:
    """The reply alone: its calls have no results yet."""
    functions = [(call["id"], call["function"]) for call in reply.get("tool_calls", ())]
    calls = tuple(PastCall(call_id, function["name"], function["arguments"]) for call_id, function in functions)
    return AssistantMessage(reply["content"], reply.get("reasoning_content"), calls)


def _common(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def main() -> None:
    """The table of docs/prompts.md."""
    print("| template | thoughts | rounds 2-10: share of the prompt cached | next question: share cached |")
    print("|---|---|---|---|")
    for name in TEMPLATES:
        if name == "qwen15":
            continue
        thinks = "<think>" in checkpoint(name).template.source
        for thoughts, sent_back in [(False, False), *([(True, True), (True, False)] if thinks else [])]:
            steps = walk(name, thoughts, sent_back, questions=2)
            inside = steps[1:ROUNDS]
            share = sum(step.cached_tokens for step in inside) / sum(step.prompt_tokens for step in inside)
            how = ("sent back" if sent_back else "not sent back") if thoughts else "none"
            print(f"| {name} | {how} | {share:.0%} | {steps[ROUNDS].share:.0%} |")


if __name__ == "__main__":
    main()
