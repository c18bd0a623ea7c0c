"""Rows of one length that are filled with stored lessons, and batches of them on a device."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo.adapter.batched import Batch
from demo.adapter.stored import CALLS, StoredLesson

OPEN_ROWS = 48  # that are filled at the same time


@dataclass(frozen=True, slots=True)
class Weighting:
    """Weights of the losses of a reply's tokens, of which all others have 1.

    With the first one words or calls are chosen, with the last, and with what leads to another call, their number.
    """

    first_of_calls: float = 6.0
    first_of_words: float = 6.0
    end: float = 3.0


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [rows, length]. `weights` are those of the next id's loss, `replies` numbers of replies there, or -1.

    `kinds` are those of all replies, and `totals` the sums of each row's weights.
    """

    ids: Tensor
    positions: Tensor
    lessons: Tensor
    segments: Tensor
    weights: Tensor
    replies: Tensor
    kinds: Tensor
    totals: Tensor

    def to(self, device: torch.device) -> "Rows":
        """The same on a device."""
        return Rows(*(getattr(self, field.name).to(device) for field in fields(self)))

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, chosen: Tensor) -> Batch:
        """Some rows as a batch."""
        ids, weights = self.ids[chosen].long(), self.weights[chosen].float().flatten()
        places = weights.nonzero()[:, 0]
        return Batch(
            ids,
            self.positions[chosen],
            self.lessons[chosen],
            self.segments[chosen],
            places,
            ids.flatten()[places + 1],
            weights[places],
        )

    def replies_of(self, chosen: Tensor, batch: Batch) -> Tensor:
        """The number of the reply that each target of a batch belongs to."""
        return self.replies[chosen].flatten()[batch.places].long()


def fill_rows(lessons: Sequence[StoredLesson], length: int, weighting: Weighting, order: Any) -> Rows:
    """Rows of lessons that are drawn in the order of a numpy generator. A lesson longer than a row is left out."""
    groups: list[list[int]] = []
    filled: list[tuple[int, list[int]]] = []
    for number in order.permutation(len(lessons)).tolist():
        size = len(lessons[number].ids)
        if size > length:
            continue
        fitting = [one for one in filled if one[0] + size <= length]
        if fitting:
            chosen = max(fitting, key=lambda one: one[0])
            filled.remove(chosen)
            chosen[1].append(number)
            filled.append((chosen[0] + size, chosen[1]))
        else:
            filled.append((size, [number]))
        if len(filled) > OPEN_ROWS:
            fullest = max(filled, key=lambda one: one[0])
            filled.remove(fullest)
            groups.append(fullest[1])
    groups += [one[1] for one in filled]
    return _Filling(len(groups), length).of(lessons, groups, weighting)


class _Filling:
    def __init__(self, num_rows: int, length: int) -> None:
        shape = (num_rows, length)
        self.ids = np.zeros(shape, np.int32)
        self.positions = np.zeros(shape, np.int16)
        self.lessons = np.full(shape, -1, np.int16)
        self.segments = np.zeros(shape, np.int16)
        self.weights = np.zeros(shape, np.float16)
        self.replies = np.full(shape, -1, np.int32)
        self.kinds: list[int] = []

    def of(self, lessons: Sequence[StoredLesson], groups: list[list[int]], weighting: Weighting) -> Rows:
        for row, numbers in enumerate(groups):
            first = 0
            for place, number in enumerate(numbers):
                lesson = lessons[number]
                last = first + len(lesson.ids)
                self.ids[row, first:last] = lesson.ids
                self.lessons[row, first:last] = place
                lengths = lesson.lengths.astype(np.int64)
                starts = np.cumsum(lengths) - lengths
                starts[1:] -= lengths[0]
                self.segments[row, first:last] = np.repeat(np.arange(len(lengths)), lengths)
                self.positions[row, first:last] = np.arange(last - first) - np.repeat(starts, lengths)
                self._reply(row, first, lesson, weighting)
                first = last
        return Rows(
            ids=torch.from_numpy(self.ids),
            positions=torch.from_numpy(self.positions),
            lessons=torch.from_numpy(self.lessons),
            segments=torch.from_numpy(self.segments),
            weights=torch.from_numpy(self.weights),
            replies=torch.from_numpy(self.replies),
            kinds=torch.tensor(self.kinds, dtype=torch.int8),
            totals=torch.from_numpy(self.weights.sum(1, dtype=np.float64)).float(),
        )

    def _reply(self, row: int, first: int, lesson: StoredLesson, weighting: Weighting) -> None:
        for start, number, kind in lesson.spans.tolist():
            before = first + start - 1  # the place whose target is the reply's first id
            weights = self.weights[row, before : before + number]
            weights[:] = 1
            if kind == CALLS:
                reply = lesson.ids[start : start + number]
                ahead = np.nonzero(reply[2:] == reply[0])[0] + 1  # the line break before another call
                weights[ahead] = weighting.end
                weights[-1] = weighting.end
            weights[0] = weighting.first_of_calls if kind == CALLS else weighting.first_of_words
            self.replies[row, before : before + number] = len(self.kinds)
            self.kinds.append(kind)
