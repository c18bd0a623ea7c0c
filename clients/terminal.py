"""Text from elsewhere, safe to print: a terminal obeys control characters."""

import re

# All controls but tab and line feed, and the characters that reverse the direction of what follows.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with each control character replaced by U+FFFD: no title, clipboard, colour or cursor is changed."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
