"""End of a JSON value, and repairs in it."""

import json
import random

import pytest

from server.dialects.parsing.json_stream import JsonText
from tests.dialects.fuzz import random_value
from tests.dialects.parse_helpers import cut_somehow


def scan(pieces: list[str], end: str = "") -> tuple[str, str, JsonText]:
    """Return the output, the text not taken, and the scanner."""
    scanner, out, text = JsonText(end), "", ""
    for i, piece in enumerate([*pieces, ""]):
        text += piece
        more, at = scanner.feed(text, 0, last=i == len(pieces))
        out, text = out + more, text[at:]
    return out, text, scanner


def test_valid_json_comes_out_byte_for_byte_and_ends_where_it_ends() -> None:
    for case in range(3000):
        chance = random.Random(f"json {case}")
        value = [random_value(chance), random_value(chance)]
        text = json.dumps(value, ensure_ascii=chance.random() < 0.3, indent=chance.choice((None, 1)))
        out, rest, scanner = scan(cut_somehow(text + " tail", chance), "</tool_call>")
        assert (out, rest.strip()) == (text, "tail"), text
        assert scanner.done and not scanner.repaired


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ('{"a": 1', '{"a": 1'),
        ('{"a": "x\\', '{"a": "x\\\\'),
        ('["\\ud83d', '["\\ud83d'),
        ("[1, tr", "[1, "),
    ],
)
def test_a_cut_value_is_neither_done_nor_broken_before_its_last_word(text: str, out: str) -> None:
    found, _, scanner = scan([text])
    assert found == out and not scanner.done


@pytest.mark.parametrize("text", ["nothing", "{1: 2}", '{"a" 1}', "[1 2]", '{"a": }', "[}", '{"a": 1]', "// no", "[,]"])
def test_what_is_no_json_is_broken_whatever_the_pieces(text: str) -> None:
    whole = scan([text])
    assert whole[2].broken
    for seed in range(20):
        pieces = scan(cut_somehow(text, random.Random(seed)))
        assert pieces[:2] == whole[:2] and pieces[2].broken


def test_the_end_marker_closes_brackets_where_a_value_may_end_and_breaks_them_elsewhere() -> None:
    out, rest, scanner = scan(['{"a": [1, {"b": "c"</end> more'], "</end>")
    assert out == '{"a": [1, {"b": "c"}]}' and rest == "</end> more" and scanner.done and scanner.repaired
    assert scan(['{"a": </end>'], "</end>")[2].broken
    assert scan(['{"a": "open\n</end>'], "</end>")[2].broken
    assert scan(['{"a": "held </end> inside"}'], "</end>")[2].repaired is False
