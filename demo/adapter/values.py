"""Values of parameters, and how people say them."""

# ruff: noqa: E501
import datetime
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
TENS = {20: "twenty", 30: "thirty", 40: "forty", 50: "fifty", 60: "sixty", 80: "eighty", 90: "ninety", 100: "a hundred"}
FIRST_DAY = datetime.date(2023, 1, 1)
NUM_DAYS = 1400
MONEY_WORDS = ("amount", "price", "cost", "bill", "money", "much", "value")
MADE_UP_SHARE = 0.45
# Kinds whose values may be any words: the most capitalized ones, or minus their exact number; fewest and most others.
NAMED = {
    "song": 3, "person": 1, "fullname": -2, "city": 2, "company": 2, "restaurant": 2, "petname": 1, "movie": 3,
    "projectname": 2, "teamname": 2, "place": 2, "event": 3, "meetingplace": 1,
}  # fmt: skip
WORDED = {
    "topic": (1, 3), "product": (1, 2), "grocery": (1, 2), "dish": (1, 2), "oddword": (1, 1), "message": (3, 8),
    "value": (1, 1), "servicename": (1, 1), "remark": (2, 4), "plant": (1, 1), "codeword": (1, 2), "meeting": (1, 2),
}  # fmt: skip
SYLLABLES = (
    "ba", "bel", "cor", "dan", "do", "el", "fen", "ga", "gor", "ha", "in", "jo", "kar", "ki", "la", "lem", "lo", "mar",
    "mi", "mo", "na", "nor", "o", "pel", "qui", "ra", "rin", "sa", "sto", "ta", "tor", "u", "va", "vel", "wen", "zu",
)  # fmt: skip
LETTERS = ("x", "n", "a certain value", "some value", "a given value", "k", "a")  # in place of a number
# What one says in place of a name.
VAGUE = {
    "city": ("a city", "my town", "a big city"), "cityregion": ("a city", "some town"), "country": ("a country", "some country"),
    "person": ("somebody", "a friend", "one of us"), "fullname": ("a person", "somebody", "an employee"),
    "company": ("a company", "some firm"), "ticker": ("a share", "some stock"), "product": ("a product", "some article"),
    "song": ("a song", "some music"), "movie": ("a film", "some movie"), "dish": ("a dish", "some food"),
    "grocery": ("some food", "a few things"), "plant": ("a plant", "some flower"), "date": ("some day", "a certain date"),
    "clock": ("some time", "a certain time"), "place": ("a place", "some building"), "restaurant": ("a restaurant", "some restaurant"),
    "teamname": ("a team", "some club"), "element": ("a substance", "some material"), "formula": ("a compound", "some molecule"),
    "planet": ("a planet", "some planet"), "gene": ("a gene", "some gene"), "filename": ("a file", "some file"),
    "imagefile": ("a picture", "some photo"), "currency": ("some currency", "another currency"), "language": ("another language", "some language"),
    "event": ("an event", "some battle"), "host": ("a server", "one of the servers"), "servicename": ("a service", "some service"),
    "medicine": ("a medicine", "some drug"), "list number": ("some numbers", "a list of values", "my data", "two groups"),
    "list person": ("some people", "a few friends"), "list city": ("some cities", "a few towns"), "list product": ("some products", "a few articles"),
}  # fmt: skip
CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


class Draws(random.Random):
    """Random numbers, and words of which names are made: capitalized ones and others."""

    names: Sequence[str] = ()
    words: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A value as it stands in the call, and as it stands in the request."""

    value: Any
    said: str


@cache
def lists() -> dict[str, tuple[str, ...]]:
    """Lists of values by name."""
    lines = (Path(__file__).parent / "values.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(": ", 1) for line in lines if line)
    return {name: tuple(values.split("|")) for name, values in pairs}


def draw_value(rng: random.Random, kind: str, description: str = "") -> Value:
    """A value of this kind; a description that asks for a format gets it."""
    what, *limits = kind.split(" ")
    if what in DRAWN:
        return DRAWN[what](rng, limits, description)
    assert what in lists(), f"no list of values {what!r}"
    value = _made_up(rng, what) or rng.choice(lists()[what])
    return Value(value, value)


def vague_value(rng: random.Random, kind: str, name: str) -> Value | None:
    """What stands in a request in place of a value of a parameter; None where nothing sounds right."""
    what, *limits = kind.split(" ")
    if what in ("int", "num"):
        return Value(None, name[0].lower() if rng.random() < 0.4 else rng.choice(LETTERS))
    texts = VAGUE.get(f"list {limits[0]}" if what == "list" else what)
    return Value(None, rng.choice(texts)) if texts else None


def _made_up(rng: random.Random, what: str) -> str:
    """A name or text that no list has, now and then, where the kind allows any: else only lists would be copied."""
    if not isinstance(rng, Draws) or not rng.names or rng.random() > MADE_UP_SHARE:
        return ""
    if what in NAMED:
        if rng.random() < 0.25:
            return "".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 3)))).capitalize()
        most = NAMED[what]
        return " ".join(rng.choice(rng.names) for _ in range(rng.choice((1, most)) if most > 0 else -most))
    if what in WORDED:
        return " ".join(rng.choice(rng.words) for _ in range(rng.randint(*WORDED[what])))
    return ""


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind, without its description."""
    what, *limits = kind.split(" ")
    match what:
        case "int":
            return {"type": "integer"}
        case "num":
            return {"type": "number"}
        case "bool":
            return {"type": "boolean"}
        case "enum":
            return {"type": "string", "enum": " ".join(limits).split(",")}
        case "list":
            return {"type": "array", "items": {"type": "number" if limits[0] == "number" else "string"}}
        case _:
            return {"type": "string"}


def _integer(rng: random.Random, limits: list[str], description: str) -> Value:
    low, high = map(int, limits)
    value = rng.randint(low, high)
    if value >= 200 and rng.random() < 0.6:
        value = max(low, round(value, -1 if value < 2000 else -2))
    said = str(value)
    if 2 <= value <= 12 and rng.random() < 0.35:
        said = WORDS[value]
    elif value in TENS and rng.random() < 0.25:
        said = TENS[value]
    elif value >= 1000 and rng.random() < 0.25 and not 1800 <= value <= 2100:
        said = f"{value:,}"
    return Value(value, said)


def _number(rng: random.Random, limits: list[str], description: str) -> Value:
    low, high, digits = float(limits[0]), float(limits[1]), int(limits[2])
    value: float = round(rng.uniform(low, high), digits)
    if rng.random() < 0.45 or value == int(value):
        value = int(value) or 1
    is_money = digits == 2 and any(word in description.lower() for word in MONEY_WORDS)
    if is_money and rng.random() < 0.25:
        value = (int(value) or 1) * rng.choice((100, 1000, 1000))
    said = f"{value:,}" if value >= 1000 and rng.random() < 0.6 else str(value)
    if is_money:
        said = rng.choice((said, said, f"${said}", f"{said} dollars", f"{said} euros"))
    return Value(value, said)


def _city(rng: random.Random, limits: list[str], description: str) -> Value:
    """A city, now and then with its state or country, which belongs to the value."""
    value = _made_up(rng, "city") if rng.random() < 0.5 else ""
    value = value or rng.choice(lists()["cityregion" if rng.random() < 0.3 else "city"])
    return Value(value, value)


def _boolean(rng: random.Random, limits: list[str], description: str) -> Value:
    return Value(True, "")


def _choice(rng: random.Random, limits: list[str], description: str) -> Value:
    value = rng.choice(" ".join(limits).split(","))
    return Value(value, value.replace("_", " "))


def _list(rng: random.Random, limits: list[str], description: str) -> Value:
    kind, low, high = limits[0], int(limits[1]), int(limits[2])
    items = [_item(rng, kind) for _ in range(rng.randint(low, high))]
    unique = list({one.said: one for one in items}.values())
    said = [one.said for one in unique]
    last = rng.choice((" and ", " and ", ", ", ", and "))
    text = said[0] if len(said) == 1 else ", ".join(said[:-1]) + last + said[-1]
    if kind == "number" and rng.random() < 0.3:
        text = f"[{', '.join(said)}]"
    return Value([one.value for one in unique], text)


def _item(rng: random.Random, kind: str) -> Value:
    if kind == "number":
        value: float = rng.randint(1, 99) if rng.random() < 0.8 else round(rng.uniform(0, 30), 1)
        return Value(value, str(value))
    if kind in lists():
        text = _made_up(rng, kind) or rng.choice(lists()[kind])
        return Value(text, text)
    return draw_value(rng, kind)


def _date(rng: random.Random, limits: list[str], description: str) -> Value:
    day = FIRST_DAY + datetime.timedelta(days=rng.randrange(NUM_DAYS))
    iso = day.isoformat()
    month = f"{day:%B} {day.day}"
    if "YYYY" in description:
        return Value(iso, rng.choice((iso, f"{month}, {day.year}", f"{day.day} {day:%B} {day.year}")))
    relative = rng.choice(("tomorrow", "today", "next Monday", "Friday", "Saturday", "next Tuesday", "Sunday"))
    text = rng.choice((iso, iso, month, f"{month}, {day.year}", relative))
    return Value(text, text)


def _clock(rng: random.Random, limits: list[str], description: str) -> Value:
    hour, minute = rng.randint(6, 22), rng.choice((0, 0, 15, 30, 45, rng.randint(1, 59)))
    exact = f"{hour:02}:{minute:02}"
    half = f"{(hour - 1) % 12 + 1}{f':{minute:02}' if minute else ''} {'am' if hour < 12 else 'pm'}"
    if "HH:MM" in description:
        return Value(exact, rng.choice((exact, exact, f"{hour}:{minute:02}", half)))
    text = rng.choice((exact, f"{hour}:{minute:02}", half))
    return Value(text, text)


def _code(rng: random.Random, limits: list[str], description: str) -> Value:
    letters = "".join(rng.choices(CODE_LETTERS, k=rng.randint(1, 3)))
    number = rng.randint(10, 99_999)
    text = rng.choice(
        (
            f"{letters}-{number}",
            f"{letters}{number}",
            str(number),
            f"#{number}",
            f"{letters}-{number}-{rng.randint(1, 99)}",
        )
    )
    return Value(text, text)


def _phone(rng: random.Random, limits: list[str], description: str) -> Value:
    text = rng.choice(
        (f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(1000, 99999)}", f"555-{rng.randint(1000, 9999)}")
    )
    return Value(text, text)


def _text_number(rng: random.Random, limits: list[str], description: str) -> Value:
    value = rng.randint(1, 900)
    return Value(value, str(value))


DRAWN: dict[str, Callable[[random.Random, list[str], str], Value]] = {
    "int": _integer,
    "num": _number,
    "city": _city,
    "bool": _boolean,
    "enum": _choice,
    "list": _list,
    "date": _date,
    "clock": _clock,
    "code": _code,
    "phone": _phone,
    "number": _text_number,
}
