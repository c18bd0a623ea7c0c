"""ReAct: Qwen1.5, and any ChatML model whose own template knows no tools.

    Thought: I should look.
    Action: get_weather
    Action Input: {"city": "Paris"}
    Observation:

The model stops before `Observation:`, which the server writes. The labels `Thought:` and `Final Answer:` at the
beginning of a line are markup; what follows them is text. Several actions may follow each other. Accepted as well:
arguments in a fence, and without their last braces; and, flagged "repaired", a doubled `Action:` or `Action Input:`.

A custom tool's free text is `{"input": "..."}`; where a Lark grammar constrains it, the text is raw.
"""

from collections.abc import Generator
from functools import partial

from server.dialects.base import ConstraintSpec, Dialect, Tool
from server.dialects.grammar.json_grammar import quoted
from server.dialects.grammar.lark import MAX_CALLS, cached_by_spec, constraint, is_raw, json_calls
from server.dialects.parsing.json_arguments import JsonArguments
from server.dialects.parsing.text_buffer import (
    EventSink,
    IncrementalParser,
    Openers,
    ParserCoroutine,
    TextBuffer,
    read_line,
    read_text,
)
from server.dialects.schema.validate import ToolSet
from server.messages import Constraint

ACTION, INPUT, OBSERVATION = "Action:", "Action Input:", "Observation:"
LABELS = ("Thought:", "Final Answer:")
FENCES = ("```json\n", "```\n")
LINE_WORDS = (ACTION, OBSERVATION, *LABELS)
OPENERS = Openers(*(f"\n{word}" for word in LINE_WORDS))
INPUT_ENDS = Openers(f"\n{OBSERVATION}", f"\n{ACTION}", "\nThought:")


def _read_reply(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> ParserCoroutine:
    word = yield from buffer.expect(*LINE_WORDS)
    while True:
        buffer.record()
        if word.strip() == ACTION:
            buffer.take(len(word))
            yield from _read_call(buffer, sink, tool_set)
        elif word:
            buffer.take(len(word))
            label_kept = word.strip() == OBSERVATION and not sink.after_call
            if label_kept:
                sink.text(word)
            else:
                yield from _skip_label(buffer, sink, word)
        word = yield from read_text(buffer, sink, OPENERS)
        if not word:
            return


def _skip_label(buffer: TextBuffer, sink: EventSink, word: str) -> ParserCoroutine:
    """Drop a label and one space after it; the line break before it is kept."""
    if word.startswith("\n"):
        sink.hold_whitespace("\n")
    if (yield from buffer.expect(" ")):
        buffer.take(1)


def _read_call(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> ParserCoroutine:
    """Read a name and its input, or emit their beginning as text."""
    doubled = yield from _skip_doubled(buffer, ACTION)
    name = yield from read_line(buffer)
    arguments = JsonArguments(buffer, sink, tool_set, OBSERVATION, (f"\n{OBSERVATION}", f"\n{ACTION}"))
    arguments.tool = tool_set.find(name)
    if arguments.tool is not None:
        yield from buffer.skip_space()
        found = yield from buffer.expect(INPUT)
        buffer.take(len(found))
        if found:
            if not is_raw(arguments.tool):
                doubled = (yield from _skip_doubled(buffer, INPUT)) or doubled
            if doubled:
                arguments.flag("repaired")
            yield from _read_input(buffer, arguments, arguments.tool)
    if arguments.is_read or arguments.is_open:
        arguments.finish()
    else:
        sink.text(buffer.recorded())


def _skip_doubled(buffer: TextBuffer, label: str) -> Generator[None, None, bool]:
    """Take a label as often as it comes once more at once; return whether it did."""
    doubled = False
    while found := (yield from buffer.expect(label, f" {label}", f"\n{label}")):
        buffer.take(len(found))
        doubled = True
    return doubled


def _read_input(buffer: TextBuffer, arguments: JsonArguments, tool: Tool) -> ParserCoroutine:
    if is_raw(tool):
        if (yield from buffer.expect(" ")):
            buffer.take(1)
        yield from arguments.read_raw(INPUT_ENDS)
        return
    yield from buffer.skip_space()
    fence = yield from buffer.expect(*FENCES)
    buffer.take(len(fence))
    if (yield from arguments.read()) and fence:
        yield from buffer.skip_space()
        buffer.take(len((yield from buffer.expect("```"))))


def constrain(spec: ConstraintSpec) -> Constraint | None:
    """Return the grammar of a reply in this format."""
    more = f' ("\\n{ACTION} " call){{0,{MAX_CALLS - 1}}}' if spec.choice.parallel else ""
    rest = f'" " call{more} ("\\n{OBSERVATION}")?'
    rules = json_calls(spec, lambda tool: (quoted(f"{tool.name}\n{INPUT} "), ""))
    return constraint(spec, openers={ACTION: rest}, separator=None, rules=rules, line_start=True)


def recognise(template: str) -> bool:
    """Whether a chat template writes this format."""
    return INPUT in template and OBSERVATION in template


REACT = Dialect(
    name="react",
    markers=(),
    halts=(f"\n{OBSERVATION}",),
    parser=partial(IncrementalParser, _read_reply),
    constrain=cached_by_spec(constrain),
    recognise=recognise,
)
