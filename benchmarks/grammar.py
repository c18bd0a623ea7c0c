"""Cost of constraints: milliseconds to build and compile, cold and cached, and microseconds a mask.

    python -m benchmarks.grammar

Real Qwen vocabulary (151,936 ids). Masks are measured along one reply that the grammar admits, token by token; `forced`
is the share of its tokens that the grammar forces. The first mask in a state costs more: the lexer's states are built
then. Times are CPU times of the process, so that other load on the machine does not count.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass

from server.dialects.base import Choice, ConstraintSpec, Dialect, Tool
from server.dialects.registry import DIALECTS
from tests.dialects.fuzz import write_call
from tests.dialects.random_walks import MARKER_IDS, grammars, ids_of
from tests.dialects.tools import make_tools

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["c", "f"]}},
        "required": ["city", "unit"],
    },
)
ARGUMENTS = {"city": "San Francisco, California", "days": 3, "unit": "c"}
TEXT = "Let me look that up for you. The weather service knows, and 3 < 4.\n"


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one tool set in one mode and format."""

    build_ms: float  # schemas -> grammar source, not cached
    compile_ms: float
    again_ms: float  # both, for the same tools a second time
    mask_us: float  # median
    mask_p99_us: float
    forced: float


def cost(dialect: Dialect, tools: list[Tool], choice: Choice) -> Cost:
    """Measure once; the names of every tool set are new, so that no cache knows it."""
    spec = ConstraintSpec(tools, choice, None, MARKER_IDS)
    begun = time.process_time()
    constraint = dialect.constrain(spec)
    built = time.process_time()
    assert constraint is not None
    matcher = grammars().compile(constraint)
    compiled = time.process_time()
    again = dialect.constrain(spec)
    assert again is not None
    grammars().compile(again)
    done = time.process_time()
    masks, forced = masks_along(dialect, matcher, choice, tools[-1].name)
    return Cost(
        (built - begun) * 1e3,
        (compiled - built) * 1e3,
        (done - compiled) * 1e3,
        statistics.median(masks),
        statistics.quantiles(masks, n=100)[98],
        forced,
    )


def masks_along(dialect: Dialect, matcher: object, choice: Choice, name: str) -> tuple[list[float], float]:
    """Return the microseconds of each mask along a reply, and the share of forced ids."""
    call = write_call(dialect.name, name, ARGUMENTS, 0)
    ids = ids_of(TEXT + call if choice.mode == "auto" else call.lstrip())
    times, forced, at = [], 0, 0
    while at < len(ids):
        forced_ids = matcher.forced()  # type: ignore[attr-defined]
        begun = time.process_time()
        grammars().masks([(matcher, ())], [None])  # type: ignore[list-item]
        times.append((time.process_time() - begun) * 1e6)
        step = forced_ids or ids[at : at + 1]
        assert matcher.advance(step)  # type: ignore[attr-defined]
        at, forced = at + len(step), forced + len(forced_ids)
    return times, forced / len(ids)


def main() -> None:
    """Print one line for each format, mode and number of tools."""
    head = f"{'format':14}{'mode':10}{'tools':>6}{'KB':>7}"
    sys.stdout.write(
        head + f"{'build ms':>10}{'compile ms':>12}{'again ms':>10}{'mask us':>9}{'p99 us':>8}{'forced':>8}\n"
    )
    ids_of("warm")
    grammars()
    serial = 0
    for dialect in DIALECTS:
        for mode in ("required", "auto"):
            for count in (1, 20, 128):
                serial += 1
                fresh = [
                    Tool(f"{tool.name}_{serial}", {**(tool.parameters or {}), "title": serial})
                    for tool in make_tools(count)
                ]
                tools = [*fresh[:-1], Tool(f"weather_{serial}", WEATHER.parameters)]
                found = cost(dialect, tools, Choice(mode))
                size = sum(len(json.dumps(tool.parameters)) for tool in tools) / 1e3
                sys.stdout.write(
                    f"{dialect.name:14}{mode:10}{count:6}{size:7.1f}{found.build_ms:10.2f}{found.compile_ms:12.2f}"
                    f"{found.again_ms:10.2f}{found.mask_us:9.0f}{found.mask_p99_us:8.0f}{found.forced:8.0%}\n"
                )


if __name__ == "__main__":
    main()
