"""Lessons as rows of token ids: the list of tools once, and every conversation behind it, none of which sees another.

The ids are those that toolwire's own renderer and encoder produce for these messages when it serves the template, so
that what is trained is what is asked later.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from demo.adapter.conversations import Lesson, Message
from demo.adapter.network import Row
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.template import ChatTemplate, RenderedText
from server.checkpoint.template_environment import CompiledTemplate
from server.prompt.normalize import NormalizedMessage
from server.prompt.render import Renderer

SHIPPED = Path(__file__).parents[2] / "server" / "first_model"  # the adapter, its template, where its base comes from
TEMPLATE = SHIPPED / "chat_template.jinja"
REPLY = "assistant\n"
FIRST_WEIGHT = 6.0  # of a reply's first token: with it, words or a call are chosen


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of a text, and which of them the assistant writes."""

    ids: list[int]
    learnt: list[bool]


@dataclass(frozen=True, slots=True)
class PackedLesson:
    """A row, and the targets of each of its replies: the first, and the one behind the last."""

    row: Row
    replies: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return len(self.row.ids)


class OwnTemplate(ChatTemplate):
    """A template that is rendered in this process, without limits, which takes a fraction of the time."""

    def __init__(self, template: ChatTemplate) -> None:
        self.source, self.origin = template.source, template.origin
        self.token_variables, self.variables = template.token_variables, template.variables
        self._compiled = CompiledTemplate(template.source)

    def render(self, variables: Mapping[str, Any], seconds: float | None = None) -> RenderedText:
        """The prompt's text."""
        text = self._compiled.render(self.token_variables, dict(variables))
        return RenderedText(str(text), text.written)


class Packer:
    """Packs lessons for one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._encoder = checkpoint.encoder
        self._renderer = Renderer(OwnTemplate(checkpoint.template), checkpoint.encoder)
        self.first_of_calls = checkpoint.encoder.encode_text("<tool_call>")[0]

    def pack(self, lesson: Lesson) -> PackedLesson:
        """The lesson's row. Raises ValueError if the template writes a conversation's head in another way."""
        system: tuple[Message, ...] = ({"role": "system", "content": lesson.system},) if lesson.system else ()
        prefix = self._render(system, lesson)
        parts = [self._encode(prefix)]
        for conversation in lesson.conversations:
            whole = self._render((*system, *conversation), lesson)
            if not whole.text.startswith(prefix.text):
                raise ValueError(f"the template writes another head before {conversation[0]}")
            parts.append(self._encode(whole.after(len(prefix.text))))
        return _join(parts)

    def _render(self, messages: tuple[Message, ...], lesson: Lesson) -> RenderedText:
        normalized = [NormalizedMessage(message, ()) for message in messages]
        template_input = self._renderer.template_input(normalized, lesson.tools, {})
        return self._renderer.render_text(replace(template_input, ask_for_reply=False))

    def _encode(self, rendered: RenderedText) -> Encoded:
        ids: list[int] = []
        learnt: list[bool] = []
        in_reply = False
        for piece in self._encoder.pieces(rendered):
            text = rendered.text[piece.start : piece.end]
            if not piece.control and text.startswith(REPLY):  # only a role stands at the start of a text
                head, reply = self._encoder.encode_text(REPLY), self._encoder.encode_text(text[len(REPLY) :])
                ids += head + reply
                learnt += [False] * len(head) + [True] * len(reply)
                in_reply = True
            else:
                ids += piece.token_ids
                learnt += [in_reply] * len(piece.token_ids)
                in_reply = False
        return Encoded(ids, learnt)


def _join(parts: list[Encoded]) -> PackedLesson:
    num_prefix = len(parts[0].ids)
    ids = [token_id for part in parts for token_id in part.ids]
    learnt = [flag for part in parts for flag in part.learnt]
    positions = [*range(num_prefix)]
    segments = [(0, num_prefix)]
    for part in parts[1:]:
        positions += range(num_prefix, num_prefix + len(part.ids))
        segments.append((segments[-1][1], segments[-1][1] + len(part.ids)))
    aimed = [index for index, flag in enumerate(learnt) if flag]
    starts = [place for place, index in enumerate(aimed) if not learnt[index - 1]]
    weights = torch.ones(len(aimed))
    weights[starts] = FIRST_WEIGHT
    row = Row(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        segments=tuple(segments),
        places=torch.tensor(aimed) - 1,
        targets=torch.tensor([ids[index] for index in aimed]),
        weights=weights,
    )
    return PackedLesson(row, tuple(pairwise([*starts, len(aimed)])))
