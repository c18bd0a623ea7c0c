"""TemplateText knows after each operation which characters the template wrote, and never claims one of a client's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.checkpoint.template_text import TemplateText, join_texts, written_text

# The template writes capitals and separators, a client small letters: each character tells who wrote it.
PARTS = st.lists(st.text("AB ,\n", max_size=4).map(written_text) | st.text("ab", max_size=4), max_size=6)
SEPARATORS = st.sampled_from([None, ",", "A", " ", "AB"])


def check(text: str) -> None:
    """Written is exactly what the template wrote."""
    assert isinstance(text, TemplateText)
    written = [i for start, end in text.written for i in range(start, end)]
    assert written == [i for i, letter in enumerate(text) if letter not in "ab"]


@given(PARTS, SEPARATORS, st.integers(-1, 3), st.integers(-9, 9), st.integers(-9, 9))
def test_operations_give_what_str_gives_and_keep_who_wrote_each_character(
    parts: list[str], separator: str | None, count: int, start: int, end: int
) -> None:
    """A template trims, cuts and joins what it has written; its tokens must survive that, and no others appear."""
    text, plain = join_texts(parts), "".join(map(str.__str__, parts))
    own = None if separator is None else written_text(separator)
    pairs: list[tuple[str, str]] = [
        (text, plain),
        (text.strip(own), plain.strip(separator)),
        (text.lstrip(own), plain.lstrip(separator)),
        (text.rstrip(own), plain.rstrip(separator)),
        (text[start:end], plain[start:end]),
        (text + "a", plain + "a"),
        ("a" + text, "a" + plain),
        (text * 2, plain * 2),
        (written_text(",").join(parts), ",".join(parts)),
        *zip(text.split(own, count), plain.split(separator, count), strict=True),
        *zip(text.rsplit(own, count), plain.rsplit(separator, count), strict=True),
    ]
    if separator is not None and own is not None:
        pairs.append((text.replace(own, written_text("AA"), count), plain.replace(separator, "AA", count)))
        pairs.append((text.removeprefix(own), plain.removeprefix(separator)))
        pairs.append((text.removesuffix(own), plain.removesuffix(separator)))
    for found, expected in pairs:
        assert found == expected
        check(found)


@pytest.mark.parametrize("method", ["upper", "lower", "title", "swapcase", "casefold", "encode", "splitlines"])
def test_other_operations_give_ordinary_values(method: str) -> None:
    """What is not known to keep each character in its place proves nothing about who wrote the result."""
    assert not isinstance(getattr(written_text("Ab"), method)(), TemplateText)
    assert TemplateText("<|im_end|>").written == ()


def test_a_clients_text_takes_nothing_out_of_the_templates() -> None:
    """With a piece in the middle gone, two halves would be joined to something that the template never wrote."""
    assert join_texts(["", written_text("AXB").replace("X", "")]).written == ()
    assert join_texts(written_text("AXB").split("X")).written == ()
    kept = written_text("AXB").replace(written_text("X"), "")
    assert isinstance(kept, TemplateText)
    assert kept.written == ((0, 2),)
