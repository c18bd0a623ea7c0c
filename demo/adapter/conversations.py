"""Conversations to train on: one list of tools, and several independent conversations about it."""

# ruff: noqa: E501
import json
import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from demo.adapter.chat import read_chat
from demo.adapter.invented import InventedSketch, are_near, invent, near_miss
from demo.adapter.knowledge import draw_question
from demo.adapter.near import ANYWAY, ask_beside, ask_sum, is_named
from demo.adapter.quantities import OTHERS, QuantitySketch, another_quantity, draw_quantity, shares_words
from demo.adapter.requests import OfferedTool, Request, fill, in_context, offer, request, request_in_parts
from demo.adapter.sketches import SEGMENT, Sketch, Slot, Wording
from demo.adapter.values import Draws, Value, draw_value, vague_value

Message = dict[str, Any]
REFUSALS = ("None of my tools can do that.",) * 6 + ("I'm sorry, I have no tool for that.",)
COUNTS = (1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 8)  # of tools in a lesson
CHAT_SHARE = 0.04  # of lessons
OTHER_QUANTITY_SHARE = 0.5  # of what no tool fits, where one of a quantity is offered
ALL_MISSING_SHARE = 0.45  # of the requests that lack a value
DOUBLED = re.compile(r"\b(?:the|a|an|my) (a|an|some|somebody|one|another|my)\b")
TAILS = ("", "", "", "", " right now", " for me", " today", " quickly")
DONE = ("Done.", "That's done.", "All set.", "Okay, done.")
JOINED = (" and ", " and ", ". Also ", ", and then ", "; ", ". Then ")
SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"), ("Hi there", "Hi! What can I do for you?"),
    ("Thank you!", "You're welcome."), ("thanks, that's all", "You're welcome. Have a nice day."),
    ("Good morning", "Good morning! How can I help?"), ("Who are you?", "I'm an assistant that can call tools for you."),
    ("How are you?", "I'm fine, thank you. How can I help you?"), ("ok great", "Glad to hear that."),
    ("Why is the sky blue?", "Air scatters blue light more than red light, so the sky looks blue."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Tell me a joke.", "Why did the bicycle fall over? It was two-tired."),
    ("Write a haiku about rain.", "Rain taps on the roof,\na slow and patient drummer;\nthe garden listens."),
    ("What's two plus two?", "Two plus two is four."), ("Bye", "Goodbye!"),
    ("What does HTTP stand for?", "HTTP stands for Hypertext Transfer Protocol."),
    ("Do you like music?", "I don't hear music, but I'm happy to talk about it."),
    ("Give me a synonym for happy.", "A synonym for happy is glad."),
    ("How many days has a week?", "A week has seven days."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lesson:
    """A list of tools, and conversations behind it, none of which sees another."""

    tools: tuple[dict[str, Any], ...]
    conversations: tuple[tuple[Message, ...], ...]
    system: str = ""


@dataclass(frozen=True, slots=True)
class Mix:
    """Kinds of conversations, by weight, and how lessons are drawn. `held` ones have what is never trained on."""

    one_call: float = 0.43
    parallel: float = 0.14
    none_fits: float = 0.2
    missing: float = 0.1
    small_talk: float = 0.03
    several_turns: float = 0.05
    invented: float = 0.3
    quantities: float = 0.17
    grouped: float = 0.08
    in_parts: float = 0.3  # of the requests that mean one call
    held: bool = False


MIX = Mix()


class Teacher:
    """Draws lessons over some sketches, and over tools that it invents. The same seed gives the same lessons.

    `words` are those of which names are made up, as in running text: capitalized ones and others.
    """

    def __init__(
        self,
        sketches: Sequence[Sketch],
        seed: int,
        mix: Mix = MIX,
        counts: Sequence[int] = COUNTS,
        words: Sequence[str] = (),
    ) -> None:
        self.rng = Draws(seed)
        self.rng.names = [one for one in words if one[0].isupper()]
        self.rng.words = [one for one in words if one[0].islower()]
        self.mix = mix
        self._counts = counts
        self._sketches = tuple(sketches)
        self._grouped = [one for one in sketches if any(slot.kind.startswith("list ") for slot in one.slots)]
        self._kinds = {
            self._one_call: mix.one_call,
            self._parallel: mix.parallel,
            self._none_fits: mix.none_fits,
            self._missing: mix.missing,
            self._small_talk: mix.small_talk,
            self._several_turns: mix.several_turns,
        }

    def lesson(self, num_conversations: int | None = None, more: int = 5) -> Lesson:
        """One lesson, of as many tools as one of `counts`; now and then of none, with chat.

        There are `more` conversations than tools, where their number is not given.
        """
        rng = self.rng
        if read_chat() and rng.random() < CHAT_SHARE:
            chosen = rng.sample(read_chat(), min(num_conversations or 8, len(read_chat())))
            return Lesson((), tuple((user(question), assistant(reply)) for question, reply in chosen))
        count = rng.choice(self._counts)
        if num_conversations is None:
            num_conversations = more + count
        tools = self._offered(count)
        system = rng.choice(
            ("", "", "You are a helpful assistant.", "You are an assistant that helps with everyday tasks.")
        )
        conversations = tuple(self._conversation(tools) for _ in range(num_conversations))
        return Lesson(tuple(dict(tool.definition) for tool in tools), conversations, system)

    def _offered(self, count: int) -> list[OfferedTool]:
        """Tools with different names; half of the lists keep to one domain, whose tools are near each other."""
        rng = self.rng
        pool = [self._sketch() for _ in range(3 * count)]
        if count > 1 and rng.random() < 0.5:
            domain = pool[0].domain
            near = [one for one in self._sketches if one.domain == domain]
            pool = rng.sample(near, min(count, len(near))) + pool
        if isinstance(pool[0], QuantitySketch) and rng.random() < 0.5:
            more = another_quantity(rng, pool[0], ())
            pool[1:1] = [more] if more else []
        tools: dict[str, OfferedTool] = {}
        keys = set()
        for sketch in pool:
            if sketch.key not in keys and len(tools) < count:
                keys.add(sketch.key)
                tool = offer(rng, sketch)
                tools.setdefault(tool.name, tool)
        return rng.sample(list(tools.values()), len(tools))

    def _sketch(self) -> Sketch:
        rng, mix = self.rng, self.mix
        chance = rng.random()
        if chance < mix.quantities:
            return draw_quantity(rng, mix.held)
        if chance < mix.quantities + mix.invented:
            return invent(rng, mix.held)
        return rng.choice(self._grouped if self._grouped and rng.random() < mix.grouped else self._sketches)

    def _conversation(self, tools: Sequence[OfferedTool]) -> tuple[Message, ...]:
        (kind,) = self.rng.choices(list(self._kinds), list(self._kinds.values()))
        return kind(tools)

    def _one_call(self, tools: Sequence[OfferedTool]) -> tuple[Message, ...]:
        ask = request_in_parts if self.rng.random() < self.mix.in_parts else request
        asked = ask(self.rng, self.rng.choice(tools))
        messages = [user(asked.text), calls([asked])]
        if self.rng.random() < 0.12:
            messages += self._answer(asked)
        return tuple(messages)

    def _parallel(self, tools: Sequence[OfferedTool]) -> tuple[Message, ...]:
        rng = self.rng
        count = rng.choice((2, 2, 2, 3, 3, 4) if len(tools) > 4 else (2, 2, 2, 3))
        same = rng.random() < 0.6
        chosen = [rng.choice(tools)] * count if same else [rng.choice(tools) for _ in range(count)]
        if same and rng.random() < 0.75:
            varied = (_pairs if rng.random() < 0.5 else _varied)(rng, chosen[0], count)
            if varied:
                return (user(varied[0]), calls(varied[1]))
        asked = [request(rng, tool) for tool in chosen]
        if any(one.call in [other.call for other in asked[:number]] for number, one in enumerate(asked)):
            return self._one_call(tools)  # two equal calls are not what anybody means
        text = asked[0].text
        for one in asked[1:]:
            glue = rng.choice(JOINED)
            follow = one.text if glue[0] == "." or one.text.startswith("I") else one.text[0].lower() + one.text[1:]
            text = f"{text.rstrip('.!?')}{glue}{follow}"
        return (user(text), calls(asked))

    def _none_fits(self, tools: Sequence[OfferedTool]) -> tuple[Message, ...]:
        """A request that none of the tools answers, though most of them are near one."""
        refusal = REFUSALS[0] if self.mix.held else self.rng.choice(REFUSALS)  # what greedy decoding would say
        return (user(self._unfit(tools)), assistant(refusal))

    def _unfit(self, tools: Sequence[OfferedTool]) -> str:
        """Of another tool, half of them near; of a value or a sum; of knowledge."""
        rng, chance, held = self.rng, self.rng.random(), self.mix.held
        quantities = [tool.sketch for tool in tools if isinstance(tool.sketch, QuantitySketch)]
        if quantities and rng.random() < OTHER_QUANTITY_SHARE:
            other = another_quantity(rng, rng.choice(quantities), [tool.sketch for tool in tools])
            if other is not None:
                return request(rng, offer(rng, other)).text
        known = [tool for tool in tools if tool.sketch.key in OTHERS]
        if len(known) == 1 and not quantities and rng.random() < OTHER_QUANTITY_SHARE:
            return fill(rng, known[0], Wording(rng.choice(OTHERS[known[0].sketch.key])))[0]
        text = None
        if chance < 0.13:
            text = draw_question(rng) if not {tool.sketch.key for tool in tools} & ANYWAY else None
            text = None if text is not None and is_named(tools, text) else text
        elif chance < 0.27:
            text = ask_sum(rng, tools, held)
        elif chance < 0.48:
            text = ask_beside(rng, tools, held)
        if text is not None:
            return text if rng.random() < 0.7 else in_context(rng, text)
        sketches = [tool.sketch for tool in tools]
        invented = [one for one in sketches if isinstance(one, InventedSketch) and not isinstance(one, QuantitySketch)]
        taken = {one.key for one in sketches} | {name for one in sketches for name in one.names}
        domains = {one.domain for one in sketches}
        near = [one for one in self._sketches if one.domain in domains and self._is_unlike(one, sketches, taken)]
        if invented and (not near or rng.random() < 0.6) and rng.random() < 0.9:
            sketch: Sketch = near_miss(rng, rng.choice(invented), sketches, held)
        elif near and rng.random() < 0.65:
            sketch = rng.choice(near)
        else:
            sketch = next(one for one in iter(self._sketch, None) if self._is_unlike(one, sketches, taken))
        return request(rng, offer(rng, sketch)).text

    @staticmethod
    def _is_unlike(sketch: Sketch, others: Sequence[Sketch], taken: set[str]) -> bool:
        """Whether no other sketch answers its requests."""
        for one in others:
            if isinstance(one, QuantitySketch) and any(shares_words(one, name) for name in sketch.names):
                return False
        if isinstance(sketch, QuantitySketch):
            return not any(shares_words(sketch, name) for one in others for name in one.names)
        if isinstance(sketch, InventedSketch):
            invented = [one for one in others if isinstance(one, InventedSketch)]
            return not any(one.thing == sketch.thing and are_near(one.operation, sketch.operation) for one in invented)
        return not taken & set(sketch.names)

    def _missing(self, tools: Sequence[OfferedTool]) -> tuple[Message, ...]:
        """A request without one of its values; the assistant asks, and calls when it has the answer."""
        rng = self.rng
        tool = rng.choice(tools)
        required = [slot for slot in tool.sketch.slots if slot.required]
        slots = [slot for slot in required if slot.kind.split(" ")[0] not in ("bool", "enum")]
        orders = [one for one in tool.sketch.orders if tool.offers(one) and not one.fixed]
        if not slots or not orders:
            return self._one_call(tools)
        if len(slots) == len(required) and rng.random() < ALL_MISSING_SHARE:
            return self._all_missing(tool, slots) or self._one_call(tools)
        if tool.sketch.domain == "science":
            return self._one_call(tools)
        slot = rng.choice(slots)
        wording = _without(rng.choice(orders), slot.key, _words_of([slot]))
        if wording is None:
            return self._one_call(tools)
        text, arguments = fill(rng, tool, wording, given={slot.key: None})
        return self._asked(tool, text, arguments, [slot]) or self._one_call(tools)

    def _all_missing(self, tool: OfferedTool, slots: list[Slot]) -> tuple[Message, ...] | None:
        """A request with none of the values that the tool requires, or with letters in their places."""
        rng = self.rng
        wordings = [one for one in (*tool.sketch.orders, *tool.sketch.sentences) if tool.offers(one) and not one.fixed]
        wording = rng.choice(wordings)
        given = {slot.key: vague_value(rng, slot.kind, tool.names[slot.key]) for slot in slots}
        if all(given.values()) and rng.random() < 0.6:
            text, _ = fill(rng, tool, Wording(SEGMENT.sub("", wording.text)), given)
            text = DOUBLED.sub(r"\1", text)
        else:
            first = min(wording.places(), key=lambda key: wording.text.find(f"{{{key}}}"))
            cut = _without(wording, first, _words_of(slots))
            is_question = wording.text.endswith("?")
            if cut is None or (is_question and len(cut.text.split()) < 4):
                return None
            text = cut.text + rng.choice(TAILS) + ("?" if is_question else "")
        return self._asked(tool, text, {}, slots)

    def _asked(
        self, tool: OfferedTool, text: str, known: dict[str, Any], slots: list[Slot]
    ) -> tuple[Message, ...] | None:
        """The assistant asks for some values, gets them, and calls; None if it would lack another one."""
        rng = self.rng
        values = {tool.names[slot.key]: draw_value(rng, slot.kind, slot.descriptions[0]) for slot in slots}
        shown = [name.replace("_", " ") for name in values]
        question = f"What should the {_listed(shown, ' and the ')} be?"
        said = [one.said for one in values.values()]
        if len(said) > 1 and rng.random() < 0.5:
            said = [f"{name} {value}" for name, value in zip(shown, said, strict=True)]
        whole = {**known, **{name: value.value for name, value in values.items()}}
        if any(one.required and tool.names[one.key] not in whole for one in tool.sketch.slots):
            return None  # the words that were cut held another value
        order = [tool.names[one.key] for one in tool.sketch.slots if one.key in tool.names]
        asked = Request(text, tool, {key: whole[key] for key in order if key in whole})
        answer = _listed(said, " and ")
        return (user(text[0].upper() + text[1:]), assistant(question), user(answer), calls([asked]))

    def _small_talk(self, tools: Sequence[OfferedTool]) -> tuple[Message, ...]:
        question, answer = self.rng.choice(SMALL_TALK)
        return (user(question), assistant(answer))

    def _several_turns(self, tools: Sequence[OfferedTool]) -> tuple[Message, ...]:
        messages: list[Message] = []
        for _ in range(self.rng.choice((2, 2, 3) if len(tools) > 4 else (1, 2))):
            asked = request(self.rng, self.rng.choice(tools))
            messages += [user(asked.text), calls([asked]), *self._answer(asked)]
        return tuple(messages)

    def _answer(self, asked: Request) -> list[Message]:
        """The tool's result, and what the assistant makes of it."""
        rng = self.rng
        result = {key: draw_value(rng, kind).value for key, kind in asked.tool.sketch.results}
        if rng.random() < 0.06:
            result = {"error": rng.choice(("not found", "permission denied", "timeout", "service unavailable"))}
            return [tool_result(result), assistant(f"That did not work: {result['error']}.")]
        if set(result) <= {"status"}:
            return [tool_result(result), assistant(rng.choice(DONE))]
        said = [f"the {key.replace('_', ' ')} is {_shown(value)}" for key, value in result.items()]
        text = " and ".join(said)
        return [tool_result(result), assistant(f"{text[0].upper()}{text[1:]}.")]


def _words_of(slots: Sequence[Slot]) -> set[str]:
    """Words that name slots, or lead to their values."""
    return {word for slot in slots for name in slot.names for word in name.split("_")} | LEADING


def _listed(texts: Sequence[str], last: str) -> str:
    return last.join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _without(wording: Wording, key: str, also: Collection[str] = ()) -> Wording | None:
    """The wording cut before the words that lead to a slot, `also` among them; None if nothing sensible is left."""
    place = wording.text.find(f"{{{key}}}")
    if place < 0:
        return None
    head = wording.text[:place].rstrip()
    words = head.split(" ")
    while words and (words[-1].lower() in LEADS or words[-1].lower() in also):
        words.pop()
    head = " ".join(words)
    return Wording(head) if len(words) >= 2 and "[" not in head and '"' not in head else None


LEADING = {
    "that",
    "belongs",
    "called",
    "named",
    "located",
    "dated",
    "worth",
    "whose",
    "lasts",
    "number",
    "between",
    "name",
}
TOGETHER = re.compile(r"\} (and|against|versus|or|with) \{")  # two values which are one call's
LEADS = frozenset(
    [
        "a",
        "an",
        "the",
        "to",
        "at",
        "in",
        "for",
        "on",
        "of",
        "with",
        "and",
        "from",
        "is",
        "by",
        "about",
        "my",
        "into",
        "over",
        "saying",
        "that",
        "under",
    ]
)


def _varied(rng: random.Random, tool: OfferedTool, count: int) -> tuple[str, list[Request]] | None:
    """One request for several values of one parameter: "the weather in Paris, Rome and Oslo"."""
    wordings = [
        one
        for one in (*tool.sketch.orders, *tool.sketch.sentences)
        if tool.offers(one) and not one.fixed and not TOGETHER.search(one.text)
    ]
    slots = [
        slot for slot in tool.sketch.slots if slot.required and slot.kind.split(" ")[0] not in ("bool", "list", "enum")
    ]
    if not wordings or not slots:
        return None
    slot, wording = rng.choice(slots), rng.choice(wordings)
    values: dict[str, Value] = {}
    for _ in range(4 * count):
        value = draw_value(rng, slot.kind, slot.descriptions[0])
        if len(values) < count:
            values.setdefault(value.said, value)
    if len(values) < count or any(", " in said for said in values):
        return None
    said = list(values)
    text, arguments = fill(rng, tool, wording, given={slot.key: Value(None, "\0")})
    name = tool.names[slot.key]
    requests = [Request("", tool, {**arguments, name: value.value}) for value in values.values()]
    joined = ", ".join(said[:-1]) + rng.choice((" and ", " and ", ", and ")) + said[-1]
    text = text.replace("\0", joined)
    return text[0].upper() + text[1:], requests


def _pairs(rng: random.Random, tool: OfferedTool, count: int) -> tuple[str, list[Request]] | None:
    """One request whose second half is said for several groups of values: "send 5 to Anna and 7 to Tom"."""
    lists = {slot.key for slot in tool.sketch.slots if slot.kind.startswith("list ")}
    wordings = [
        Wording(SEGMENT.sub("", one.text))
        for one in (*tool.sketch.orders, *tool.sketch.sentences)
        if tool.offers(one)
        and not one.fixed
        and len(one.places()) > 1
        and not lists & one.places()
        and '"' not in one.text
    ]
    if not wordings:
        return None
    wording = rng.choice(wordings)
    end = "?" if wording.text.endswith("?") else ""
    text = wording.text.rstrip("?.")
    words = text.split(" ")
    first = next(number for number, word in enumerate(words) if "{" in word)
    if first and words[first - 1].lower() in LEADS and rng.random() < 0.5:
        first -= 1
    tail = Wording(" ".join(words[first:]))
    if tail.places() != wording.places() or len(words) - first > 9:
        return None
    made = [fill(rng, tool, tail) for _ in range(count)]
    if len({said for said, _ in made}) < count:
        return None
    glue = rng.choice((" and ", " and ", ", and ", "; "))
    said = [said for said, _ in made]
    head = "".join(f"{word} " for word in words[:first])
    whole = f"{head}{', '.join(said[:-1])}{glue}{said[-1]}{end}"
    return whole[0].upper() + whole[1:], [Request("", tool, arguments) for _, arguments in made]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """An answer in words."""
    return {"role": "assistant", "content": text}


def calls(asked: Sequence[Request]) -> Message:
    """An answer that calls tools."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": one.call} for one in asked],
    }


def tool_result(result: Any) -> Message:
    """A tool's result."""
    return {"role": "tool", "content": json.dumps(result)}
