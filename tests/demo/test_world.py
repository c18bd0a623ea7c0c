"""Guarantees of the generator: seeded, calls valid for their schemas, no held-out word in training."""

import random

import pytest
from jsonschema import Draft202012Validator

from demo.cases import Case, Outcome, judge, write_cases
from demo.dialogues import Author, read_smalltalk
from demo.everyday import known_words, read_everyday
from demo.lists import NOUNS, PARAMETER_NOUNS
from demo.requests import SLOT, Call, lower_first, without_slot
from demo.words import World, is_held_out


def author(seed: int) -> Author:
    return Author(World("train", random.Random(seed), known_words()), read_everyday(), read_smalltalk())


def test_equal_seeds_write_equal_dialogues() -> None:
    first, second = author(3), author(3)
    assert [first.write() for _ in range(50)] == [second.write() for _ in range(50)]


def test_every_expected_call_is_valid_for_its_tool() -> None:
    writer = author(4)
    checked = 0
    for _ in range(400):
        dialogue = writer.write()
        schemas = {tool.name: tool.schema()["function"]["parameters"] for tool in dialogue.tools}
        for turn in dialogue.turns:
            for call in turn.calls:
                Draft202012Validator(schemas[call.name]).validate(call.arguments)
                checked += 1
    assert checked > 300


def test_every_schema_is_a_json_schema() -> None:
    for tool in author(5).draw_tools(60):
        Draft202012Validator.check_schema(tool.schema()["function"]["parameters"])


def test_hand_written_tools_name_only_their_own_parameters_in_sentences() -> None:
    for sketch in read_everyday():
        own = {parameter.names[0] for parameter in sketch.sketches}
        for ask in sketch.asks:
            assert set(SLOT.findall(ask)) <= own


def values_of(case: Case) -> list[str]:
    found: list[str] = []
    pending: list[object] = [call.arguments for call in case.calls]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, str):
            found.append(value)
    return found


def names_of(case: Case) -> set[str]:
    return {tool["function"]["name"] for tool in case.tools} | {
        name for tool in case.tools for name in tool["function"]["parameters"]["properties"]
    }


def test_held_out_names_and_values_do_not_occur_in_training() -> None:
    cases = write_cases(seed=1, scale=0.3)
    held_out_names = set().union(*(names_of(case) for case in cases if case.kind != "everyday"))
    held_out_values = {value for case in cases if case.kind != "everyday" for value in values_of(case)}
    assert len(held_out_names) > 100 and len(held_out_values) > 100
    writer = author(7)
    trained_names: set[str] = set()
    trained_values: set[str] = set()
    for _ in range(1500):
        dialogue = writer.write()
        trained_names |= {tool.name for tool in dialogue.tools}
        trained_names |= {parameter.name for tool in dialogue.tools for parameter in tool.parameters}
        for turn in dialogue.turns:
            calls = Case("one of four", False, (), (), turn.calls)
            trained_values |= set(values_of(calls))
    assert not held_out_names & trained_names
    assert not held_out_values & trained_values


def test_a_word_belongs_to_one_half_only() -> None:
    known = known_words()
    for word in (*NOUNS, *PARAMETER_NOUNS):
        halves = [World(split, random.Random(0), known).allows(word) for split in ("train", "heldout")]
        assert halves.count(True) == 1
    assert is_held_out("Zorvik") == is_held_out("zorvik")


def test_evaluation_is_seeded_and_large_enough() -> None:
    assert len(write_cases(seed=1)) >= 500
    assert write_cases(seed=2, scale=0.05) == write_cases(seed=2, scale=0.05)


@pytest.mark.parametrize(
    ("ask", "name", "cut"),
    [
        ("What's the weather in {city}?", "city", "What's the weather?"),
        ("Book a flight from {origin} to {destination}", "origin", "Book a flight to {destination}"),
        ("{a} plus {b}", "a", None),
    ],
)
def test_removing_a_slot_removes_its_preposition(ask: str, name: str, cut: str | None) -> None:
    assert without_slot(ask, name) == cut


def test_names_keep_their_capital_at_the_start_of_a_sentence() -> None:
    assert lower_first("I want it") == "I want it"
    assert lower_first("Show it") == "show it"


def test_judging_distinguishes_true_from_one_and_equates_twelve_and_twelve_point_zero() -> None:
    def case(value: object) -> Case:
        return Case("one of four", False, (), (), (Call("f", {"x": value}),))

    def outcome(value: object) -> Outcome:
        return Outcome((Call("f", {"x": value}),), "")

    assert judge(case(12), outcome(12.0)).exact
    assert not judge(case(1), outcome(True)).exact
    assert not judge(case("1"), outcome(1)).exact
    assert judge(case("1"), outcome(1)).right_tools
