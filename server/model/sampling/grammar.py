"""Compiled constraints and the bit masks of the ids that they allow next; independent of dialects.

llguidance compiles a grammar to a lexer and an Earley parser that walk a trie of the vocabulary.
"""

import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from server.errors import ConstraintFailed
from server.messages import Constraint

MAX_CACHED = 256  # compiled grammars
MAX_SOURCE = 4 * 1024 * 1024  # characters; 128 tools with schemas of reasonable size stay well below

# Bounds for hostile grammars: some 20 ms to compile, 15 ms a mask, 100 MB of lexer states. The step limits are a tenth
# of llguidance's defaults, with which an ambiguous grammar took half a second a mask before it was rejected. They
# suffice for 128 tools, or for one with a thousand optional arguments.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=6_000,
    max_items_in_row=4_000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
    verbose_errors=False,  # error texts are sent to the client
)


@dataclass(frozen=True, slots=True)
class Masks:
    """One mask for each position at which a constrained row samples.

    Bit `id % 32` of word `id // 32` is set where `id` is allowed. Ids beyond the last word are not allowed.
    `owners[m]` is the row of mask m: its index among the rows with logits. A row with d drafts has d + 1 consecutive
    masks: before the first draft, ..., after the last. Unconstrained rows have none.
    """

    owners: tuple[int, ...]
    words: NDArray[np.int32]  # [masks, ceil(vocab / 32)]


class GrammarMatcher:
    """One sequence's constraint at its current position."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

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
        ids = list(token_ids)
        advanced = self.matcher.validate_tokens(ids) == len(ids) and self.matcher.consume_tokens(ids)
        fault = self.matcher.get_error()
        if fault:
            raise ConstraintFailed(f"the grammar is too complex: {_one_line(fault)}")
        return advanced

    def is_over(self) -> bool:
        """Whether only a stop id can follow."""
        return self.matcher.is_stopped()


class LlguidanceGrammars:
    """Compiles constraints and computes masks for one vocabulary.

    `tokenizer_file` is the checkpoint's tokenizer.json. `vocab_size` is the model's, which may exceed the tokenizer's.
    The `stop_ids` are allowed wherever a grammar is complete. Construction takes about a second.
    """

    def __init__(
        self, tokenizer_file: Path, vocab_size: int, stop_ids: Sequence[int], num_threads: int | None = None
    ) -> None:
        tokenizer = _rename_added_tokens(tokenizer_file.read_bytes())
        self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(stop_ids))
        self._words = (vocab_size + 31) // 32
        self._executor = LLExecutor(num_threads)
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def compile(self, constraint: Constraint) -> GrammarMatcher:
        """A matcher at the start of the constraint; cached constraints cost a copy. Raises ConstraintFailed."""
        with self._lock:
            compiled = self._compiled.get(constraint)
            if compiled is not None:
                self._compiled.move_to_end(constraint)
        if compiled is None:
            compiled = self._compile(constraint)
            with self._lock:
                self._compiled[constraint] = compiled
                while len(self._compiled) > MAX_CACHED:
                    self._compiled.popitem(last=False)
        return GrammarMatcher(compiled.deep_copy())

    def _compile(self, constraint: Constraint) -> LLMatcher:
        if len(constraint.source) > MAX_SOURCE:
            raise ConstraintFailed(f"the grammar is {len(constraint.source)} characters long, at most {MAX_SOURCE}")
        try:
            grammar = _grammar(constraint)
        except ValueError as error:  # not even JSON
            raise ConstraintFailed(f"the grammar cannot be read: {_one_line(str(error))}") from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise ConstraintFailed(f"the grammar does not compile: {_one_line(matcher.get_error())}")
        return matcher

    def masks(
        self, matchers: Sequence[tuple[GrammarMatcher, Sequence[int]] | None], extra: Sequence[int | None]
    ) -> Masks | None:
        """Masks for a batch, as `ports.Grammars.masks`; None if no row is constrained."""
        plain: list[tuple[LLMatcher, int]] = []
        drafted: list[tuple[LLMatcher, int, list[int]]] = []
        owners: list[int] = []
        extra_ids: list[tuple[int, int]] = []  # mask, additional id that it allows
        for row, constrained in enumerate(matchers):
            if constrained is None:
                continue
            matcher, drafts, first = constrained[0].matcher, list(constrained[1]), len(owners)
            if drafts:
                drafted.append((matcher, first, drafts))
            else:
                plain.append((matcher, first))
            token_id = extra[row]
            if token_id is not None:
                extra_ids.append((first, token_id))
            owners += [row] * (1 + len(drafts))
        if not owners:
            return None
        # Masks after a draft that the grammar rejects are not computed: ids sampled there are discarded.
        words = np.full((len(owners), self._words), -1, dtype=np.int32)
        address, stride = words.ctypes.data, self._words * 4
        if plain:
            self._executor.unsafe_compute_mask_ptr(plain, address, stride, len(owners))
        if drafted:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(drafted, address, stride, len(owners))
        for mask, token_id in extra_ids:
            words.view(np.uint32)[mask, token_id // 32] |= np.uint32(1 << (token_id % 32))
        return Masks(tuple(owners), words)


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


def _grammar(constraint: Constraint) -> str:
    return LLMatcher.grammar_from_lark(constraint.source)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
