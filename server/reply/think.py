"""Separate the think block at the head of a reply from what follows it.

    open:      thoughts </think>\\n\\nanswer
    may_open:  <think>\\nthoughts\\n</think>\\n\\nanswer      or just      answer

A token that opens a call inside an unclosed block ends the block: the model has begun to act, and the engine holds it
to the call's grammar from there on. Where the vocabulary has no such token, the marker's text ends the block.
"""

import re
from collections.abc import Collection, Iterable
from typing import Literal

from server.events import Text, Thought
from server.reply.text import held_length

WORD = re.compile(r"[A-Za-z0-9_-]+")  # the letters of a tool's name


def named_in(thoughts: str, names: Collection[str]) -> tuple[str, ...]:
    """The names that occur in the thoughts as whole words, in order of first occurrence."""
    words = (word if word in names else word.strip("-") for word in WORD.findall(thoughts))
    return tuple(dict.fromkeys(word for word in words if word in names))


class ThinkSpan:
    """Text in, `Thought` and `Text` out. Line breaks around the thoughts and before the answer are dropped.

    `tags` are the opening and the closing tag; `interrupts` the markers whose text ends an unclosed block.
    """

    def __init__(
        self, thinking: Literal["off", "open", "may_open"], tags: tuple[str, str], interrupts: Iterable[str] = ()
    ) -> None:
        self._open_tag, self._close_tag = tags
        self._ends = (self._close_tag, *interrupts)
        self._state: Literal["before", "inside", "gap", "after"] = (
            "after" if thinking == "off" else "inside" if thinking == "open" else "before"
        )
        self._held = ""
        self._has_thought = False  # line breaks are content from then on, unless they are the last

    @property
    def inside(self) -> bool:
        """Whether the reply is inside the block."""
        return self._state == "inside"

    @property
    def silent(self) -> bool:
        """Whether what comes now is no part of the answer: inside, or line breaks before it."""
        return self._state in ("inside", "gap")

    def feed(self, text: str, breaks_off: bool = False) -> list[Thought | Text]:
        """The events that are certain so far. With `breaks_off` the text is a token that ends an unclosed block."""
        if breaks_off and self._state == "inside":
            events = self.close()
            self._state, self._held = "gap", text
            self._skip_gap(events)
            return events
        if self._state == "after":
            return [Text(text)] if text else []
        self._held += text
        out: list[Thought | Text] = []
        if self._state == "before":
            self._read_opening(out)
        if self._state == "inside":
            self._read_thoughts(out)
        if self._state == "gap":
            self._skip_gap(out)
        return out

    def close(self) -> list[Thought | Text]:
        """The reply is over: the events of the text that was held back."""
        held, self._held = self._held, ""
        if self._state == "inside":
            thought = self._trimmed(held.rstrip("\n"))
            return [Thought(thought)] if thought else []
        return [Text(held)] if held and self._state == "before" else []

    def _read_opening(self, out: list[Thought | Text]) -> None:
        head = self._held.lstrip()
        if head.startswith(self._open_tag):
            self._held = head.removeprefix(self._open_tag)
            self._state = "inside"
        elif not self._open_tag.startswith(head):
            out.append(Text(self._held))
            self._held, self._state = "", "after"

    def _read_thoughts(self, out: list[Thought | Text]) -> None:
        found = [(at, end) for end in self._ends if (at := self._held.find(end)) >= 0]
        if found:
            at, end = min(found)
            thought, rest = self._held[:at].rstrip("\n"), self._held[at:]
            self._held = rest.removeprefix(self._close_tag) if end == self._close_tag else rest
            self._state = "gap"
        else:
            thoughts = self._held[: len(self._held) - held_length(self._held, self._ends)]
            thought = thoughts.rstrip("\n")  # the last line breaks belong to the closing tag
            self._held = self._held[len(thought) :]
        thought = self._trimmed(thought)
        if thought:
            self._has_thought = True
            out.append(Thought(thought))

    def _trimmed(self, thought: str) -> str:
        return thought if self._has_thought else thought.lstrip("\n")

    def _skip_gap(self, out: list[Thought | Text]) -> None:
        answer = self._held.lstrip("\n")
        if answer:
            out.append(Text(answer))
            self._held, self._state = "", "after"
        else:
            self._held = ""
