"""Compiled constraints over the real Qwen vocabulary."""

import ctypes
import json
import sys
from itertools import pairwise

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer

from server.checkpoint.locate import BUILT_IN_FOLDER
from server.dialects.base import Choice, ConstraintSpec, Dialect, Tool
from server.dialects.hermes import HERMES
from server.dialects.registry import DIALECTS
from server.errors import ConstraintFailed
from server.messages import MAX_SOURCE, Constraint
from server.model.sampling.grammar import (
    BYTES_PER_CHARACTER,
    BYTES_PER_GRAMMAR,
    CACHE_BYTES,
    NEW_MASK_S,
    GrammarMatcher,
    LlguidanceGrammars,
)
from server.runtime.deep_stack import deep_stack_threads
from tests.checkpoints import IM_END, TOOL_CALL, TOOL_CALL_END, VOCAB_SIZE
from tests.dialects.fuzz import write_call
from tests.dialects.parse_helpers import Call, parse_in_any_pieces
from tests.dialects.random_walks import STOP_IDS, allowed_ids, grammars, ids_of, text_of

MARKER_IDS = {"<tool_call>": TOOL_CALL, "</tool_call>": TOOL_CALL_END}
WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
    },
)
FORCED = Choice("required", parallel=False)


def compiled(dialect: Dialect = HERMES, choice: Choice = FORCED) -> GrammarMatcher:
    constraint = dialect.constrain(ConstraintSpec([WEATHER], choice, None, MARKER_IDS))
    assert constraint is not None
    return grammars().compile(constraint)


def lark(source: str) -> GrammarMatcher:
    return grammars().compile(Constraint(source))


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_forced_ids_are_those_of_the_tokenizer(dialect: Dialect) -> None:
    """Text forced in a tokenization that the model never saw in training would degrade its output."""
    text = write_call(dialect.name, "get_weather", {"city": "Rio", "unit": "celsius"}, 0).lstrip()
    ids, at, forced = ids_of(text), 0, 0
    matcher = compiled(dialect)
    while at < len(ids):
        due = matcher.forced()
        assert tuple(due) == ids[at : at + len(due)], text_of(due)
        step = due or ids[at : at + 1]
        assert matcher.advance(step)
        at += len(step)
        forced += len(due)
    assert forced > len(ids) // 3


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("word", ["a </tool_call> b", "<think>", "<|im_end|>", "x<|endoftext|>", "<|im_start|>\n"])
def test_forced_text_that_spells_a_control_token_is_not_that_token(dialect: Dialect, word: str) -> None:
    """Such an enum would fail its request: the control token would be forced and then rejected."""
    tool = Tool("say", {"type": "object", "properties": {"word": {"const": word}}, "required": ["word"]})
    constraint = dialect.constrain(ConstraintSpec([tool], FORCED, None, MARKER_IDS))
    assert constraint is not None
    matcher, written = grammars().compile(constraint), []
    while not matcher.is_over():
        step = matcher.forced() or list(map(int, allowed_ids(matcher)[:1]))
        assert matcher.advance(step)
        if set(step) & set(STOP_IDS):
            break
        written += step
    (call,) = parse_in_any_pieces(dialect, [tool], text_of(written))
    assert isinstance(call, Call) and call.value == {"word": word} and call.flags == ()


def test_added_tokens_that_are_also_in_the_vocabulary_are_not_text() -> None:
    """The built-in model's tokenizer lists them twice; a name left in one place would be forced."""
    tokenizer = Tokenizer.from_file(str(BUILT_IN_FOLDER / "tokenizer.json"))
    control, stop = set(tokenizer.get_added_tokens_decoder()), tokenizer.token_to_id("<|im_end|>")
    size = tokenizer.get_vocab_size()
    built_in = LlguidanceGrammars((BUILT_IN_FOLDER / "tokenizer.json").read_bytes(), size, (stop or 0,), num_threads=1)
    matcher = built_in.compile(Constraint('start: "<think>" <[1]> "</tool_call>"'))
    written: list[int] = []
    while not matcher.is_over():
        masks = built_in.masks([(matcher, ())], [None])
        assert masks is not None
        allowed = np.flatnonzero(np.unpackbits(masks.words[0].view(np.uint8), bitorder="little"))
        step = matcher.forced() or [int(allowed[0])]
        assert matcher.advance(step)
        written += step
    assert tokenizer.decode(written, skip_special_tokens=False) == "<think><|im_start|></tool_call>"
    assert [token_id for token_id in written if token_id in control] == [1]


def test_a_matcher_is_over_when_only_a_stop_id_can_follow() -> None:
    matcher = compiled()
    ids = ids_of('<tool_call>\n{"name": "get_weather", "arguments": {"city": "x", "unit": "celsius"}}\n</tool_call>')
    assert matcher.advance(ids[:-1]) and not matcher.is_over()
    assert matcher.advance(ids[-1:]) and matcher.is_over()
    assert set(map(int, allowed_ids(matcher))) == set(STOP_IDS)


def test_copies_of_one_grammar_advance_independently() -> None:
    one, other = compiled(), compiled()
    assert one.advance([TOOL_CALL])
    assert other.count_allowed([TOOL_CALL]) == 1 and one.count_allowed([TOOL_CALL]) == 0


def test_an_id_that_is_not_allowed_advances_nothing() -> None:
    matcher = compiled()
    ids = ids_of("<tool_call>\n{")
    assert not matcher.advance([*ids, IM_END])
    assert matcher.count_allowed(ids) == len(ids)
    assert matcher.advance(ids)


def test_masks_along_drafts_are_those_of_each_position() -> None:
    drafts = ids_of('<tool_call>\n{"name": "get_weather", "arguments": {"city": "a b"')
    matcher, other = compiled(), lark('start: "yes" | "no"')
    masks = grammars().masks([None, (matcher, drafts), (other, ()), None], [None, None, None, None])
    assert masks is not None
    assert masks.owners == (1,) * (len(drafts) + 1) + (2,)
    assert masks.words.shape == (len(drafts) + 2, (VOCAB_SIZE + 31) // 32) and masks.words.dtype == np.int32
    follower = compiled()
    for position in range(len(drafts) + 1):
        alone = grammars().masks([(follower, ())], [None])
        assert alone is not None and (masks.words[position] == alone.words[0]).all()
        assert position == len(drafts) or follower.advance(drafts[position : position + 1])
    assert matcher.count_allowed(drafts) == len(drafts), "computing masks does not advance the matcher"


def test_there_are_no_masks_where_every_row_is_unconstrained() -> None:
    assert grammars().masks([None, None], [None, None]) is None


def test_a_row_s_extra_id_is_allowed_at_its_first_position_only() -> None:
    matcher = compiled()
    masks = grammars().masks([(matcher, [TOOL_CALL])], [IM_END])
    assert masks is not None
    allowed = [bool(row.view(np.uint32)[IM_END // 32] >> (IM_END % 32) & 1) for row in masks.words]
    assert allowed == [True, False]


def test_marker_tokens_are_never_text() -> None:
    """`<tool_call>` is not special in Qwen's tokenizer, but as text it would open an unconstrained call."""
    matcher = lark("start: /(?s:.*)/")
    allowed = set(map(int, allowed_ids(matcher)))
    assert TOOL_CALL not in allowed and IM_END in allowed
    assert max(allowed) < 151_669, "ids unknown to the tokenizer are never allowed"
    assert TOOL_CALL in set(map(int, allowed_ids(lark(f"start: /x/ | <[{TOOL_CALL}]>"))))


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        ("start: /[a-c]+/", "abc", "abd"),
        ("start: %json " + json.dumps({"type": "integer", "maximum": 9}), "7", "12"),
        ('start: "a" | "b"', "a", "c"),
    ],
)
def test_expressions_of_a_grammar(source: str, good: str, bad: str) -> None:
    constraint = Constraint(source)
    assert grammars().compile(constraint).advance(ids_of(good))
    assert not grammars().compile(constraint).advance(ids_of(bad))


@pytest.mark.parametrize(
    "source",
    [
        "start: missing",
        "start: " + '"a" ' * (MAX_SOURCE // 4),
        "start: %json not json",
        "start: %json " + json.dumps({"type": "string", "pattern": "(?=look)"}),
        "start: /(/",
    ],
)
def test_what_does_not_compile_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(ConstraintFailed) as caught:
        grammars().compile(Constraint(source))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_grammar_that_becomes_too_complex_fails_its_own_sequence() -> None:
    """An ambiguous grammar whose parser state grows with every letter."""
    matcher = lark('start: a a a a a a a a a\na: b* c*\nb: /x/ | b b | ""\nc: /x/ | c b c | ""')
    with pytest.raises(ConstraintFailed, match="too complex"):
        for _ in range(5000):
            assert grammars().masks([(matcher, ())], [None]) is not None
            assert matcher.advance(ids_of("x"))


def test_each_grammar_s_masks_have_a_time_of_their_own() -> None:
    """A slow grammar beside a fast one must not make the fast one wait for its turn."""
    slow = lark('start: a a a a a a a a a a\na: b* c*\nb: /y/ | b b | ""\nc: /y/ | c b c | ""')
    fast = lark('start: "fast" /[a-z]+/')
    for _ in range(60):
        assert slow.advance(ids_of("y"))
    for _ in range(20):  # on a busy machine one time may include another process's turn
        grammars().masks([(slow, ()), (fast, ()), (slow.copy(), ())], [None] * 3)
        if slow.mask_s > 3 * fast.mask_s:
            break
    assert slow.mask_s > 3 * fast.mask_s
    assert slow.copy().mask_s == slow.mask_s


def test_a_chain_of_rules_as_long_as_a_request_may_bring_compiles() -> None:
    """llguidance recurses once a rule: 3,000 of them overflowed the stack of a usual thread and ended the process."""
    names = [f"{index:x}" for index in range(5000)]
    chain = "start: r_0\n" + "\n".join(f"r_{one}:r_{other}" for one, other in pairwise(names))
    source = f'{chain}\nr_{names[-1]}: "z"'
    with deep_stack_threads(1, "test") as threads:
        matcher = threads.submit(grammars().compile, Constraint(source)).result()
    assert text_of(matcher.forced()) == "z"


class _MallInfo(ctypes.Structure):
    _fields_ = [(f"f{index}", ctypes.c_size_t) for index in range(10)]


def _allocated() -> int:
    """Bytes allocated in this process, in all arenas and in mappings of their own."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallInfo
    found = mallinfo()
    return int(found.f7 + found.f4)


def _many(line: str, count: int, joint: str) -> str:
    return joint.join(line.replace("@", str(index)) for index in range(count))


@pytest.mark.skipif(sys.platform != "linux", reason="mallinfo2 is glibc's")
@pytest.mark.parametrize(
    "source",
    [
        'start: "x"',
        "start: " + _many('"word number @"', 1000, " | "),
        'start: r0\nr600: "z"\n' + "\n".join(f'r{n}: "a{n}" | "b{n}" r{n + 1}' for n in range(600)),
        'start: %json {"properties": {' + _many('"p@": {"type": "string"}', 500, ", ") + "}}",
        'start: %json {"properties": {' + _many('"p@": {"type": "integer", "maximum": 7@}', 300, ", ") + "}}",
        'start: %json {"properties": {' + _many('"p@": {"pattern": "^([a-z]{9}|x)@$"}', 99, ", ") + "}}",
        'start: ("a" | "b"){99999,100000}',
        "start: /([a-z]+x|[0-9]{2,3}){1,9999}/",
    ],
)  # fmt: skip
def test_the_cache_counts_at_least_the_memory_that_a_grammar_takes(source: str) -> None:
    before = _allocated()
    matcher = grammars().compile(Constraint(source))
    assert _allocated() - before <= BYTES_PER_GRAMMAR + BYTES_PER_CHARACTER * len(source)
    assert matcher.mask_s == NEW_MASK_S


@pytest.mark.long
def test_memory_of_the_largest_distinct_grammars_stays_bounded() -> None:
    process = psutil.Process()
    sizes = []
    for round_number in range(40):
        grammars().compile(Constraint("start: " + _many(f'"word {round_number}.@"', 20_000, " | ")))
        ctypes.CDLL(None).malloc_trim(0)
        sizes.append(process.memory_info().rss)
    assert max(sizes[10:]) - sizes[0] < 1.5 * CACHE_BYTES


@pytest.mark.parametrize("source", ["start: <nosuch>\n", "start: secret_rule <[9000000]>\nsecret_rule: missing\n"])
def test_an_error_holds_neither_names_of_tokens_nor_the_grammar(source: str) -> None:
    """The names that stand for added tokens are secret: text that holds one would be read as that token."""
    with pytest.raises(ConstraintFailed) as caught:
        lark(source)
    assert "unknown" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("available", "\U0010ffff", "<[", "secret_rule", "|"))
