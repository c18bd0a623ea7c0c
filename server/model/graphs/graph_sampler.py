"""Draws on buffers that never move, to be recorded behind the step whose logits they draw from (`graphs.py`).

One id a row: without drafts, penalties, biases and log probabilities, and with at most as many candidates as one look
takes. What changes from step to step goes to the device as one line of int32:

    [ uniforms | settings, 4 each | words of the masks ]      each part has room for the largest batch

The same ids as `sampler.draw_ids` gives; every other draw is left to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.model.sampling.grammar import Masks
from server.model.sampling.penalties import adjusts_scores, unpack_masks
from server.model.sampling.sampler import (
    NO_ALLOWED_ID,
    NOT_FINITE,
    NUM_CANDIDATES,
    DrawRow,
    SampledLines,
    is_truncated,
    line_settings,
    sample_candidates,
    sample_full,
)
from server.model.sampling.vocab_search import first_max

NUM_SETTINGS = 4
MAX_TOP_K = NUM_CANDIDATES[0]
WORST_CASE_SETTINGS = np.array([[1.0, 1.0, MAX_TOP_K, 1.0]], dtype=np.float32)  # what the settings of any line may be


@dataclass(frozen=True, slots=True)
class SamplingVariant:
    """What some row of a step needs besides its greedy_ids id; each combination is a recording of its own."""

    truncated: bool = False  # top_k, perhaps with top_p and min_p
    full: bool = False  # a draw from the full vocabulary
    masked: bool = False  # a grammar, or ids that are banned


class GraphSampler:
    """Draws for up to `most_rows` rows."""

    def __init__(self, most_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._words = -(-vocab_size // 32)
        self._bounds = np.cumsum([2 * most_rows, NUM_SETTINGS * most_rows])  # a number is a float64
        length = int(self._bounds[-1]) + most_rows * self._words
        # Pinned and two of them, for the reasons of `graphs.StaticDecode`.
        self._staging = [torch.zeros(length, dtype=torch.int32, pin_memory=device.type == "cuda") for _ in range(2)]
        self._buffer = torch.zeros(length, dtype=torch.int32, device=device)

    def stage(self, rows: Sequence[DrawRow], num_lines: int, masks: Masks | None) -> SamplingVariant | None:
        """Write the draws of a step into the buffers: what they need, or None if they are not for this class."""
        if self._vocab_size <= MAX_TOP_K or not all(_is_plain(row) for row in rows):
            return None
        settings, uniforms = line_settings(rows, num_lines)
        truncated, drawn = is_truncated(settings), settings[:, 0] > 0
        if bool((settings[truncated, 2] < 1).any()) or bool((settings[truncated, 2] > MAX_TOP_K).any()):
            return None  # one look may not be enough
        self._staging.reverse()
        host = self._staging[0].numpy()
        own_numbers, own_settings, own_words = np.split(host, self._bounds)
        own_numbers.view(np.float64)[:num_lines] = uniforms
        own_settings.view(np.float32).reshape(-1, NUM_SETTINGS)[:num_lines] = settings
        used = int(self._bounds[-1])
        is_masked = masks is not None or any(row.draw.banned_ids for row in rows)
        if is_masked:
            words = own_words.reshape(-1, self._words)[:num_lines]
            self._write_masks(words, rows, masks)
            used += words.size
        self._buffer[:used].copy_(self._staging[0][:used], non_blocking=True)
        return SamplingVariant(bool(truncated.any()), bool((drawn & ~truncated).any()), is_masked)

    def _write_masks(self, words: NDArray[np.int32], rows: Sequence[DrawRow], masks: Masks | None) -> None:
        words[:] = -1
        if masks is not None:
            lines, known = [rows[owner].first_line for owner in masks.owners], min(self._words, masks.words.shape[1])
            words[lines] = 0  # ids beyond the mask's words are not allowed
            words[lines, :known] = masks.words[:, :known]
        bits = words.view(np.uint32)
        for row in rows:
            for token_id in row.draw.banned_ids:
                bits[row.first_line, token_id // 32] &= ~np.uint32(1 << token_id % 32)

    def sample(self, logits: Tensor, variant: SamplingVariant) -> Tensor:
        """logits [lines, vocab] -> ids [lines], int64. No shape and no address in it depends on the rows."""
        num_lines = logits.shape[0]
        uniforms, settings, words = torch.tensor_split(self._buffer, self._bounds.tolist())
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
        drawn, truncated = own[:, 0] > 0, (own[:, 1] < 1) | (own[:, 2] > 0)
        if variant.truncated:
            ids = torch.where(drawn & truncated, sample_candidates(lines, MAX_TOP_K)[0], ids)
        if variant.full:  # overwrites the logits
            ids = torch.where(drawn & ~truncated, sample_full(lines), ids)
        return torch.where(finite, torch.where(has_allowed, ids, NO_ALLOWED_ID), NOT_FINITE)


def _is_plain(row: DrawRow) -> bool:
    sampling = row.draw.sampling
    return not row.drafts and sampling.num_logprobs is None and not adjusts_scores(sampling)
