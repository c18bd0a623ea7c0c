"""`Mask.hide` keeps lengths, is undone by `show`, and leaves no text that encodes as a control token."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.checkpoint.mask import Mask
from server.checkpoint.template_environment import RawArguments

TOKENS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<a><b>", "<b>", "[gMASK]", "\n\n", "< x >", "＜終｜"]
FRAGMENTS = st.sampled_from(
    [*TOKENS, *(t[:i] for t in TOKENS for i in (1, 2, -1)), *(t[1:] for t in TOKENS), " ", "é", "x"]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=4), max_size=8).map("".join)
ANY_TOKEN = re.compile("|".join(re.escape(token) for token in TOKENS if not token.isspace()))
mask = Mask(TOKENS, ["</", "<", ">", "plain"])


@given(TEXTS)
def test_showing_undoes_hiding_and_lengths_stay(text: str) -> None:
    """Templates slice, trim and measure texts, and the model must read what the client sent."""
    hidden = mask.hide(text)
    assert len(hidden) == len(text)
    assert mask.show(hidden) == text
    assert hidden.isspace() == text.isspace()
    assert len(hidden.strip()) == len(text.strip())


@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from(["", " ", "</", "<", ">", "plain"]))
def test_joined_texts_contain_no_token(texts: list[str], between: str) -> None:
    """Templates join texts, trimmed or not, with each other and with their literals."""
    for joined in (between.join(map(mask.hide, texts)), between.join(mask.hide(text).strip() for text in texts)):
        assert not ANY_TOKEN.search(joined), joined


@given(st.text(alphabet=st.characters(exclude_characters="<>[]＜｜", exclude_categories=["Cs"])))
def test_other_text_is_unchanged(text: str) -> None:
    """Templates compare texts (types, roles, switches): masking more than necessary would break that."""
    if text.strip() not in ("think", "b", "|im_start|", "|im_end|", "a", "im_start|", "/think"):
        assert mask.hide(text) == text


def test_text_that_literals_complete_is_hidden() -> None:
    """`"<" + key + ">"` with the key `think`."""
    assert mask.hide("think") != "think"
    assert mask.hide(" think ") != " think "
    assert mask.hide("thinking") == "thinking"
    assert Mask(TOKENS, ["plain"]).hide("think") == "think"


def test_overlapping_tokens_are_all_hidden() -> None:
    """Masking only the first would leave the second."""
    assert not ANY_TOKEN.search(mask.hide("<a><b>"))


def test_lone_surrogates_from_outside_are_replaced() -> None:
    """`show` would turn them into text that the client did not send."""
    assert mask.hide("a\udc00b\ud800") == "a\ufffdb\ufffd"


def test_keys_and_deep_values_are_hidden_and_other_values_kept() -> None:
    """A schema's keys come from the client like its descriptions."""
    value = {"<think>": [{"a": "<think>", "n": 1, "f": 1.5, "t": True, "z": None}]}
    hidden = mask.hide_all(value)
    ((key, items),) = hidden.items()
    assert mask.show(key) == "<think>" != key
    assert items[0] == {"a": key, "n": 1, "f": 1.5, "t": True, "z": None}
    assert isinstance(mask.hide_all(RawArguments("<think>")), RawArguments)


@pytest.mark.parametrize("tokens", [[], ["\n"], ["x"]])
def test_unusual_vocabularies(tokens: list[str]) -> None:
    """A tokenizer without added tokens, or with white space among them."""
    assert Mask(tokens).show(Mask(tokens).hide("a x b\n")) == "a x b\n"
