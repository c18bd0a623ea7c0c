"""Dialogues as token ids with loss weights, identical to what chat_template.jinja renders.

Written in Python because the generator renders thousands a second; tests compare it with the template.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from demo.dialogues import Dialogue, Turn
from demo.tokenizer import TOOLS_HEAD, TOOLS_TAIL_1, TOOLS_TAIL_2, TOOLS_TAIL_3
from demo.tools import Tool

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
PROMPT_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text that is a training target (learnt) or part of the prompt."""

    text: str
    learnt: bool


@dataclass(frozen=True, slots=True)
class Example:
    """ids: [num_tokens]; weights: [num_tokens], the loss weight of predicting each id."""

    ids: npt.NDArray[np.int16]
    weights: npt.NDArray[np.float32]


def render_tools(tools: Sequence[Tool]) -> str:
    """Return the section of the system message that lists the tools."""
    lines = "\n".join(json.dumps(tool.schema(), ensure_ascii=False) for tool in tools)
    marks = "<tool_call></tool_call>" + TOOLS_TAIL_2 + "<tool_call>" + TOOLS_TAIL_3 + "</tool_call>"
    return TOOLS_HEAD + lines + TOOLS_TAIL_1 + marks


def render_head(dialogue: Dialogue) -> str:
    """Return the system message, empty if there is none."""
    parts = [part for part in (dialogue.system, render_tools(dialogue.tools) if dialogue.tools else "") if part]
    return f"<|im_start|>system\n{(chr(10) * 2).join(parts)}<|im_end|>\n" if parts else ""


def render_reply(turn: Turn) -> str:
    """Return text and calls of an assistant turn."""
    calls = [
        '<tool_call>\n{"name": "' + call.name + '", "arguments": '
        + json.dumps(call.arguments, ensure_ascii=False) + "}\n</tool_call>"
        for call in turn.calls
    ]  # fmt: skip
    return "\n".join([turn.content] * bool(turn.content) + calls)


def render(dialogue: Dialogue) -> list[Piece]:
    """Return the dialogue in pieces; learnt pieces end with the end-of-turn token."""
    pieces = [Piece(render_head(dialogue), False)]
    last_question = max(i for i, turn in enumerate(dialogue.turns) if turn.role == "user")
    for index, turn in enumerate(dialogue.turns):
        if turn.role == "user":
            pieces.append(Piece(f"<|im_start|>user\n{turn.content}<|im_end|>\n", False))
        elif turn.role == "tool":
            opens = dialogue.turns[index - 1].role != "tool"
            closes = dialogue.turns[index + 1].role != "tool"
            head = "<|im_start|>user" if opens else ""
            tail = "<|im_end|>\n" if closes else ""
            pieces.append(Piece(f"{head}\n<tool_response>\n{turn.content}\n</tool_response>{tail}", False))
        else:
            learnt = index >= dialogue.num_learnt_from
            thought = turn.thought if dialogue.thinking and index > last_question else ""
            pieces += render_learnt(turn, thought) if learnt else [render_past(turn, thought * dialogue.keeps_thoughts)]
    return pieces


def render_past(turn: Turn, thought: str) -> Piece:
    kept = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    return Piece(f"<|im_start|>assistant\n{kept}{render_reply(turn)}<|im_end|>\n", False)


def render_learnt(turn: Turn, thought: str) -> list[Piece]:
    given = "" if thought else EMPTY_THOUGHT
    written = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    return [
        Piece(f"<|im_start|>assistant\n{given}", False),
        Piece(f"{written}{render_reply(turn)}<|im_end|>", True),
        Piece("\n", False),
    ]


def encode_all(tokenizer: Tokenizer, dialogues: Sequence[Dialogue]) -> list[Example]:
    """Return token ids and weights of each dialogue."""
    rendered = [render(dialogue) for dialogue in dialogues]
    encoded = iter(tokenizer.encode_batch_fast([piece.text for pieces in rendered for piece in pieces]))
    examples = []
    for pieces in rendered:
        ids: list[int] = []
        weights: list[float] = []
        for piece in pieces:
            tokens = next(encoded).ids
            ids += tokens
            weights += [1.0 if piece.learnt else PROMPT_WEIGHT] * len(tokens)
        examples.append(Example(np.array(ids, dtype=np.int16), np.array(weights, dtype=np.float32)))
    return examples
