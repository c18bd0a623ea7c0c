"""Random walks over a grammar: each id is drawn uniformly from those allowed."""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.dialects.base import Choice, ConstraintSpec, Dialect, Tool
from server.model.sampling.grammar import GrammarMatcher, LlguidanceGrammars
from tests.caches import cached
from tests.checkpoints import END_OF_TEXT, IM_END, TOOL_CALL, TOOL_CALL_END, VOCAB_SIZE, qwen_tokenizer, qwen_vocabulary

MARKER_IDS = {"<tool_call>": TOOL_CALL, "</tool_call>": TOOL_CALL_END}
STOP_IDS = (IM_END, END_OF_TEXT)
# Texts that end what is open. Random ids alone would rarely form them, and strings would not end.
ENDINGS = (
    '"', '"}', '"}}\n', "]", "]}", "}", "}}\n", "}\n", "\n</parameter>\n", "</parameter>\n", "</function>\n",
    "</arg_value>\n",
    "<|tool_call_end|>", "<|tool_calls_section_end|>", "\n", "\n</input>\n", "null", "1", '": ', "x",
)  # fmt: skip


def admits_beginning(dialect: Dialect, tools: Sequence[Tool], text: str) -> bool:
    """Whether the grammar of a forced call admits this beginning of a reply, its markers spelled."""
    constraint = dialect.constrain(spec_for(tools, Choice("required"), markers=False))
    assert constraint is not None
    return grammars().compile(constraint).advance(spelled_ids_of(text))


@dataclass(frozen=True, slots=True)
class Walk:
    """Text of a walk, and whether it ended before the limit."""

    text: str
    ended: bool


@functools.cache
def grammars() -> LlguidanceGrammars:
    """Return the engine's grammars over the real Qwen vocabulary."""
    return LlguidanceGrammars((qwen_tokenizer() / "tokenizer.json").read_bytes(), VOCAB_SIZE, STOP_IDS, num_threads=1)


@cached
def ids_of(text: str) -> tuple[int, ...]:
    """Encode a text; markers are one token each."""
    return tuple(qwen_vocabulary().encode(text, add_special_tokens=False).ids)


def spelled_ids_of(text: str) -> tuple[int, ...]:
    """Encode a text with its markers split into smaller tokens."""
    parts = text.replace("tool_call>", "tool\0_call>").split("\0")
    return tuple(token_id for part in parts for token_id in ids_of(part))


def text_of(token_ids: Sequence[int]) -> str:
    """Decode ids, markers included."""
    return str(qwen_vocabulary().decode(list(token_ids), skip_special_tokens=False))


def spec_for(tools: Sequence[Tool], choice: Choice, markers: bool = True) -> ConstraintSpec:
    """Return the constraint spec of a reply that may call these tools."""
    return ConstraintSpec(tools, choice, None, MARKER_IDS if markers else {})


def walk(
    dialect: Dialect,
    spec: ConstraintSpec,
    seed: object,
    most: int = 600,
    haste: float = 0.5,
    begun: Sequence[int] = (),
    endings: Sequence[str] = ENDINGS,
) -> Walk:
    """Write one reply under the dialect's constraint. `haste` is how often one of the endings is tried first.

    `begun` are ids that the reply begins with.
    """
    constraint = dialect.constrain(spec)
    assert constraint is not None
    matcher = grammars().compile(constraint)
    chance = random.Random(str(seed))
    written = list(begun)
    assert matcher.advance(written)
    while len(written) < most:
        step = _step(matcher, chance, haste, endings)
        if step is None:
            return Walk(text_of(written), True)
        assert matcher.advance(step), "an allowed id was refused"
        written += step
        if matcher.is_over():
            return Walk(text_of(written), True)
    return Walk(text_of(written), False)


def _step(matcher: GrammarMatcher, chance: random.Random, haste: float, endings: Sequence[str]) -> list[int] | None:
    forced = matcher.forced()
    if forced:
        return forced[: chance.randint(1, len(forced))]
    if chance.random() < haste:
        ids = ids_of(chance.choice(endings))
        if matcher.count_allowed(ids) == len(ids):
            return list(ids)
    allowed = allowed_ids(matcher)
    if any(stop in allowed for stop in STOP_IDS) and (chance.random() < haste or len(allowed) <= len(STOP_IDS)):
        return None
    drawn = [token_id for token_id in map(int, chance.choices(allowed, k=3)) if token_id not in STOP_IDS]
    return drawn[:1] or None


def allowed_ids(matcher: GrammarMatcher) -> np.ndarray:
    """Return every id that may come next."""
    masks = grammars().masks([(matcher, ())], [None])
    assert masks is not None
    return np.flatnonzero(np.unpackbits(masks.words[0].view(np.uint8), bitorder="little"))
