"""Tool results, and the sentences that report them."""

import json
from collections.abc import Callable
from typing import Any

from demo import values
from demo.tools import Tool, join_words, spell
from demo.words import World


def draw_result(world: World, tool: Tool) -> Any:
    """Return a result: mostly an object, sometimes text, a number, a list or an error."""
    rng = world.rng
    roll = rng.random()
    if roll < 0.06:
        reasons = ("not found", "timeout", f"unknown {world.noun()}", "access denied", "not available")
        return {"error": rng.choice(reasons)}
    if roll < 0.16:
        return rng.choice((values.message, values.words, values.code, values.title))(world)
    if roll < 0.22:
        return world.whole_number() if rng.random() < 0.5 else world.decimal()
    if roll < 0.29:
        return [rng.choice((values.words, values.title))(world) for _ in range(rng.choice((1, 2, 2, 3)))]
    pairs = tool.results if rng.random() < 0.5 and tool.results else invented_results(world)
    kept = rng.sample(pairs, min(len(pairs), rng.choice((1, 2, 2, 3))))
    return {key: draw_result_value(world, flavour) for key, flavour in kept}


def invented_results(world: World) -> tuple[tuple[str, str], ...]:
    flavours = ("int", "number", "word", "name", "place", "code", "title", "date", "words", "bool", "list", "person")
    return tuple((world.parameter_noun(), world.rng.choice(flavours)) for _ in range(3))


def draw_result_value(world: World, flavour: str) -> Any:
    match flavour:
        case "int":
            return world.whole_number()
        case "number":
            return world.decimal()
        case "bool":
            return world.rng.random() < 0.5
        case "list":
            return [values.words(world) for _ in range(world.rng.choice((1, 2, 3)))]
        case _:
            draw: Callable[[World], str] | None = values.FLAVOURS.get(flavour)
            return draw(world) if draw else flavour


def to_text(result: Any) -> str:
    """Return the content of the tool message: JSON, or the text itself."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


def answer_from(results: list[Any], labels: tuple[str, ...]) -> str:
    """Return the sentences that report the results."""
    if len(results) == 1:
        return report(results[0])
    sentences = [f"{spell(label)}: {report(result)}" for label, result in zip(labels, results, strict=True)]
    return " ".join(sentences)


def report(result: Any) -> str:
    """Return the sentence that reports one result."""
    match result:
        case {"error": reason}:
            return f"That did not work: {reason}."
        case dict():
            text = join_words([f"the {spell(key)} is {plain(value)}" for key, value in result.items()], " and ")
            return f"{text[0].upper()}{text[1:]}."
        case list():
            return f"I found {plain(result)}."
        case str():
            return f"The result is: {result}."
        case _:
            return f"The result is {plain(result)}."


def plain(value: Any) -> str:
    """Return a value as it is written in a sentence."""
    if isinstance(value, list):
        return join_words([plain(item) for item in value], " and ")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
