"""Compiled constraints and the bit masks of the ids that they allow next; independent of dialects.

llguidance compiles a grammar to a lexer and an Earley parser that walk a trie of the vocabulary.
"""

import re
import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from server.byte_cache import ByteCache
from server.errors import ConstraintFailed
from server.messages import GRAMMAR_LIMITS, MAX_SOURCE, Constraint

CACHE_BYTES = 256 * 1024 * 1024  # of compiled grammars
# Bytes of a compiled grammar; at most 270 a character and 0.2 MB were measured: enums, chains of rules, many
# properties, patterns. Repetitions take no memory of their own.
BYTES_PER_CHARACTER = 400
BYTES_PER_GRAMMAR = 200_000
NEW_MASK_S = 0.004  # assumed for a grammar of which no mask was computed yet
TIMED_ALONE_S = 0.001  # grammars whose masks are expected to take longer are computed, and timed, one by one

LIMITS = LLParserLimits(**GRAMMAR_LIMITS, verbose_errors=False)  # type: ignore[arg-type]
EXCERPT = re.compile(r"; following special tokens.*|^ *(?:\d+ \|.*|\^) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Masks:
    """One mask for each position at which a constrained row samples.

    Bit `id % 32` of word `id // 32` is set where `id` is allowed. Ids beyond the last word are not allowed.
    `owners[m]` is the row of mask m: its index among the rows with logits. A row with d drafts has d + 1 consecutive
    masks: before the first draft, ..., after the last. Unconstrained rows have none.
    """

    owners: tuple[int, ...]
    words: NDArray[np.int32]  # [masks, ceil(vocab / 32)]


@dataclass(slots=True)
class GrammarTime:
    """Seconds that one id of a grammar took last, shared by all its matchers: a mask, and advancing over the id."""

    mask_s: float = NEW_MASK_S
    advance_s: float = 0.0


class GrammarMatcher:
    """One sequence's constraint at its current position."""

    def __init__(self, matcher: LLMatcher, time_taken: GrammarTime) -> None:
        self.matcher = matcher
        self.time_taken = time_taken

    @property
    def mask_s(self) -> float:
        """Expected seconds of its next mask and id: those of the last; NEW_MASK_S for a new grammar."""
        return self.time_taken.mask_s + self.time_taken.advance_s

    def copy(self) -> "GrammarMatcher":
        """A matcher in the same state, which advances on its own."""
        return GrammarMatcher(self.matcher.deep_copy(), self.time_taken)

    def forced(self) -> list[int]:
        """The ids that must come next, as the tokenizer would encode their text; often empty.

        The last forced bytes are left out where a longer token might begin with them.
        """
        return [] if self.matcher.is_stopped() else list(self.matcher.compute_ff_tokens())

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these ids, in order, may come next. Does not advance."""
        return self.matcher.validate_tokens(list(token_ids))

    def advance(self, token_ids: Sequence[int]) -> bool:
        """Advance over written ids; False, without advancing, if one of them is not allowed.

        Raises ConstraintFailed if the grammar has become too complex, now or in an earlier call.
        """
        ids, began_s = list(token_ids), time.perf_counter()
        num_advanced = self.matcher.try_consume_tokens(ids)
        self.time_taken.advance_s = (time.perf_counter() - began_s) / max(1, len(ids))
        fault = self.matcher.get_error()
        if fault:
            raise ConstraintFailed(f"the grammar is too complex: {_one_line(fault)}")
        if num_advanced < len(ids):
            self.matcher.rollback(num_advanced)
        return num_advanced == len(ids)

    def is_over(self) -> bool:
        """Whether only a stop id can follow."""
        return self.matcher.is_stopped()


class LlguidanceGrammars:
    """Compiles constraints and computes masks for one vocabulary.

    `tokenizer_json` is the content of the checkpoint's file. `vocab_size` is the model's, which may exceed the
    tokenizer's. The `stop_ids` are allowed wherever a grammar is complete. Construction takes about a second.
    """

    def __init__(
        self, tokenizer_json: bytes, vocab_size: int, stop_ids: Sequence[int], num_threads: int | None = None
    ) -> None:
        tokenizer = _rename_added_tokens(tokenizer_json)
        self._tokenizer = LLTokenizer(
            tokenizer, n_vocab=vocab_size, eos_token=[token_id for token_id in stop_ids if token_id < vocab_size]
        )
        self._words = (vocab_size + 31) // 32
        self._executor = LLExecutor(num_threads)
        self._compiled: ByteCache[Constraint, GrammarMatcher] = ByteCache(CACHE_BYTES, _num_bytes)

    def compile(self, constraint: Constraint) -> GrammarMatcher:
        """A matcher at the start of the constraint; cached constraints cost a copy. Raises ConstraintFailed."""
        return self._compiled.get(constraint, lambda: self._compile(constraint)).copy()

    def _compile(self, constraint: Constraint) -> GrammarMatcher:
        if len(constraint.source) > MAX_SOURCE:
            raise ConstraintFailed(f"the grammar is {len(constraint.source)} characters long, at most {MAX_SOURCE}")
        try:
            grammar = _grammar(constraint)
        except ValueError as error:  # not even JSON
            raise ConstraintFailed(f"the grammar cannot be read: {_one_line(str(error))}") from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            # What exceeds the limits in the first mask, or in what comes before it, is refused before the reply begins.
            matcher.compute_bitmask()
            matcher.compute_ff_tokens()
        if matcher.is_error():
            raise ConstraintFailed(f"the grammar does not compile: {_one_line(matcher.get_error())}")
        return GrammarMatcher(matcher, GrammarTime())

    def masks(
        self, matchers: Sequence[tuple[GrammarMatcher, Sequence[int]] | None], extra: Sequence[int | None]
    ) -> Masks | None:
        """Masks for a batch, as `ports.Grammars.masks`; None if no row is constrained."""
        entries: list[tuple[GrammarMatcher, int, list[int]]] = []  # matcher, first mask, drafts
        owners: list[int] = []
        extra_ids: list[tuple[int, int]] = []  # mask, additional id that it allows
        for row, constrained in enumerate(matchers):
            if constrained is None:
                continue
            matcher, drafts, first = constrained[0], list(constrained[1]), len(owners)
            entries.append((matcher, first, drafts))
            token_id = extra[row]
            if token_id is not None:
                extra_ids.append((first, token_id))
            owners += [row] * (1 + len(drafts))
        if not owners:
            return None
        # Masks after a draft that the grammar rejects are not computed: ids sampled there are discarded.
        words = np.full((len(owners), self._words), -1, dtype=np.int32)
        self._compute_timed(entries, words)
        for mask, token_id in extra_ids:
            words.view(np.uint32)[mask, token_id // 32] |= np.uint32(1 << (token_id % 32))
        return Masks(tuple(owners), words)

    def _compute_timed(self, entries: list[tuple[GrammarMatcher, int, list[int]]], words: NDArray[np.int32]) -> None:
        """Compute the masks of fast grammars together, those of each slow one by themselves, and note their times."""
        groups = defaultdict(list)
        for entry in entries:
            own = entry[0].time_taken
            groups[id(own) if own.mask_s > TIMED_ALONE_S else 0].append(entry)
        for group in groups.values():
            began_s = time.perf_counter()
            self._compute(group, words)
            seconds = (time.perf_counter() - began_s) / sum(1 + len(drafts) for _, _, drafts in group)
            for matcher, _, _ in group:
                matcher.time_taken.mask_s = seconds

    def _compute(self, entries: list[tuple[GrammarMatcher, int, list[int]]], words: NDArray[np.int32]) -> None:
        plain = [(matcher.matcher, first) for matcher, first, drafts in entries if not drafts]
        drafted = [(matcher.matcher, first, drafts) for matcher, first, drafts in entries if drafts]
        address, stride = words.ctypes.data, self._words * 4
        if plain:
            self._executor.unsafe_compute_mask_ptr(plain, address, stride, len(words))
        if drafted:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(drafted, address, stride, len(words))


def _rename_added_tokens(tokenizer: bytes) -> str:
    """A tokenizer.json whose added tokens have names that occur in no text; ids are unchanged.

    llguidance encodes text that a grammar forces with the tokenizer. An enum with "<think>" in it would be encoded as
    the control token, the only id then allowed, and rejected because that token is not text.
    """
    parts = msgspec.json.decode(tokenizer, type=dict[str, msgspec.Raw])
    added = msgspec.json.decode(parts["added_tokens"], type=list[dict[str, Any]])
    model, secret = bytes(parts["model"]), secrets.token_hex(8)
    for token in added:
        spelled, name = msgspec.json.encode(token["content"]), f"\U0010ffff{secret}.{token['id']}"
        if spelled in model:  # some vocabularies also list their added tokens
            model = re.sub(re.escape(spelled) + rb"(?=\s*:)", msgspec.json.encode(name), model)
        token |= {"content": name, "special": True}
    named = {"added_tokens": added, "model": msgspec.Raw(model), "post_processor": None}
    return msgspec.json.encode(parts | named).decode()


def _num_bytes(constraint: Constraint, _: GrammarMatcher) -> int:
    return BYTES_PER_GRAMMAR + BYTES_PER_CHARACTER * len(constraint.source)


def _grammar(constraint: Constraint) -> str:
    return LLMatcher.grammar_from_lark(constraint.source)


def _one_line(text: str) -> str:
    """An error of llguidance without the names of the added tokens and without lines of the grammar."""
    return " ".join(EXCERPT.sub("", text).split())[:500]
