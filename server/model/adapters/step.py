"""Adapters of a step's tokens: which tokens have which adapter, as the backbones take them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.model.batch import Row


class AdaptedModel(Protocol):
    """An adapter in the form in which a backbone computes it; only that backbone knows what is in it."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds on the model's device."""

    @property
    def max_rank(self) -> int:
        """The greatest rank of its layers."""


@dataclass(frozen=True, slots=True)
class AdapterRun:
    """Tokens `first .. end` of a step, which have one adapter."""

    first: int
    end: int
    adapter: AdaptedModel


@dataclass(frozen=True, slots=True)
class StepAdapters:
    """The runs of a step, in the order of their tokens; those between them have the base model alone."""

    runs: tuple[AdapterRun, ...]

    def window(self, first: int, count: int) -> "StepAdapters":
        """Those of the tokens `first .. first + count`, counted from there."""
        return StepAdapters(tuple(self._cut(first, first + count)))

    def _cut(self, first: int, end: int) -> Iterator[AdapterRun]:
        for run in self.runs:
            begin, stop = max(run.first, first), min(run.end, end)
            if begin < stop:
                yield AdapterRun(begin - first, stop - first, run.adapter)


def step_adapters(rows: Sequence[Row], installed: Mapping[int, AdaptedModel]) -> StepAdapters | None:
    """The adapters of rows in the order of their tokens; None if no row has one."""
    if not any(row.adapter for row in rows):
        return None
    runs: list[AdapterRun] = []
    first = 0
    for row in rows:
        end = first + len(row.token_ids)
        if row.adapter:
            adapter = installed[row.adapter]
            begin = first
            if runs and runs[-1].end == first and runs[-1].adapter is adapter:
                begin = runs.pop().first
            runs.append(AdapterRun(begin, end, adapter))
        first = end
    return StepAdapters(tuple(runs))
