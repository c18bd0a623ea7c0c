"""Notes on a request: what was changed or not honoured, for its reply and the log.

By default a request is taken in the sense that it plainly has, and a note says what differs from its letter. `--strict`
refuses such a request instead.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

MAX_NOTES = 32  # of one request
NoteKind = Literal[
    "compacted",  # items of a conversation are left out or stand in its summary alone
    "form",  # a part of the request was read in the form of another API
    "half_surrogate",  # half of a surrogate pair was read as U+FFFD
    "history",  # messages out of order were put right
    "ignored",  # a parameter that is not known here
    "not_kept",  # the response could not be kept in the database
    "left_out",  # a part of the request that has no meaning here was left out
    "schema",  # a schema was put right, or a part of it is shown to the model and not enforced
    "thinking",  # the model cannot think, or not without thinking
    "truncated",  # further notes are not listed
]


class Note(msgspec.Struct, frozen=True):
    """One change. `param` is the path of the place, `text` says what was done there; neither quotes a message."""

    kind: NoteKind
    param: str
    text: str


def bounded(notes: Iterable[Note]) -> tuple[Note, ...]:
    """Return each note once, at most MAX_NOTES and one that counts the rest."""
    once = tuple(dict.fromkeys(notes))
    if len(once) <= MAX_NOTES:
        return once
    rest = len(once) - MAX_NOTES
    return (*once[:MAX_NOTES], Note("truncated", "", f"{rest} further notes are not listed."))
