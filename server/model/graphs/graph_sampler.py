"""Draws on buffers that never move, to be recorded behind the step whose logits they draw from (`graphs.py`).

One id a row: without drafts, penalties, biases and log probabilities, and with at most as many candidates as one look
takes. What changes from step to step goes to the device as one line of int32:

    [ numbers | settings, 4 each | words of the masks ]      each part has room for the largest batch

The same ids as `sampler.draw_ids` gives; every other draw is left to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.model.sampling.grammar import Masks
from server.model.sampling.penalties import changes_scores, unpack
from server.model.sampling.sampler import (
    NONE_POSSIBLE,
    NOT_FINITE,
    NUM_CANDIDATES,
    DrawRow,
    Lines,
    are_cut,
    draw_by_id,
    draw_from,
    lay_out,
)
from server.model.sampling.vocab_search import first_peak

SETTINGS = 4
MOST_K = NUM_CANDIDATES[0]
HARDEST = np.array([[1.0, 1.0, MOST_K, 1.0]], dtype=np.float32)  # what the settings of any line may be


@dataclass(frozen=True, slots=True)
class SamplingVariant:
    """What some row of a step needs besides its greedy_ids id; each combination is a recording of its own."""

    cut: bool = False  # top_k, perhaps with top_p and min_p
    whole: bool = False  # a draw from the whole vocabulary
    masked: bool = False  # a grammar, or ids that are banned


class StaticDraw:
    """Draws for up to `most_rows` rows."""

    def __init__(self, most_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._words = -(-vocab_size // 32)
        self._parts = np.cumsum([2 * most_rows, SETTINGS * most_rows])  # a number is a float64
        length = int(self._parts[-1]) + most_rows * self._words
        # Pinned and two of them, for the reasons of `graphs.StaticDecode`.
        self._hosts = [torch.zeros(length, dtype=torch.int32, pin_memory=device.type == "cuda") for _ in range(2)]
        self._line = torch.zeros(length, dtype=torch.int32, device=device)

    def fill(self, rows: Sequence[DrawRow], num_lines: int, masks: Masks | None) -> SamplingVariant | None:
        """Write the draws of a step into the buffers: what they need, or None if they are not for this class."""
        if self._vocab_size <= MOST_K or not all(_is_plain(row) for row in rows):
            return None
        settings, numbers = lay_out(rows, num_lines)
        cut, drawn = are_cut(settings), settings[:, 0] > 0
        if bool((settings[cut, 2] < 1).any()) or bool((settings[cut, 2] > MOST_K).any()):
            return None  # one look may not be enough
        self._hosts.reverse()
        host = self._hosts[0].numpy()
        own_numbers, own_settings, own_words = np.split(host, self._parts)
        own_numbers.view(np.float64)[:num_lines] = numbers
        own_settings.view(np.float32).reshape(-1, SETTINGS)[:num_lines] = settings
        used = int(self._parts[-1])
        is_masked = masks is not None or any(row.draw.banned_ids for row in rows)
        if is_masked:
            words = own_words.reshape(-1, self._words)[:num_lines]
            self._write_masks(words, rows, masks)
            used += words.size
        self._line[:used].copy_(self._hosts[0][:used], non_blocking=True)
        return SamplingVariant(bool(cut.any()), bool((drawn & ~cut).any()), is_masked)

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

    def compute(self, logits: Tensor, ways: SamplingVariant) -> Tensor:
        """logits [lines, vocab] -> ids [lines], int64. No shape and no address in it depends on the rows."""
        num_lines = logits.shape[0]
        numbers, settings, words = torch.tensor_split(self._line, self._parts.tolist())
        own = settings.view(torch.float32).view(-1, SETTINGS)[:num_lines]
        logits = logits.to(torch.float32, copy=True)
        finite = torch.isfinite(logits.sum(-1))
        if ways.masked:
            logits.masked_fill_(~unpack(words.view(-1, self._words)[:num_lines], self._vocab_size), -torch.inf)
        peaks, ids = first_peak(logits)
        possible = peaks != -torch.inf
        lines = Lines(logits, peaks.unsqueeze(1), own, numbers.view(torch.float64)[:num_lines], HARDEST)
        drawn, cut = own[:, 0] > 0, (own[:, 1] < 1) | (own[:, 2] > 0)
        if ways.cut:
            ids = torch.where(drawn & cut, draw_from(lines, MOST_K)[0], ids)
        if ways.whole:  # overwrites the logits
            ids = torch.where(drawn & ~cut, draw_by_id(lines), ids)
        return torch.where(finite, torch.where(possible, ids, NONE_POSSIBLE), NOT_FINITE)


def _is_plain(row: DrawRow) -> bool:
    sampling = row.draw.sampling
    return not row.drafts and sampling.num_logprobs is None and not changes_scores(sampling)
