"""Requests written by hand, with tools and ways of speaking that no lesson has, and the calls that they mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from demo.adapter.conversations import REFUSALS, Lesson, assistant, user

WHOLE, REAL, FLAG, TEXT = ({"type": name} for name in ("integer", "number", "boolean", "string"))
Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A request, the tools that are offered, and the calls that it means, none if no tool fits."""

    text: str
    tools: tuple[Mapping[str, Any], ...]
    calls: tuple[Call, ...]

    def lesson(self) -> Lesson:
        """The trial with its reply as a conversation."""
        made = [{"type": "function", "function": {"name": name, "arguments": args}} for name, args in self.calls]
        calls = {"role": "assistant", "content": "", "tool_calls": made}
        reply = calls if made else assistant(REFUSALS[0])
        return Lesson(tuple(dict(tool) for tool in self.tools), ((user(self.text), reply),))


def tool(name: str, description: str, required: str = "", **properties: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as a client sends it; `required` names parameters, separated by spaces, "" all of them."""
    names = required.split() or list(properties)
    parameters = {"type": "object", "properties": properties, "required": names}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def told(schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    """A schema with a description."""
    return {**schema, "description": description}


def one_of(*values: str) -> dict[str, Any]:
    """A schema of an enumeration."""
    return {"type": "string", "enum": list(values)}


FOUNTAIN = tool("run_fountain", "Turns the fountain in the courtyard on for a while.", minutes=told(WHOLE, "How long."))
SAIL = tool("trim_sail", "Adjust a sail.", sail=one_of("main", "jib", "spinnaker"), angle=told(REAL, "Degrees."))
PRINTER = tool(
    "queue_print", "Send a document to a printer.", "document",
    document=told(TEXT, "File name."), copies=told(WHOLE, "Number of copies, default 1."), duplex=FLAG,
)  # fmt: skip
OVEN = tool("preheat_oven", "Heat the oven.", temperature=told(WHOLE, "Degrees Celsius."))
STOPWATCH = tool("stopwatch", "Controls the stopwatch.", action=one_of("start", "stop", "reset"))
PIZZA = tool(
    "order_pizza", "Order a pizza from the restaurant around the corner.", "size",
    size=one_of("small", "medium", "large"), toppings={"type": "array", "items": TEXT, "description": "Toppings."},
)  # fmt: skip
ELEVATOR = tool("call_elevator", "Sends the elevator to a floor.", floor=told(WHOLE, "Floor number."))
TELESCOPE = tool("point_telescope", "Points the telescope at an object in the sky.", target=told(TEXT, "Name of it."))
DRONE = tool("fly_drone", "Fly to a height.", altitude_m=told(REAL, "Metres."), speed=told(REAL, "Metres a second."))
CHESS = tool("chess_move", "Moves a piece.", source=told(TEXT, "Square, e.g. e2."), target=told(TEXT, "Square."))
TIP = tool("split_tip", "Divides a tip.", total=told(REAL, "The tip."), people=told(WHOLE, "How many share it."))
WALLPAPER = tool("set_wallpaper", "Changes the picture behind the icons.", image=told(TEXT, "Image or theme."))
BEEHIVE = tool(
    "inspect_hive", "Log an inspection of a beehive.", hive=told(WHOLE, "Number of the hive."), queen_seen=FLAG
)
KARAOKE = tool("queue_karaoke", "Puts a song into the karaoke queue.", singer=TEXT, song=TEXT)
CUBE = tool("cuboid_surface", "Surface of a cuboid.", width=REAL, height=REAL, depth=REAL)
GENOME = tool("gc_content", "Share of G and C in a DNA sequence.", sequence=told(TEXT, "Letters A, C, G and T."))
MOORING = tool("book_berth", "Book a berth in the marina.", boat=TEXT, nights=WHOLE)
SUBTITLE = tool("shift_subtitles", "Moves subtitles in time.", file=TEXT, seconds=told(REAL, "May be negative."))

TRIALS: tuple[tuple[Any, ...], ...] = (
    ("Let the fountain run for 25 minutes.", (FOUNTAIN,), ("run_fountain", {"minutes": 25})),
    ("The guests love the fountain, 10 more minutes please", (FOUNTAIN, OVEN), ("run_fountain", {"minutes": 10})),
    ("Ease the jib to 35 degrees", (SAIL,), ("trim_sail", {"sail": "jib", "angle": 35})),
    ("Three copies of thesis.pdf on paper.", (PRINTER,), ("queue_print", {"document": "thesis.pdf", "copies": 3})),
    ("print agenda.docx", (STOPWATCH, PRINTER), ("queue_print", {"document": "agenda.docx"})),
    ("Get the oven up to 220, I'm baking bread.", (OVEN, FOUNTAIN, PIZZA), ("preheat_oven", {"temperature": 220})),
    ("Ready, set, go! Start the clock.", (STOPWATCH,), ("stopwatch", {"action": "start"})),
    ("Zero the stopwatch, will you?", (STOPWATCH, ELEVATOR), ("stopwatch", {"action": "reset"})),
    ("A large pizza with olives and ham, please.", (PIZZA,),
     ("order_pizza", {"size": "large", "toppings": ["olives", "ham"]})),
    ("We're hungry, a small pizza would do.", (OVEN, PIZZA), ("order_pizza", {"size": "small"})),
    ("Take me to the 14th floor.", (ELEVATOR,), ("call_elevator", {"floor": 14})),
    ("Can we have a look at Saturn tonight?", (TELESCOPE, ELEVATOR), ("point_telescope", {"target": "Saturn"})),
    ("Climb to 80.5 meters at 4 m/s.", (DRONE,), ("fly_drone", {"altitude_m": 80.5, "speed": 4})),
    ("Knight from g1 to f3", (CHESS,), ("chess_move", {"source": "g1", "target": "f3"})),
    ("There are 5 of us and the tip came to 42.50. What does each get?", (TIP, CUBE),
     ("split_tip", {"total": 42.5, "people": 5})),
    ("I'd like mountains on my desktop.", (WALLPAPER, PRINTER), ("set_wallpaper", {"image": "mountains"})),
    ("Just checked hive 7. The queen was there.", (BEEHIVE,), ("inspect_hive", {"hive": 7, "queen_seen": True})),
    ("Marta wants to sing Waterloo.", (KARAOKE, TELESCOPE), ("queue_karaoke", {"singer": "Marta", "song": "Waterloo"})),
    ("How much paint does a box of 2 by 3 by 4.5 need? I need its surface.", (CUBE,),
     ("cuboid_surface", {"width": 2, "height": 3, "depth": 4.5})),
    ("What's the GC share of ATTGCGCA?", (GENOME, TIP), ("gc_content", {"sequence": "ATTGCGCA"})),
    ("The Albatross stays for 3 nights and needs a place to moor.", (MOORING, SAIL),
     ("book_berth", {"boat": "Albatross", "nights": 3})),
    ("The subtitles in film.srt come two seconds too early, so delay them by 2.", (SUBTITLE,),
     ("shift_subtitles", {"file": "film.srt", "seconds": 2})),
    ("Elevator to floor 3 and then to floor 9.", (ELEVATOR, STOPWATCH),
     ("call_elevator", {"floor": 3}), ("call_elevator", {"floor": 9})),
    ("Preheat to 180 and stop the stopwatch.", (OVEN, STOPWATCH),
     ("preheat_oven", {"temperature": 180}), ("stopwatch", {"action": "stop"})),
    ("How do I get to the airport?", (OVEN, PIZZA)),
    ("Translate good night into Polish.", (ELEVATOR, FOUNTAIN, TIP)),
)  # fmt: skip


@cache
def read_trials() -> tuple[Trial, ...]:
    """All trials."""
    return tuple(Trial(text, tools, tuple(calls)) for text, tools, *calls in TRIALS)
