"""Sampling on static buffers, to be captured as CUDA graphs after the decode step (`decode_graphs.py`).

One id a row, without drafts, penalties, biases and log probabilities, and with a top_k of at most MAX_TOP_K where the
distribution is truncated. Inputs are copied to the device as one int32 buffer:

    [ random numbers | settings, 4 each | mask words ]      each part is sized for the largest batch

Gives the same ids as `sampler.sample_ids`, which samples all other rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.model.device import StagedBuffer
from server.model.sampling.grammar import Masks
from server.model.sampling.penalties import adjusts_scores, unpack_masks
from server.model.sampling.sampler import (
    NO_ALLOWED_ID,
    NOT_FINITE,
    NUM_CANDIDATES,
    SampledLines,
    SamplingRow,
    is_truncated,
    line_settings,
    sample_candidates,
    sample_full,
)
from server.model.sampling.vocab_search import first_max

NUM_SETTINGS = 4
MAX_TOP_K = NUM_CANDIDATES[0]
WORST_CASE_SETTINGS = np.array([[1.0, 1.0, MAX_TOP_K, 1.0]], dtype=np.float32)  # bounds for the settings of any line


@dataclass(frozen=True, slots=True)
class SamplingVariant:
    """What some row of a step needs besides its greedy id; each combination is a graph of its own."""

    truncated: bool = False  # top_k, optionally with top_p and min_p
    full: bool = False  # sampling from the whole vocabulary
    masked: bool = False  # a grammar mask or banned ids


class GraphSampler:
    """Samples up to `max_rows` rows."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._words = -(-vocab_size // 32)
        sizes = 2 * max_rows, NUM_SETTINGS * max_rows, self._words * max_rows  # a random number is a float64
        self._inputs = StagedBuffer(sizes, device)

    def stage(self, rows: Sequence[SamplingRow], num_lines: int, masks: Masks | None) -> SamplingVariant | None:
        """Copy a step's settings into the buffers; returns its variant; None if `sampler.sample_ids` must sample it."""
        if self._vocab_size <= MAX_TOP_K or not all(_is_plain(row) for row in rows):
            return None
        settings, uniforms = line_settings(rows, num_lines)
        truncated, sampled = is_truncated(settings), settings[:, 0] > 0
        if bool((settings[truncated, 2] < 1).any()) or bool((settings[truncated, 2] > MAX_TOP_K).any()):
            return None  # MAX_TOP_K candidates may not be enough
        own_uniforms, own_settings, own_words = self._inputs.begin()
        own_uniforms.view(np.float64)[:num_lines] = uniforms
        own_settings.view(np.float32).reshape(-1, NUM_SETTINGS)[:num_lines] = settings
        num_words = 0
        is_masked = masks is not None or any(row.sampling.banned_ids for row in rows)
        if is_masked:
            words = own_words.reshape(-1, self._words)[:num_lines]
            self._write_masks(words, rows, masks)
            num_words = words.size
        self._inputs.upload(num_words)
        return SamplingVariant(bool(truncated.any()), bool((sampled & ~truncated).any()), is_masked)

    def _write_masks(self, words: NDArray[np.int32], rows: Sequence[SamplingRow], masks: Masks | None) -> None:
        words[:] = -1
        if masks is not None:
            lines = [rows[owner].first_line for owner in masks.owners]
            num_words = min(self._words, masks.words.shape[1])
            words[lines] = 0  # ids beyond the mask's words are not allowed
            words[lines, :num_words] = masks.words[:, :num_words]
        bits = words.view(np.uint32)
        for row in rows:
            for token_id in row.sampling.banned_ids:
                bits[row.first_line, token_id // 32] &= ~np.uint32(1 << token_id % 32)

    def sample(self, logits: Tensor, variant: SamplingVariant) -> Tensor:
        """logits [lines, vocab] -> ids [lines], int64. No shape and no address depends on the rows."""
        num_lines = logits.shape[0]
        uniforms, settings, words = self._inputs.parts
        own = settings.view(torch.float32).view(-1, NUM_SETTINGS)[:num_lines]
        logits = logits.to(torch.float32, copy=True)
        finite = torch.isfinite(logits.sum(-1))
        if variant.masked:
            logits.masked_fill_(~unpack_masks(words.view(-1, self._words)[:num_lines], self._vocab_size), -torch.inf)
        maxima, ids = first_max(logits)
        has_allowed = maxima != -torch.inf
        lines = SampledLines(
            logits, maxima.unsqueeze(1), own, uniforms.view(torch.float64)[:num_lines], WORST_CASE_SETTINGS
        )
        truncated = is_truncated(own)
        if variant.truncated:
            ids = torch.where(truncated, sample_candidates(lines, MAX_TOP_K)[0], ids)
        if variant.full:  # overwrites the logits
            ids = torch.where((own[:, 0] > 0) & ~truncated, sample_full(lines), ids)
        return torch.where(finite, torch.where(has_allowed, ids, NO_ALLOWED_ID), NOT_FINITE)


def _is_plain(row: SamplingRow) -> bool:
    sampling = row.sampling.params
    return not row.drafts and sampling.num_logprobs is None and not adjusts_scores(sampling)
