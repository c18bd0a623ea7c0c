"""Ends of tagged values: where a value ends whose closing tag is missing, distorted, or also stands in its text.

A tag inside a value is either text of the value, as in a file about this very format, or the next tag of the call
behind a lost closing tag. The value is read on to see which: where the tags that begin there are closed again and the
value's own closing tag follows, they are its text; where they are not, and the tag opens a declared argument or tool,
the value ends before it. So a file survives whose own tags are whole, and a lost tag costs nothing.

The grammar admits no value for which there is a choice (`ended` in the formats' modules), so a constrained reply is
never held back.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeGuard

from server.dialects.parsing.tags import Kind, Lexer, Tag, next_tag
from server.dialects.parsing.text_buffer import ParserCoroutine, TextBuffer
from server.dialects.parsing.value_text import Outcome, ValueText, margin

PLAIN_NAME = re.compile(r"[!-;=?-~]+")


@dataclass(frozen=True, slots=True)
class TagFormat:
    """The tags of one format. `by_line`: they stand at the beginnings of lines, and a value between two line breaks.

    `outer` is the kind whose closing tag ends a whole call. `certain` matches the openings of arguments, at a line, of
    which the grammar admits no declared one in a value. `words` returns the words at a position and the tag behind
    them, where a format's keys are such words and may have lost their opening tag.
    """

    lexer: Lexer
    by_line: bool
    outer: Kind
    certain: re.Pattern[str]
    words: Callable[[TextBuffer, int], tuple[str, Tag] | None] | None = None


@dataclass(slots=True)
class ScanBudget:
    """How often the values of one call may still be read on, which bounds the time that a hostile reply takes."""

    num_left: int = 8

    def take(self) -> bool:
        """Whether one more time is left, and take it."""
        self.num_left -= 1
        return self.num_left >= 0


@dataclass(frozen=True, slots=True)
class ValueContext:
    """The place of a value: its own argument, those that the tool declares and requires, and those given so far.

    `opening` is its opening tag. `is_json`: it can only be JSON, so that no tag outside its strings is text.
    `arguments_of` returns the names of the arguments of a tool of the request, None if it has no such tool.
    """

    name: str
    opening: Tag
    declared: Collection[str]
    required: Collection[str]
    given: Collection[str]
    is_json: bool
    arguments_of: Callable[[str], Collection[str] | None]
    budget: ScanBudget


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A tag is text, markup without a meaning that is dropped, or the end of the value."""

    kind: Literal["text", "drop", "end"]
    tag: Tag


@dataclass(slots=True)
class _Nested:
    """Tags that are open behind a candidate. An `inline` one counts in its line only."""

    tag: Tag
    inline: bool = False


@dataclass(slots=True)
class ValueReader:
    """Reads one value: `read` emits its text, and takes its closing tag if that is what ends it."""

    text: ValueText
    format: TagFormat
    context: ValueContext
    _opened: Counter[str] = field(default_factory=Counter)  # tags in its text, by their word
    _scanned: int = 0  # up to here no undeclared tag closes again
    _ran_out: bool = False  # the last scan came to the end of the reply, not to a tag that closes something else
    _own_end: tuple[int, Tag | None] = (0, None)  # the tags before this position have this end of the value behind them

    @property
    def buffer(self) -> TextBuffer:
        """The text of the reply."""
        return self.text.buffer

    def read(self) -> Generator[None, None, Outcome]:
        """Emit the value; return how it ended. An end that is not its closing tag is left in the buffer."""
        yield from self.text.skip_first_break()
        position = self.buffer.position
        while True:
            found = self.format.lexer.search(self.buffer, position)
            known = found.start if isinstance(found, Tag) else found
            self.text.write_before(known)
            if isinstance(found, Tag):
                verdict = yield from self._judge(found)
                position = verdict.tag.end
                if verdict.kind == "end":
                    return self.text.end(verdict.tag)
                if verdict.kind == "drop":
                    self.text.drop(verdict.tag)
                else:
                    self._opened[found.word] += -1 if found.closes else 1
            elif self.buffer.ended:
                self.text.write(self.buffer.rest)
                return "truncated"
            else:
                position = known
                yield

    # --- tags ---------------------------------------------------------------------------------------------------

    def _judge(self, tag: Tag) -> Generator[None, None, _Verdict]:
        if self.text.in_string(tag):
            return _Verdict("text", tag)
        if tag.closes:
            return (yield from self._judge_closing(tag))
        if tag.kind == "argument":
            return (yield from self._judge_argument(tag))
        return (yield from self._judge_call(tag))

    def _judge_closing(self, tag: Tag) -> Generator[None, None, _Verdict]:
        ends = yield from self._ends(tag)
        if ends and tag.exact:
            return _Verdict("end", tag)
        # A distorted tag, or the end of a call with other text behind it, ends the value if nothing else does.
        is_outer = tag.kind == self.format.outer and self.text.at_line(tag) and self._opened[tag.word] <= 0
        if not (ends or is_outer):
            return _Verdict("text", tag)
        end = yield from self._scan(tag, only_declared=True)
        return _Verdict("end", end or tag)

    def _ends(self, tag: Tag) -> Generator[None, None, bool]:
        """Whether this closing tag ends the value, judging by what follows it."""
        after = yield from next_tag(self.format.lexer, self.buffer, tag.end)
        is_own = self._own_closing(tag)
        if is_own and after is None:
            return (yield from self._is_key(tag.end, is_certain=False))
        has_keys = self.format.words is not None
        if is_own and has_keys and after is not None and after.opens("argument") and after.name is None:
            return (yield from self._is_key(after.end, is_certain=after.exact))
        if after is None:
            return False
        if tag.kind == "function":
            if after.opens("argument"):
                return after.exact and self.text.at_line(after) and self._is_new(after.name)
            return after.kind in ("call", "end") or (after.opens("function") and after.exact)
        if tag.kind == "call":
            is_next = after.opens("call", "function") and self._is_next(after)
            return after.kind == "end" or (is_next and self.text.at_line(tag))
        is_text = self._opened[tag.word] > 0  # it closes a tag of the value's own text
        if not is_own:
            is_odd_next = after.opens("argument") and not self.format.by_line
            is_next = self._is_next(after) and not after.loose
            return not is_text and after.kind != "end" and (is_next or is_odd_next)
        is_certain = self.text.inline or self.text.has_own_line(tag)  # a constrained reply has it in no value
        behind = tag.end
        while self._own_closing(after) or (is_certain and after.kind == "argument" and (after.closes or after.bare)):
            # In a line the value's own closing tag does not follow text at once: the grammar has a line break there.
            is_doubled = is_certain or not self.format.by_line or after.start == behind
            if is_text or not is_doubled:
                return False
            behind = after.end
            after = yield from next_tag(self.format.lexer, self.buffer, behind)
            if after is None:
                return False
        if after.opens("argument") and after.loose:
            return self._is_new(after.name) and not is_text and is_certain
        is_exact = after.exact or (not self.format.by_line and not after.loose)
        return self._is_next(after) and (is_certain or is_exact)

    def _is_key(self, position: int, is_certain: bool) -> Generator[None, None, bool]:
        """Whether the key of a declared argument stands there without its own opening tag.

        Where that is not certain, only if the argument is required and comes nowhere else.
        """
        if self.format.words is None:
            return False
        while (found := self.format.words(self.buffer, position)) is None:
            yield
        name, behind = found
        is_key = behind.closes if behind.kind == "key" else behind.opens("argument")
        if is_certain or not is_key:
            return is_key and self._is_new(name)
        return (yield from self._is_missing(replace(behind, name=name), behind))

    def _is_new(self, name: str | None) -> bool:
        return name in self.context.declared and name not in self.context.given

    def _judge_argument(self, tag: Tag) -> Generator[None, None, _Verdict]:
        context = self.context
        is_declared, is_new = tag.name in context.declared, self._is_new(tag.name)
        if tag.bare and self.text.begun and context.budget.num_left > 0:
            closing = replace(tag, closes=True, exact=False)  # that lost its slash
            if (yield from self._ends(closing)):
                return _Verdict("end", (yield from self._scan(tag, only_declared=True)) or closing)
        if context.is_json:
            return _Verdict("end" if is_declared else "text", tag)
        if not (self.text.at_line(tag) or (is_new and (yield from self._opens_block(tag)))):
            ends = is_new and tag.complete and (yield from self._ends_inline(tag))
            return _Verdict("end" if ends else "text", tag)
        # Once more the value's own tag: in GLM's format its value's opening tag, which names nothing.
        is_nameless = tag.name is None and not self.format.by_line
        is_own = not self.text.begun and (tag.name == context.name if is_declared else is_nameless)
        is_weak = not (is_declared or is_own)
        if is_weak and not (tag.exact and PLAIN_NAME.fullmatch(tag.name or "") and tag.start >= self._scanned):
            return _Verdict("text", tag)
        is_regular = tag.name is None or self.format.certain.match(self.text.between(tag.start, tag.end)) is not None
        is_certain = tag.complete and not tag.loose and is_regular
        is_certain = is_certain or (is_new and tag.is_written_like(context.opening))
        if not (is_weak or is_certain) or (self.text.is_indented(tag) and (yield from self._is_blank(tag))):
            return _Verdict("end" if (yield from self._is_missing(tag, tag)) else "text", tag)
        if is_own and tag.start < self._scanned:
            return _Verdict("drop", tag)
        end = yield from self._scan(tag, strict=is_weak)
        if end is not None and is_own and self._is_doubled(tag, end):
            return _Verdict("drop", tag)
        if end is not None:
            return _Verdict("end", tag if (yield from self._is_missing(tag, end)) else end)
        return _Verdict("drop", tag) if is_own else self._unclosed(tag, is_new, is_declared)

    def _judge_call(self, tag: Tag) -> Generator[None, None, _Verdict]:
        function = yield from self._function_of(tag)
        if function is None:
            return _Verdict("text", tag)
        declared = self.context.arguments_of(function.name or "")
        is_tool = declared is not None
        if self.context.is_json:
            return _Verdict("end" if is_tool else "text", tag)
        if (not is_tool and tag.start < self._scanned) or self.context.budget.num_left <= 0:
            return _Verdict("text", tag)
        argument = yield from next_tag(self.format.lexer, self.buffer, function.end)
        is_certain = argument is not None and argument.exact and self.text.at_line(argument)
        is_declared = is_certain and argument is not None and argument.name in (declared or ())
        end = yield from self._scan(tag, strict=not is_declared)
        if end is not None:
            return _Verdict("end", end)
        ends = is_tool and self.text.at_line(tag)
        if ends and not is_declared:  # a call without arguments, or with others
            ends = argument is not None and argument.closes
            ends = ends and (yield from self._scan(tag, strict=True, only_declared=True)) is None
        return self._unclosed(tag, False, ends)

    def _unclosed(self, tag: Tag, is_new: bool, ends: bool) -> _Verdict:
        """Judge a tag behind which the value is not closed: it `ends` the value unless the reply was cut off there.

        A cut file about this format must not be taken for a call, and what it shows not for another one.
        """
        if not self._ran_out or is_new:
            return _Verdict("end" if ends else "text", tag)
        return _Verdict("text", replace(tag, end=self._scanned) if ends else tag)

    def _function_of(self, tag: Tag) -> Generator[None, None, Tag | None]:
        """Return the tag that names the tool of a call that begins at this tag; None if it is no whole beginning."""
        if tag.kind == "call":
            inner = yield from next_tag(self.format.lexer, self.buffer, tag.end)
            if inner is None or not inner.opens("function"):
                return None
            tag = inner
        if tag.kind != "function" or tag.name is None or not tag.exact:
            return None
        after = yield from next_tag(self.format.lexer, self.buffer, tag.end)
        is_whole = after is not None and (after.opens("argument", "key") or (after.kind == "function" and after.closes))
        return tag if is_whole else None

    def _opens_block(self, tag: Tag) -> Generator[None, None, bool]:
        """Whether a line ends with this tag, and text stands right before it, as behind a lost closing tag."""
        if not (tag.exact and self.text.is_attached(tag)):
            return False
        while not (self.buffer.ended or self.buffer.text[self.buffer.index(tag.end) :].strip(" \t\r")):
            yield
        return self.text.ends_line(tag)

    def _ends_inline(self, tag: Tag) -> Generator[None, None, bool]:
        """Whether the value ends at a declared argument that opens behind text of the same line.

        In running text such a tag is mentioned: so only where its value is closed in the same way, behind text, or
        where it is required and comes nowhere else.
        """
        end = yield from self._end_behind(tag)
        if end is None:
            return tag.name in self.context.required
        before = self.text.between(tag.end, end.start)
        if "\n" not in margin(before):
            return True
        return (yield from self._is_missing(tag, end))

    def _end_behind(self, tag: Tag) -> Generator[None, None, Tag | None]:
        """Return the next closing tag of an argument that would end the value; None if there is none."""
        position = tag.end
        while position > self._own_end[0]:
            found = self.format.lexer.search(self.buffer, position)
            if isinstance(found, Tag):
                position = found.end
                if found.closes and found.exact and (yield from self._ends(found)):
                    self._own_end = found.start, found if found.kind == "argument" else None
                    break
            elif self.buffer.ended:
                self._own_end = found, None
            else:
                position = found
                yield
        return self._own_end[1]

    def _is_blank(self, tag: Tag) -> Generator[None, None, bool]:
        """Whether a closing tag follows this opening one at once."""
        after = yield from next_tag(self.format.lexer, self.buffer, tag.end)
        return after is not None and after.closes

    def _is_missing(self, tag: Tag, end: Tag) -> Generator[None, None, bool]:
        """Whether an argument is required, was not given, and does not come behind `end` in the same call either."""
        if tag.name not in self.context.required or not self._is_new(tag.name) or not self.context.budget.take():
            return False
        position = end.end
        while True:
            found = self.format.lexer.search(self.buffer, position)
            if isinstance(found, Tag):
                position = found.end
                if found.opens("argument") and found.name == tag.name:
                    return False
                if found.kind in ("function", "call") and (yield from self._leaves(found)):
                    return True
            elif self.buffer.ended:
                return True
            else:
                position = found
                yield

    def _leaves(self, tag: Tag) -> Generator[None, None, bool]:
        """Whether a call ends at this tag, or another one begins."""
        if tag.closes:
            return tag.exact and (yield from self._ends(tag))
        return (yield from self._function_of(tag)) is not None

    # --- looking ahead ------------------------------------------------------------------------------------------

    def _scan(self, first: Tag, strict: bool = False, only_declared: bool = False) -> Generator[None, None, Tag | None]:
        """Return the closing tag of the value if all tags from `first` on are closed again before it, else None.

        `strict` counts only those closing tags that no text of a value in a constrained reply can contain, and
        `only_declared` only those arguments.
        """
        open_tags: list[_Nested] = []
        found: Tag | int = first
        position = first.start
        last = first
        self._ran_out = False
        if not self.context.budget.take():
            return None
        while True:
            if isinstance(found, Tag):
                position = found.end
                while open_tags and open_tags[-1].inline and self.text.has_break(open_tags[-1].tag.end, found.start):
                    open_tags.pop()
                if found.closes and found is not first:
                    ended = yield from self._close_nested(found, open_tags, strict)
                    if ended != "open":
                        self._scanned = max(self._scanned, position)
                        return found if ended == "closed" else None
                elif not found.closes:
                    yield from self._open_nested(found, open_tags, found is first, only_declared)
                last = found
            elif self.buffer.ended:
                self._scanned = found
                self._ran_out = bool(open_tags or self.buffer.text[self.buffer.index(last.end) :].strip())
                return None
            else:
                position = found
                yield
            found = self.format.lexer.search(self.buffer, position)

    def _open_nested(self, tag: Tag, open_tags: list[_Nested], is_first: bool, only_declared: bool) -> ParserCoroutine:
        if tag.kind in ("function", "call"):
            if (yield from self._function_of(tag)) is not None:
                open_tags.append(_Nested(tag))
        elif tag.kind == "argument" and (tag.name in self.context.declared or not only_declared):
            follows = bool(open_tags) and not self.text.between(open_tags[-1].tag.end, tag.start).strip()
            open_tags.append(_Nested(tag, inline=not (is_first or follows or self.text.at_line(tag))))

    def _close_nested(
        self, tag: Tag, open_tags: list[_Nested], strict: bool
    ) -> Generator[None, None, Literal["open", "closed", "broken"]]:
        """Close a nested tag. "closed" if this is the value's own closing tag, "broken" if it closes something else."""
        top = open_tags[-1] if open_tags else None
        if tag.kind in ("argument", "key"):
            if top is not None and top.tag.kind == "argument":
                if (yield from self._counts(tag, top.tag, strict)):
                    open_tags.pop()
                return "open"
            if not self._own_closing(tag) or not (yield from self._ends(tag)):
                return "open"
            return "closed" if top is None else "broken"
        if top is not None and top.tag.kind == tag.kind:
            open_tags.pop()
            return "open"
        return "broken" if tag.exact and (yield from self._ends(tag)) else "open"

    def _counts(self, tag: Tag, opening: Tag, strict: bool) -> Generator[None, None, bool]:
        """Whether a closing tag in a value closes anything, and is not only mentioned."""
        if not self.format.by_line:
            after = (yield from next_tag(self.format.lexer, self.buffer, tag.end)) if strict else tag
            return after is not None and not after.loose
        at_line = self.text.at_line(tag)
        if (at_line and not strict) or not self.text.has_break(opening.end, tag.start):
            return True
        if (yield from next_tag(self.format.lexer, self.buffer, tag.end)) is not None:
            return at_line or not strict
        return self.text.has_own_line(tag) if strict else self.text.ends_line(tag)

    def _own_closing(self, tag: Tag | None) -> TypeGuard[Tag]:
        return tag is not None and tag.kind == "argument" and tag.closes and tag.exact

    def _is_next(self, tag: Tag) -> bool:
        """Whether this tag may come behind a value: any of a call, but an argument in XML's form only if declared."""
        if tag.opens("argument") and tag.name is not None:
            return tag.name in self.context.declared or (tag.complete and not tag.loose)
        if tag.opens("function"):
            return tag.name is not None and not tag.loose
        return tag.kind != "argument"

    def _is_doubled(self, tag: Tag, end: Tag) -> bool:
        """Whether the tags of this value are written twice: two closing tags follow each other, and no other is there.

        A file that is nothing but this one argument would be written so too.
        """
        inner, closing = self.text.between(tag.end, end.start), self.text.between(end.start, end.end)
        if not self.format.by_line:
            return inner.endswith(closing)
        return inner.count(closing) == 1 and inner.rstrip().endswith(closing)
