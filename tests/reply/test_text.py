"""ids -> text, held against decoding all ids at once; stop strings, held against `str.find`."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from server.reply.text import StopStrings, TextStream, Vocabulary
from tests.checkpoints import qwen_vocabulary
from tests.reply.alphabet import IM_END, TOKENIZER, VOCABULARY, ids_of


def stream(vocabulary: Vocabulary, ids: list[int]) -> str:
    text = TextStream(vocabulary)
    return "".join(text.feed(token_id) for token_id in ids)


@given(st.text(max_size=80))
def test_any_text_comes_back_and_no_piece_holds_half_a_character(text: str) -> None:
    """A byte a token: the piece that ends a character brings all of it, the others bring nothing."""
    reader = TextStream(VOCABULARY)
    pieces = [reader.feed(token_id) for token_id in ids_of(text)]
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_random_ids_read_as_the_tokenizer_decodes_them() -> None:
    """Random weights write invalid UTF-8: it must read as a whole decode reads it, at every length."""
    tokenizer = qwen_vocabulary()
    vocabulary = Vocabulary(tokenizer)
    draw = random.Random(7)
    for _ in range(300):
        ids = [draw.randrange(152_000) for _ in range(40)]
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        read = stream(vocabulary, ids)
        assert whole.startswith(read)
        assert set(whole[len(read) :]) <= {"\ufffd"}, "only what is no whole character may be missing"


def test_emoji_and_cjk_of_the_real_vocabulary_are_never_cut() -> None:
    tokenizer = qwen_vocabulary()
    text = "Grüße 👩‍👩‍👧 東京は晴れ 🇩🇪 — ok \U0001f9ff"
    reader = TextStream(Vocabulary(tokenizer))
    pieces = [reader.feed(token_id) for token_id in tokenizer.encode(text).ids]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_a_special_token_writes_nothing_unless_it_is_kept() -> None:
    ids = [*ids_of("a"), IM_END, *ids_of("b")]
    assert stream(VOCABULARY, ids) == "ab"
    assert stream(Vocabulary(TOKENIZER, kept=["<|im_end|>"]), ids) == "a<|im_end|>b"
    assert stream(VOCABULARY, ids_of("<tool_call>x")) == "<tool_call>x", "not special: it is text"


def test_an_id_beyond_the_vocabulary_writes_nothing() -> None:
    """Embeddings are padded: a model can draw an id that the tokenizer never heard of."""
    assert stream(VOCABULARY, [9999, *ids_of("a")]) == "a"


def test_half_a_character_at_the_end_is_no_text() -> None:
    assert stream(VOCABULARY, ids_of("ä🙂")[:-1]) == "ä"


def test_a_vocabulary_that_is_not_byte_level_is_read_by_its_own_decoder() -> None:
    tokenizer = Tokenizer(WordLevel({"one": 0, "two": 1}, unk_token="one"))
    assert stream(Vocabulary(tokenizer), [0, 1, 0]) == tokenizer.decode([0, 1, 0])


@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_a_stop_string_split_over_pieces_never_leaks(step: int) -> None:
    text = "one two STOP three"
    stops = StopStrings(["STOP"])
    out = "".join(stops.feed(text[at : at + step]) for at in range(0, len(text), step))
    assert out == "one two "
    assert stops.matched == "STOP"
    assert stops.close() == ""


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_outcome_does_not_depend_on_the_cuts(text: str, stops: list[str]) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    for cut in range(len(text) + 1):
        reader = StopStrings(stops)
        out = reader.feed(text[:cut]) + reader.feed(text[cut:])
        out += "" if reader.matched else reader.close()
        assert out == expected
    one_by_one = StopStrings(stops)
    out = "".join(one_by_one.feed(character) for character in text)
    assert out + ("" if one_by_one.matched else one_by_one.close()) == expected


def test_no_more_is_held_back_than_may_become_a_stop_string() -> None:
    stops = StopStrings(["</answer>"])
    assert stops.feed("a < b") == "a < b"
    assert stops.feed("</ans") == ""
    assert stops.feed("x") == "</ansx"
