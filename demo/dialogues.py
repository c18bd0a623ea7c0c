"""Generated conversations: tools, questions, calls, results and answers, with every assistant turn correct."""

from dataclasses import dataclass, replace
from pathlib import Path

from demo.everyday import Everyday
from demo.invent import ACTIONS, invent_family, invent_tool, noun_phrase
from demo.lists import split_words
from demo.requests import (
    Call,
    Request,
    ask_again,
    ask_incomplete,
    ask_once,
    ask_same_twice,
    ask_two_tools,
    missing_question,
    reply_with,
)  # fmt: skip
from demo.results import answer_from, draw_result, to_text
from demo.tools import Tool, join_words, spell
from demo.words import World

MANY_TOOLS = 8  # a longer list costs so many tokens that several questions share it
NONE_FITS = "Sorry, none of my tools can do that."
QUESTIONS = (
    *("one",) * 5, *("same_twice",) * 2, *("two_tools",) * 2, *("missing",) * 3, *("none_fits",) * 2, "chat",
)  # fmt: skip
NO_TOOLS = "Sorry, I have no tool for that."
SYSTEM_TEXTS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.", "Be brief.",
    "You help users with their tasks.", "You are an assistant with access to tools.", "Answer politely.",
    "You are a bot that calls functions.", "Use the tools when needed.", "You are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.", "You are a support agent of a shop.", "Keep your answers short and precise.",
    "You are a helpful assistant. Use the supplied tools to assist the user.", "Today is Monday.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. An assistant turn is the training target; a tool turn is one result."""

    role: str
    content: str = ""
    calls: tuple[Call, ...] = ()
    thought: str = ""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation whose assistant turns are all correct."""

    scenario: str
    tools: tuple[Tool, ...]
    turns: tuple[Turn, ...]
    system: str = ""
    thinking: bool = False
    num_learnt_from: int = 0  # earlier turns are history without loss
    keeps_thoughts: bool = False  # whether the history shows the thoughts of the current tool loop


@dataclass(frozen=True, slots=True)
class Stage:
    """Difficulty of the conversations."""

    tool_counts: tuple[int, ...] = (1, 1, 2, 2, 3, 4, 4, 5, 6, 8, 12, 20)
    everyday_share: float = 0.25
    weights: tuple[tuple[str, int], ...] = (
        ("one", 40), ("same_twice", 9), ("two_tools", 7), ("missing", 9), ("none_fits", 11), ("chat", 6),
        ("several", 18),
    )  # fmt: skip
    num_questions: tuple[int, ...] = (2, 3, 3, 4, 5)
    silent_share: float = 0.7  # share of calls that are not followed by an answer
    family_share: float = 0.0  # share of lists whose tools differ in their nouns only
    corner_share: float = 0.6  # share of conversations with a small vocabulary, so that tools share words


@dataclass(frozen=True, slots=True)
class Author:
    """Generator of conversations from the training or the held-out vocabulary."""

    world: World
    everyday: tuple[Everyday, ...]
    smalltalk: tuple[tuple[str, tuple[str, ...]], ...]
    stage: Stage = Stage()

    def write(self) -> Dialogue:
        """Return one conversation of a random scenario."""
        rng = self.world.rng
        corner = rng.getrandbits(32) if rng.random() < self.stage.corner_share else 0
        return replace(self, world=replace(self.world, corner=corner))._write()

    def _write(self) -> Dialogue:
        rng = self.world.rng
        names = [name for name, _ in self.stage.weights]
        scenario = rng.choices(names, [weight for _, weight in self.stage.weights])[0]
        return self.write_scenario(scenario)

    def write_scenario(self, scenario: str) -> Dialogue:
        """Return one conversation of this scenario."""
        rng = self.world.rng
        system = draw_system(self.world) if rng.random() < 0.45 else ""
        thinking = rng.random() < 0.45
        tools = self.draw_tools(rng.choice(self.stage.tool_counts))
        if rng.random() < {"chat": 0.4, "none_fits": 0.12}.get(scenario, 0.0):
            tools = ()
        if scenario == "several" or len(tools) > MANY_TOOLS:
            return self._several(tools, system, thinking)
        turns = upto_last_reply(self.exchange(scenario, tools))
        # Clients mostly send no thoughts back: half of the answers to results are trained with such a history.
        first_learnt = last_reply(turns) if rng.random() < 0.5 else 0
        return Dialogue(scenario, tools, turns, system, thinking, first_learnt, rng.random() < 0.5)

    def _several(self, tools: tuple[Tool, ...], system: str, thinking: bool) -> Dialogue:
        """Return a conversation with several questions about the same tools."""
        rng = self.world.rng
        turns: tuple[Turn, ...] = ()
        for _ in range(rng.choice(self.stage.num_questions) + len(tools) // 3):
            turns += self.exchange(rng.choice(QUESTIONS), tools)
            if rng.random() < 0.2:
                turns += self._again(turns, tools)
        turns = upto_last_reply(turns)
        # Mostly every reply is a target, with empty thoughts: many targets for each list of tools. Otherwise the
        # history is what the template shows, and only the last reply is a target.
        learn_all = rng.random() < 0.8
        first_learnt = 0 if learn_all else last_reply(turns)
        return Dialogue("several", tools, turns, system, thinking and not learn_all, first_learnt, rng.random() < 0.5)

    def _again(self, turns: tuple[Turn, ...], tools: tuple[Tool, ...]) -> tuple[Turn, ...]:
        """Return a follow-up that makes sense only after the last call; empty unless that was a single call."""
        start = max(index for index, turn in enumerate(turns) if turn.role == "user")
        calls = turns[start + 1].calls
        if len(calls) != 1:
            return ()
        tool = next(tool for tool in tools if tool.name == calls[0].name)
        request = ask_again(self.world, tool, calls[0])
        return self._carry_out(request, tools) if request else ()

    def draw_tools(self, count: int) -> tuple[Tool, ...]:
        """Return `count` tools with different names and meanings."""
        rng = self.world.rng
        tools: dict[str, Tool] = {}
        siblings = noun_phrase(self.world) if rng.random() < 0.25 else None
        family = invent_family(self.world) if rng.random() < self.stage.family_share else None
        while len(tools) < count:
            if self.everyday and rng.random() < self.stage.everyday_share:
                tool = rng.choice(self.everyday).draw(self.world)
            else:
                about = siblings if rng.random() < 0.5 else None
                tool = invent_tool(self.world, about, family if not about and rng.random() < 0.8 else None)
            if not any(other.meanings & tool.meanings for other in tools.values()):
                tools.setdefault(tool.name, tool)
        return tuple(tools.values())

    def exchange(self, scenario: str, tools: tuple[Tool, ...]) -> tuple[Turn, ...]:
        """Return one question and the turns that follow from it."""
        rng = self.world.rng
        if scenario == "chat":
            answer, questions = rng.choice(self.smalltalk)
            return (Turn("user", rng.choice(questions)), Turn("assistant", answer, thought="No tool is needed."))
        if scenario == "none_fits" or not tools:
            other = self.unrelated(tools)
            text = ask_once(self.world, other).text
            reply = Turn("assistant", NONE_FITS if tools else NO_TOOLS, thought="No tool fits.")
            return (Turn("user", text), reply)
        tool = rng.choice(tools)
        if scenario == "missing":
            incomplete = ask_incomplete(self.world, tool)
            if incomplete is not None:
                return self._with_question(tool, incomplete)
        if scenario == "same_twice":
            for candidate in rng.sample(tools, len(tools)):
                doubled = ask_same_twice(self.world, candidate)
                if doubled is not None:
                    return self._carry_out(doubled, tools)
        if scenario in ("two_tools", "same_twice") and len(tools) > 1:
            one, two = rng.sample(tools, 2)
            return self._carry_out(ask_two_tools(self.world, one, two), tools)
        return self._carry_out(ask_once(self.world, tool), tools)

    def unrelated(self, tools: tuple[Tool, ...]) -> Tool:
        """Return a tool that shares neither meaning nor words with these."""
        taken = {word for tool in tools for word in content_words(tool)}
        if len(tools) > MANY_TOOLS:  # together they use all verbs
            taken -= VERBS
        while True:
            (other,) = self.draw_tools(1)
            rival = any(tool.meanings & other.meanings for tool in tools)
            if not rival and not taken & content_words(other):
                return other

    def _with_question(self, tool: Tool, incomplete: Request) -> tuple[Turn, ...]:
        missing = join_words([f'"{name}"' for name in incomplete.missing], " and ")
        verb = "is" if len(incomplete.missing) == 1 else "are"
        thought = f'I need "{tool.name}", but {missing} {verb} missing.'
        question = Turn("assistant", missing_question(tool, incomplete.missing), thought=thought)
        turns = (Turn("user", incomplete.text), question)
        if self.world.rng.random() < 0.5:
            return turns
        return turns + self._carry_out(reply_with(self.world, tool, incomplete), (tool,))

    def _carry_out(self, request: Request, tools: tuple[Tool, ...]) -> tuple[Turn, ...]:
        """Return the request and its calls, sometimes with their results and the answer."""
        names = [call.name for call in request.calls]
        # In quotation marks a name has the same tokens as in the list of tools, without a leading space.
        thought = "I need " + join_words([f'"{name}"' for name in names], " and ") + "."
        turns = (Turn("user", request.text), Turn("assistant", calls=request.calls, thought=thought))
        roll = self.world.rng.random()
        if roll < self.stage.silent_share * 0.7:
            return turns
        used = {tool.name: tool for tool in tools}
        results = [draw_result(self.world, used[name]) for name in names]
        answer = answer_from(results, request.labels)
        replies = tuple(Turn("tool", to_text(result)) for result in results)
        if roll < self.stage.silent_share:  # the next question follows without an answer
            return (*turns, *replies)
        return (*turns, *replies, Turn("assistant", answer, thought="The result is here."))


def draw_system(world: World) -> str:
    """Return a system message."""
    rng = world.rng
    if rng.random() < 0.75:
        return rng.choice(SYSTEM_TEXTS)
    role = f"You are {world.person()}, an assistant for the {noun_phrase(world)} of {world.place()}."
    return f"{role} {rng.choice(SYSTEM_TEXTS)}" if rng.random() < 0.5 else role


def upto_last_reply(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Drop trailing tool results that no assistant turn follows."""
    return turns[: last_reply(turns) + 1]


def last_reply(turns: tuple[Turn, ...]) -> int:
    """Return the index of the last assistant turn."""
    return max(i for i, turn in enumerate(turns) if turn.role == "assistant")


def content_words(tool: Tool) -> set[str]:
    """Return the words that distinguish a tool from others."""
    text = " ".join((spell(tool.name), tool.description, *tool.asks)).lower()
    return {word.strip(".,?!:'\"") for word in text.split()} - COMMON_WORDS


VERBS = frozenset(word for phrases in ACTIONS.values() for phrase in phrases for word in phrase.split())
COMMON_WORDS = frozenset(
    split_words("""
    a an the of for in to on at is what what's show me get find i need tell look up check give want know can you could
    please would my let's use this returns return current tool call with and it do how from or by as be i'd like must
    {} api service lookup name number new information about {name} {id} {code} {city} {location}
    """)
)


def read_smalltalk() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return each answer of smalltalk.txt with the sentences that it answers."""
    text = (Path(__file__).parent / "smalltalk.txt").read_text(encoding="utf-8")
    blocks = [block.strip().split("\n") for block in text.split("\n\n")]
    return tuple((answer, tuple(questions.split("|"))) for answer, questions in blocks)
