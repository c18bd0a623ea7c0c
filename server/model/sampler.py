"""Logits become ids, for the whole batch at once; one row's result never depends on another row.

A draw consumes one random number in [0, 1) that is a hash of (seed, index of the id in its reply): the same request
gives the same ids whatever else runs, and costs nothing but the hash. The number is looked up in the cumulated
distribution (inverse CDF), whose order is fixed for the row: likeliest first where top_p or top_k cut it, by id
otherwise.

Drafts are verified exactly: at each place an id is drawn from the model's own distribution; if it is the draft, the
next place counts too, if not, the drawn id is what is written. A draft is accepted with the probability the model
gives it, and a refused one is replaced by a draw from the rest, so the distribution of replies is unchanged.

Log probabilities are those of the model's raw logits, before temperature, penalties, biases and masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.messages import TokenLogprob
from server.model.batch import Draw, Drawn
from server.model.masks import Masks
from server.model.penalties import apply_masks, change_logits, changes_logits

NUM_CANDIDATES = 256  # taken from a row before it is cut by top_p or top_k; rows that need more are sorted whole
MOST_SORTED_WHOLE = 16  # lines
NO_NUMBER = "the model's logits are not finite at this place; the checkpoint, its dtype or its kernels are broken"
NOTHING_ALLOWED = "the constraint and the banned ids together leave no token that may come next"


@dataclass(frozen=True, slots=True)
class DrawRow:
    """One row with logits: how it is drawn, and the drafts that its lines verify (it has 1 + drafts lines)."""

    draw: Draw
    drafts: tuple[int, ...]
    first_line: int

    @property
    def lines(self) -> slice:
        """Where its logits are."""
        return slice(self.first_line, self.first_line + 1 + len(self.drafts))


def draw_ids(logits: Tensor, rows: Sequence[DrawRow], masks: Masks | None) -> list[Drawn]:
    """logits [lines, vocab] -> one Drawn a row. `logits` may be overwritten."""
    finite = torch.isfinite(logits.sum(-1, dtype=torch.float32))
    logprobs = _RawLogprobs(logits, rows)
    shaped = logits
    if masks is not None or any(changes_logits(row.draw) for row in rows):
        shaped = logits.float() if logits.dtype != torch.float32 else logits
        for row in rows:
            if changes_logits(row.draw):
                change_logits(shaped[row.lines], row.draw, row.drafts)
        if masks is not None:
            apply_masks(shaped, masks, [row.first_line for row in rows])
    peaks, ids = shaped.max(-1)
    possible = peaks > -torch.inf
    _draw_sampled(shaped, peaks, ids, rows)
    faults = _faults(finite.tolist(), possible.tolist())
    return _accept(ids.tolist(), faults, rows, logprobs)


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on these two alone: splitmix64 over the seed's hash plus the index."""
    mask = (1 << 64) - 1
    word = (_mix(seed & mask) + (index + 1) * 0x9E3779B97F4A7C15) & mask
    return (_mix(word) >> 11) * 2.0**-53


def _mix(word: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    return word ^ (word >> 31)


def _draw_sampled(logits: Tensor, peaks: Tensor, ids: Tensor, rows: Sequence[DrawRow]) -> None:
    """Replace the greedy ids of lines that have a temperature."""
    lines, settings, numbers = [], [], []
    for row in rows:
        sampling = row.draw.sampling
        if sampling.temperature > 0:
            for j in range(1 + len(row.drafts)):
                lines.append(row.first_line + j)
                settings.append((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p))
                numbers.append(uniform(row.draw.seed, len(row.draw.written_ids) + j))
    if not lines:
        return
    device = logits.device
    table = torch.from_numpy(np.array(settings, dtype=np.float32)).to(device)
    drawn_at = torch.from_numpy(np.array(numbers, dtype=np.float64)).to(device)
    at = torch.tensor(lines, device=device)
    everything = len(lines) == logits.shape[0]
    own, own_peaks = (logits, peaks) if everything else (logits[at], peaks[at])
    scaled = (own.float() - own_peaks.float().unsqueeze(-1)) / table[:, :1]  # likeliest id at 0
    cut = np.array([top_p < 1 or top_k > 0 for _, top_p, top_k, _ in settings])
    if not cut.any():
        ids[at] = _draw_by_id(scaled, table[:, 3], drawn_at)
    elif cut.all():
        ids[at] = _draw_cut(scaled, table, drawn_at)
    else:
        for kind, draw in ((cut, True), (~cut, False)):
            some = torch.from_numpy(np.flatnonzero(kind)).to(device)
            part, numbers_of = scaled[some], drawn_at[some]
            chosen = _draw_cut(part, table[some], numbers_of) if draw else _draw_by_id(part, table[some, 3], numbers_of)
            ids[at[some]] = chosen


def _draw_by_id(scaled: Tensor, min_p: Tensor, numbers: Tensor) -> Tensor:
    """Inverse CDF over the whole vocabulary. scaled [lines, vocab], likeliest at 0; numbers [lines] in [0, 1)."""
    weights = scaled.exp()
    if bool((min_p > 0).any()):
        weights.masked_fill_(weights < min_p.unsqueeze(-1), 0.0)
    return _look_up(weights, numbers)


def _draw_cut(scaled: Tensor, table: Tensor, numbers: Tensor) -> Tensor:
    """Inverse CDF over the ids that top_k, top_p and min_p leave, likeliest first."""
    vocab = scaled.shape[1]
    num_candidates = min(NUM_CANDIDATES, vocab)
    chosen, covered = _draw_from(scaled, num_candidates, table, numbers)
    if num_candidates < vocab and not bool(covered.all()):
        # A few at a time: sorting a whole vocabulary takes ten times the memory of its logits.
        for rest in torch.split(torch.nonzero(~covered).flatten(), MOST_SORTED_WHOLE):
            chosen[rest] = _draw_from(scaled[rest], vocab, table[rest], numbers[rest])[0]
    return chosen


def _draw_from(scaled: Tensor, num_candidates: int, table: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Ids drawn from the likeliest candidates, and for which lines these were all that the cuts left.

    As in transformers: top_k first, top_p of what remains (an id stays if those before it have less than top_p),
    min_p relative to the likeliest.
    """
    top_p, top_k, min_p = table[:, 1:2], table[:, 2:3], table[:, 3:4]
    order = torch.arange(num_candidates, device=scaled.device)
    found, ids = scaled.topk(num_candidates, dim=-1)
    weights = found.exp()
    in_top_k = (top_k == 0) | (order < top_k)
    weights.masked_fill_(~in_top_k, 0.0)
    whole = torch.where(top_k > 0, weights.sum(-1, keepdim=True), scaled.exp().sum(-1, keepdim=True))
    before = weights.cumsum(-1) - weights
    in_top_p = (before < top_p * whole) | (order == 0)
    covered = ((top_k > 0) & (top_k <= num_candidates)) | ~in_top_p[:, -1:]
    weights.masked_fill_(~in_top_p | (weights < min_p), 0.0)
    at = _look_up(weights, numbers)
    return ids.gather(1, at.unsqueeze(1)).squeeze(1), covered.squeeze(1)


def _look_up(weights: Tensor, numbers: Tensor) -> Tensor:
    """The first place where the cumulated share passes the number; never one of weight 0."""
    cumulated = weights.cumsum(-1, dtype=torch.float64)
    goal = (numbers * cumulated[:, -1]).unsqueeze(1)
    at = torch.searchsorted(cumulated, goal, right=True).squeeze(1)
    last = torch.searchsorted(cumulated, cumulated[:, -1:].contiguous()).squeeze(1)
    # In a row of NaN nothing is found; its fault is told elsewhere, but the place must exist.
    return torch.minimum(at, last).clamp_(max=weights.shape[1] - 1)


def _faults(finite: Sequence[bool], possible: Sequence[bool]) -> list[str | None]:
    return [
        NO_NUMBER if not good else None if some else NOTHING_ALLOWED
        for good, some in zip(finite, possible, strict=True)
    ]


def _accept(
    ids: Sequence[int], faults: Sequence[str | None], rows: Sequence[DrawRow], logprobs: "_RawLogprobs"
) -> list[Drawn]:
    """Walk each row's lines as long as the drawn id is the draft."""
    results = []
    for row in rows:
        line = row.first_line
        for draft in row.drafts:
            if faults[line] or ids[line] != draft:
                break
            line += 1
        written = tuple(ids[row.first_line : line + 1])
        if faults[line] and line > row.first_line:
            written = written[:-1]  # what came before the fault stands; the next step meets it again
        elif faults[line]:
            results.append(Drawn(fault=faults[line]))
            continue
        results.append(Drawn(written, logprobs.of(row, written)))
    return results


class _RawLogprobs:
    """Log probabilities of the lines whose requests want them, taken before anything changes the logits."""

    def __init__(self, logits: Tensor, rows: Sequence[DrawRow]) -> None:
        wanting = [row for row in rows if row.draw.sampling.num_logprobs is not None]
        self._place: dict[int, int] = {}
        for row in wanting:
            for line in range(*row.lines.indices(logits.shape[0])):
                self._place[line] = len(self._place)
        if not wanting:
            return
        # A copy: penalties and masks change the logits in place.
        self._values = torch.log_softmax(logits[list(self._place)].float(), -1)
        most = max(row.draw.sampling.num_logprobs or 0 for row in wanting)
        if most:
            values, ids = self._values.topk(most, dim=-1)
            self._top_values, self._top_ids = values.tolist(), ids.tolist()

    def of(self, row: DrawRow, written: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
        """One entry a written id, or None where the request wants none."""
        count = row.draw.sampling.num_logprobs
        if count is None:
            return None
        entries = []
        for j, token_id in enumerate(written):
            place = self._place[row.first_line + j]
            top = zip(self._top_ids[place][:count], self._top_values[place][:count], strict=True) if count else ()
            entries.append(TokenLogprob(token_id, float(self._values[place, token_id]), tuple(top)))
        return tuple(entries)
