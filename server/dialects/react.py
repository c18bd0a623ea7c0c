"""ReAct: Qwen1.5, and any ChatML model whose own template knows no tools.

    Thought: I should look.
    Action: get_weather
    Action Input: {"city": "Paris"}
    Observation:

The model stops before `Observation:`, which is ours to write. The labels `Thought:` and `Final Answer:` at the
beginning of a line are markup; what follows them is text. Several actions may stand one after another. Taken as well:
arguments in a fence, and without their last braces.

A custom tool's free text is `{"input": "..."}`; where a Lark grammar constrains it, the text stands as it is.
"""

from functools import partial

from server.dialects.base import ConstraintSpec, Dialect, Tool
from server.dialects.grammar.json_grammar import quoted
from server.dialects.grammar.lark import MAX_CALLS, callable_tools, constraint, is_raw, json_calls, remembering
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
from server.dialects.schema.shortest import shortest_arguments
from server.dialects.schema.validate import ToolSet
from server.messages import Constraint

ACTION, INPUT, OBSERVATION = "Action:", "Action Input:", "Observation:"
LABELS = ("Thought:", "Final Answer:")
FENCES = ("```json\n", "```\n")
LINE_WORDS = (ACTION, OBSERVATION, *LABELS)
OPENERS = Openers(*(f"\n{word}" for word in LINE_WORDS))
INPUT_ENDS = Openers(f"\n{OBSERVATION}", f"\n{ACTION}", "\nThought:")


def _read_reply(tape: TextBuffer, out: EventSink, offered: ToolSet) -> ParserCoroutine:
    word = yield from tape.expect(*LINE_WORDS)
    while True:
        tape.record()
        if word.strip() == ACTION:
            tape.take(len(word))
            yield from _read_call(tape, out, offered)
        elif word:
            tape.take(len(word))
            label_kept = word.strip() == OBSERVATION and not out.after_call
            if label_kept:
                out.text(word)
            else:
                yield from _skip_label(tape, out, word)
        word = yield from read_text(tape, out, OPENERS)
        if not word:
            return


def _skip_label(tape: TextBuffer, out: EventSink, word: str) -> ParserCoroutine:
    """A label goes, and one space behind it; the line break before it stays."""
    if word.startswith("\n"):
        out.hold("\n")
    if (yield from tape.expect(" ")):
        tape.take(1)


def _read_call(tape: TextBuffer, out: EventSink, offered: ToolSet) -> ParserCoroutine:
    """Read a name and its input, or give their beginning back as text."""
    name = yield from read_line(tape)
    arguments = JsonArguments(tape, out, offered, OBSERVATION, (f"\n{OBSERVATION}", f"\n{ACTION}"))
    arguments.tool = offered.find(name)
    if arguments.tool is not None:
        yield from tape.skip_space()
        found = yield from tape.expect(INPUT)
        tape.take(len(found))
        if found:
            yield from _read_input(tape, arguments, arguments.tool)
    if arguments.is_read or arguments.is_open:
        arguments.finish()
    else:
        out.text(tape.recorded())


def _read_input(tape: TextBuffer, arguments: JsonArguments, tool: Tool) -> ParserCoroutine:
    if is_raw(tool):
        if (yield from tape.expect(" ")):
            tape.take(1)
        yield from arguments.read_raw(INPUT_ENDS)
        return
    yield from tape.skip_space()
    fence = yield from tape.expect(*FENCES)
    tape.take(len(fence))
    if (yield from arguments.read()) and fence:
        yield from tape.skip_space()
        tape.take(len((yield from tape.expect("```"))))


def constrain(wanted: ConstraintSpec) -> Constraint | None:
    """The grammar of a reply in this format."""
    more = f' ("\\n{ACTION} " call){{0,{MAX_CALLS - 1}}}' if wanted.choice.parallel else ""
    rest = f'" " call{more} ("\\n{OBSERVATION}")?'
    rules = json_calls(wanted, lambda tool: (quoted(f"{tool.name}\n{INPUT} "), ""))
    return constraint(wanted, openers={ACTION: rest}, separator=None, rules=rules, line_start=True)


def shortest(wanted: ConstraintSpec) -> str:
    """The text of a short valid call of the first tool that may be called."""
    tool = callable_tools(wanted)[0]
    return f"{ACTION} {tool.name}\n{INPUT} {shortest_arguments(tool)}"


def recognise(template: str) -> bool:
    """Whether a chat template writes this format."""
    return INPUT in template and OBSERVATION in template


REACT = Dialect(
    name="react",
    markers=(),
    halts=(f"\n{OBSERVATION}",),
    parser=partial(IncrementalParser, _read_reply),
    constrain=remembering(constrain),
    shortest=shortest,
    recognise=recognise,
)
