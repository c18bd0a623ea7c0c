"""Lessons in compressed files: ids and what training must know of them, without generator or tokenizer.

A file is an archive of numpy's, compressed with LZMA: `ids` of all lessons one after another, `segments` with each
lesson's number of segments and `lengths` of all of these (the list of tools first), `replies` with the numbers of
replies and `spans` with first id, number of ids and kind of each.
"""

import io
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.adapter.network import Row

PRESET = 4  # of LZMA
WORDS, CALLS = 0, 1  # kinds of replies
Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class StoredLesson:
    """One lesson: ids [tokens], lengths [segments] of the tools and each conversation, spans [replies, 3]."""

    ids: Numbers
    lengths: Numbers
    spans: Numbers


def stored_lesson(
    row: Row, replies: Sequence[tuple[int, int]], first_of_calls: int, longest: int
) -> StoredLesson | None:
    """A packed lesson without the last conversations that are behind `longest` ids; None if none is left.

    `first_of_calls` is the id with which a reply that calls begins.
    """
    lengths = [last - first for first, last in row.segments]
    while lengths and sum(lengths) > longest:
        lengths.pop()
    if len(lengths) < 2:
        return None
    ids = row.ids[: sum(lengths)].numpy()
    spans = []
    for first, last in replies:
        start = int(row.places[first]) + 1
        if start < len(ids):
            kind = CALLS if int(row.targets[first]) == first_of_calls else WORDS
            spans.append((start, last - first, kind))
    return StoredLesson(ids, np.array(lengths, np.uint16), np.array(spans, np.uint16).reshape(-1, 3))


def write_lessons(lessons: Sequence[StoredLesson], path: Path) -> None:
    """Write a file."""
    content = io.BytesIO()
    ids = np.concatenate([one.ids for one in lessons])
    np.savez(
        content,
        ids=ids.astype(np.min_scalar_type(ids.max())),
        segments=np.array([len(one.lengths) for one in lessons], np.uint8),
        lengths=np.concatenate([one.lengths for one in lessons]),
        replies=np.array([len(one.spans) for one in lessons], np.uint8),
        spans=np.concatenate([one.spans for one in lessons]),
    )
    path.write_bytes(lzma.compress(content.getbuffer(), preset=PRESET))


def read_lessons(path: Path) -> list[StoredLesson]:
    """The lessons of a file, in its order."""
    return list(_lessons(np.load(io.BytesIO(lzma.decompress(path.read_bytes())))))


def _lessons(stored: Any) -> Iterator[StoredLesson]:
    segments, replies = stored["segments"].astype(int), stored["replies"].astype(int)
    ids, lengths, spans = stored["ids"], stored["lengths"], stored["spans"]
    first_length = first_span = first_id = 0
    for num_segments, num_replies in zip(segments.tolist(), replies.tolist(), strict=True):
        own = lengths[first_length : first_length + num_segments]
        num_ids = int(own.sum(dtype=np.int64))
        yield StoredLesson(ids[first_id : first_id + num_ids], own, spans[first_span : first_span + num_replies])
        first_length, first_span, first_id = first_length + num_segments, first_span + num_replies, first_id + num_ids
