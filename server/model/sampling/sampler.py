"""Logits -> ids for the whole batch; a row's result never depends on other rows.

Each draw uses one random number in [0, 1), a hash of (seed, index of the id in its reply): the same request gives the
same ids whatever else runs. The id is found by inverse CDF over a distribution in a fixed order: by descending
probability where top_p or top_k truncate it, by id otherwise. This holds for given logits. torch's matrix products
round differently for different numbers of rows, on the CPU and more so on CUDA, so near-equal logits, or a number close
to the border between two ids, may give another id in another batch; the compiled kernels (`cpu/native.py`) round the
same in every batch.

Drafts are verified exactly: at each position an id is sampled from the model's own distribution; while it equals the
draft, the next position counts too, otherwise the sampled id is written. A draft is accepted with the probability that
the model gives it, and a rejected one is replaced by a draw from the rest: the distribution of replies is unchanged.

Log probabilities are those of the model's raw logits, before temperature, penalties, biases and masks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.messages import TokenLogprob
from server.model.batch import RowSampling, SampledTokens
from server.model.device import as_memory_error, to_device
from server.model.sampling.grammar import Masks
from server.model.sampling.penalties import adjust_logits, adjusts_logits, adjusts_scores, apply_masks
from server.model.sampling.vocab_search import first_max, inverse_cdf, top_values

# Candidates sorted for top_p and top_k; rows that need more are retried with the next number, then fully sorted.
NUM_CANDIDATES = (256, 8192)
MAX_SORTED_LINES = 16  # lines sorted in full at a time
NOT_FINITE_TEXT = "the model's logits are not finite here; the checkpoint, its dtype or its kernels are broken"
NO_ALLOWED_ID_TEXT = "the constraint and the banned ids together leave no token that may come next"
NOT_FINITE, NO_ALLOWED_ID = -1, -2  # in place of an id
FAULTS = {NOT_FINITE: NOT_FINITE_TEXT, NO_ALLOWED_ID: NO_ALLOWED_ID_TEXT}


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One row to sample: its settings, and the drafts that its 1 + len(drafts) lines of logits verify."""

    sampling: RowSampling
    drafts: tuple[int, ...]
    first_line: int

    @property
    def lines(self) -> slice:
        """The row's lines of the logits."""
        return slice(self.first_line, self.first_line + 1 + len(self.drafts))


class PendingSamples:
    """Ids sampled on the device and being copied to the host; the next step may use them before they arrive."""

    def __init__(self, ids: Tensor, rows: Sequence[SamplingRow], logprobs: "_RawLogprobs | None" = None) -> None:
        """`ids` int64 [lines]: NOT_FINITE or NO_ALLOWED_ID where there is no id."""
        self.ids = ids
        self.add_scores: Callable[[list[SampledTokens]], list[SampledTokens]] | None = (
            None  # of prompts in the same step
        )
        self._rows = rows
        self._logprobs = logprobs
        # Into pinned memory; `read` waits for this copy only, not for work launched later.
        self._copy = ids.to("cpu", non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if ids.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> list[SampledTokens]:
        """One SampledTokens a row, in row order, prompts that are only scored included. Waits; raises MemoryError."""
        if self._event is not None:
            self._event.synchronize()
        with as_memory_error():  # log probabilities are read from the device
            ids: list[int] = self._copy.tolist()
            sampled = accept_drafts(ids, [FAULTS.get(one) for one in ids], self._rows, self._logprobs)
            return sampled if self.add_scores is None else self.add_scores(sampled)


def sample_ids(logits: Tensor, rows: Sequence[SamplingRow], masks: Masks | None) -> PendingSamples:
    """Sample one id from each line. logits [lines, vocab] may be overwritten."""
    logits = logits.float()
    finite = torch.isfinite(logits.sum(-1))
    logprobs = _RawLogprobs(logits, rows)
    for row in rows:
        if adjusts_logits(row.sampling):
            adjust_logits(logits[row.lines], row.sampling, row.drafts)
    if masks is not None:
        apply_masks(logits, masks, [row.first_line for row in rows])
    maxima, ids = first_max(logits)
    has_allowed = maxima != -torch.inf
    _replace_sampled(logits, maxima, ids, rows)
    ids = torch.where(finite, torch.where(has_allowed, ids, NO_ALLOWED_ID), NOT_FINITE)
    return PendingSamples(ids, rows, logprobs)


def is_greedy(sampling: RowSampling) -> bool:
    """Whether only the most likely id is needed: no temperature, no adjustments and no log probabilities."""
    return takes_maximum(sampling) and not sampling.banned_ids


def takes_maximum(sampling: RowSampling) -> bool:
    """Whether only the most likely id is needed that is not banned."""
    params = sampling.params
    return params.temperature <= 0 and params.num_logprobs is None and not adjusts_scores(params)


def has_banned(ids: Tensor, rows: Sequence[SamplingRow]) -> bool:
    """Whether a row has an id that is banned in it; waits for the ids [lines]."""
    return any(
        not set(row.sampling.banned_ids).isdisjoint(ids[row.lines].tolist()) for row in rows if row.sampling.banned_ids
    )


def greedy_ids(logits: Tensor) -> Tensor:
    """[lines, vocab] -> the most likely id of each line, NOT_FINITE where the line is not finite. int64 [lines].

    Never waits for the device; the same ids as `sample_ids` gives rows for which `is_greedy` holds, without masks.
    """
    is_finite = torch.isfinite(logits.sum(-1, dtype=torch.float32))
    return torch.where(is_finite, first_max(logits)[1], NOT_FINITE)


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on seed and index only: splitmix64 of the seed's hash plus the index."""
    mask = (1 << 64) - 1
    word = (_mix(seed & mask) + (index + 1) * 0x9E3779B97F4A7C15) & mask
    return (_mix(word) >> 11) * 2.0**-53


def _mix(word: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    return word ^ (word >> 31)


@dataclass(frozen=True, slots=True)
class SampledLines:
    """Lines of logits with their sampling settings and random numbers."""

    logits: Tensor  # [lines, vocab]
    maxima: Tensor  # [lines, 1], the greatest logit of each line
    settings: Tensor  # [lines, 4]: temperature, top_p, top_k, min_p
    uniforms: Tensor  # [lines] in [0, 1), float64
    host_settings: npt.NDArray[np.float32]  # the settings, readable without synchronizing

    def select(self, which: list[int]) -> "SampledLines":
        """These lines, copied."""
        at = to_device(which, self.logits.device)
        return SampledLines(
            self.logits[at], self.maxima[at], self.settings[at], self.uniforms[at], self.host_settings[which]
        )

    @property
    def max_top_k(self) -> float:
        """The greatest top_k; infinite if a line has none."""
        top_k = self.host_settings[:, 2]
        return float(top_k.max()) if bool(top_k.all()) else math.inf


def line_settings(
    rows: Sequence[SamplingRow], num_lines: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Settings [lines, 4] (temperature, top_p, top_k, min_p) and random numbers [lines] of each line.

    Lines that are greedy or not sampled have temperature 0.
    """
    settings, uniforms = np.zeros((num_lines, 4), dtype=np.float32), np.zeros(num_lines)
    for row in rows:
        sampling = row.sampling.params
        if sampling.temperature > 0:
            for j in range(1 + len(row.drafts)):
                line = row.first_line + j
                settings[line] = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
                uniforms[line] = uniform(row.sampling.seed, len(row.sampling.written_ids) + j)
    return settings, uniforms


def is_truncated(settings: Any) -> Any:
    """Lines whose distribution top_p or top_k truncate. [lines, 4] -> bool [lines], of numpy or of torch."""
    return (settings[:, 0] > 0) & ((settings[:, 1] < 1) | (settings[:, 2] > 0))


def _replace_sampled(logits: Tensor, maxima: Tensor, ids: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Replace the greedy ids of lines with a temperature by sampled ones. Overwrites the logits."""
    settings, uniforms = line_settings(rows, logits.shape[0])
    truncated = is_truncated(settings)
    device = logits.device
    on_device = to_device(settings, device), to_device(uniforms, device)
    lines = SampledLines(logits, maxima.unsqueeze(1), *on_device, settings)
    for which, sample in ((truncated, _sample_truncated), ((settings[:, 0] > 0) & ~truncated, sample_full)):
        if which.all():
            ids.copy_(sample(lines))
        elif which.any():
            indices = np.flatnonzero(which).tolist()
            ids[to_device(indices, device)] = sample(lines.select(indices))


def sample_full(lines: SampledLines) -> Tensor:
    """Inverse CDF over the whole vocabulary, ordered by id. Overwrites the logits. [lines]."""
    temperature, min_p = lines.settings[:, 0:1], lines.settings[:, 3:4]
    weights = lines.logits.sub_(lines.maxima).div_(temperature).exp_()
    if lines.host_settings[:, 3].any():
        weights.masked_fill_(weights < min_p, 0.0)
    return inverse_cdf(weights, lines.uniforms)


def _sample_truncated(lines: SampledLines) -> Tensor:
    """Inverse CDF over the ids that top_k, top_p and min_p keep, by descending probability. [lines]."""
    vocab = lines.logits.shape[1]
    chosen = torch.zeros_like(lines.uniforms, dtype=torch.int64)
    indices = torch.arange(len(chosen), device=chosen.device)
    for num_candidates in NUM_CANDIDATES:
        if num_candidates >= vocab:
            break
        chosen[indices], covered = sample_candidates(lines, num_candidates)
        if lines.max_top_k <= num_candidates:
            return chosen
        rest = torch.nonzero(~covered).flatten().tolist()
        if not rest:
            return chosen
        indices, lines = indices[rest], lines.select(rest)
    # A few lines at a time: a full sort takes ten times the memory of the logits.
    for start in range(0, len(indices), MAX_SORTED_LINES):
        some = list(range(start, min(start + MAX_SORTED_LINES, len(indices))))
        chosen[indices[some]] = sample_candidates(lines.select(some), vocab)[0]
    return chosen


def sample_candidates(lines: SampledLines, num_candidates: int) -> tuple[Tensor, Tensor]:
    """Ids sampled from the most likely candidates, and for which lines these include every id that truncation keeps.

    As in transformers: top_k first, then top_p of the rest (an id stays if those before it sum to less than top_p),
    then min_p relative to the greatest probability.
    """
    temperature, top_p, top_k, min_p = (lines.settings[:, i : i + 1] for i in range(4))
    order = torch.arange(num_candidates, device=top_k.device)
    found, ids = top_values(lines.logits, num_candidates)
    weights = ((found - lines.maxima) / temperature).exp_()
    weights.masked_fill_((top_k > 0) & (order >= top_k), 0.0)
    whole = weights.sum(-1, keepdim=True)
    if lines.max_top_k == math.inf:
        everything = ((lines.logits - lines.maxima) / temperature).exp_().sum(-1, keepdim=True)
        whole = torch.where(top_k > 0, whole, everything)
    before = weights.cumsum(-1) - weights
    in_top_p = (before < top_p * whole) | (order == 0)
    covered = ((top_k > 0) & (top_k <= num_candidates)) | ~in_top_p[:, -1:]
    weights.masked_fill_(~in_top_p | (weights < min_p), 0.0)
    at = inverse_cdf(weights, lines.uniforms)
    return ids.gather(1, at.unsqueeze(1)).squeeze(1), covered.squeeze(1)


def accept_drafts(
    ids: Sequence[int],
    faults: Sequence[str | None],
    rows: Sequence[SamplingRow],
    logprobs: "_RawLogprobs | None" = None,  # if any row requests them
) -> list[SampledTokens]:
    """Verify drafts: each row keeps its sampled ids up to the first that differs from the draft."""
    results = []
    for row in rows:
        line = row.first_line
        for draft in row.drafts:
            if faults[line] or ids[line] != draft:
                break
            line += 1
        written = tuple(ids[row.first_line : line + 1])
        if faults[line] and line > row.first_line:
            written = written[:-1]  # accepted drafts are kept; the next step meets the fault again
        elif faults[line]:
            results.append(SampledTokens(fault=faults[line]))
            continue
        results.append(SampledTokens(written, logprobs.of(row, written) if logprobs else None))
    return results


class _RawLogprobs:
    """Log probabilities of the lines whose requests ask for them, from the unmodified logits."""

    def __init__(self, logits: Tensor, rows: Sequence[SamplingRow]) -> None:
        requesting = [row for row in rows if row.sampling.params.num_logprobs is not None]
        self._index: dict[int, int] = {}
        for row in requesting:
            for line in range(*row.lines.indices(logits.shape[0])):
                self._index[line] = len(self._index)
        if not requesting:
            return
        # A copy: penalties, masks and sampling modify the logits in place.
        self._raw = logits[list(self._index)]
        self._totals = torch.logsumexp(self._raw, -1, keepdim=True)
        most = max(row.sampling.params.num_logprobs or 0 for row in requesting)
        if most:
            values, ids = top_values(self._raw, most)
            self._top_values, self._top_ids = (values - self._totals).tolist(), ids.tolist()

    def of(self, row: SamplingRow, written: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
        """One entry a written id, or None where the request asks for none."""
        count = row.sampling.params.num_logprobs
        if count is None:
            return None
        entries = []
        for j, token_id in enumerate(written):
            index = self._index[row.first_line + j]
            top = zip(self._top_ids[index][:count], self._top_values[index][:count], strict=True) if count else ()
            logprob = float(self._raw[index, token_id] - self._totals[index, 0])
            entries.append(TokenLogprob(token_id, logprob, tuple(top)))
        return tuple(entries)
