"""A model whose next id is a pure function of the ids it finds in its paged memory, and a constraint to go with it.

Any slip in block tables, slots, positions or counts changes what it writes, or is caught on the spot.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from server.engine.blocks import Blocks
from server.engine.budget import Limits
from server.engine.overlap import Pipeline
from server.engine.reply import closing_constraint
from server.engine.scheduler import Scheduler
from server.engine.slots import Slots
from server.engine.step import Step
from server.errors import ConstraintFailed
from server.memory.budget import most_rows
from server.messages import Constraint, Delta, Failed, Generate, MemoryReport, Sampling, TokenLogprob
from server.model.batch import Batch, Row, RowSampling, SampledTokens

VOCAB = 8
STOP = 7
WILD = (1, 2, 3)  # what a `?` of the toy grammar allows


def next_id(context: Sequence[int], seed: int, allowed: Sequence[int]) -> int:
    """What the toy writes after these ids. Depends on every one of them and on where it stands."""
    total = seed + len(context)
    for position, token_id in enumerate(context):
        total = (total * 31 + (position + 1) * (token_id + 1)) % 1_000_003
    return allowed[(total >> 3) % len(allowed)]


class ToyMatcher:
    """`3 4 ? ?`: numbers are forced, a question mark is one of WILD; over at the end."""

    def __init__(self, source: str) -> None:
        self.pattern = source.removeprefix("start: ").replace("<[", "").replace("]>", "").split()
        self.place = 0
        self.mask_s = 0.0

    def copy(self) -> "ToyMatcher":
        return copy.copy(self)

    def forced(self) -> list[int]:
        ids = []
        for sign in self.pattern[self.place :]:
            if sign == "?":
                break
            ids.append(int(sign))
        return ids

    def allowed_at(self, place: int) -> tuple[int, ...]:
        if place >= len(self.pattern):
            return (STOP,)
        sign = self.pattern[place]
        return WILD if sign == "?" else (int(sign),)

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        for index, token_id in enumerate(token_ids):
            if self.place + index >= len(self.pattern) or token_id not in self.allowed_at(self.place + index):
                return index
        return len(token_ids)

    def advance(self, token_ids: Sequence[int]) -> bool:
        if self.count_allowed(token_ids) < len(token_ids):
            return False
        self.place += len(token_ids)
        return True

    def is_over(self) -> bool:
        return self.place == len(self.pattern)


Masks = list[list[tuple[int, ...]] | None]


class ToyGrammars:
    """Compiles `ToyMatcher`s; the source `bad` does not compile, `panic` breaks the compiler."""

    def compile(self, constraint: Constraint) -> ToyMatcher:
        if constraint.source == "bad":
            raise ConstraintFailed("the toy grammar is bad")
        if constraint.source == "panic":
            raise RuntimeError("a fault nobody thought of")
        return ToyMatcher(constraint.source)

    def masks(
        self, matchers: Sequence[tuple[ToyMatcher, Sequence[int]] | None], extra: Sequence[int | None]
    ) -> Masks | None:
        rows: Masks = []
        for entry, more in zip(matchers, extra, strict=True):
            if entry is None:
                rows.append(None)
                continue
            matcher, drafts = entry
            masks = [matcher.allowed_at(matcher.place + index) for index in range(len(drafts) + 1)]
            rows.append([(*mask, more) if more is not None else mask for mask in masks])
        return rows if any(row is not None for row in rows) else None


def score_of(before: Sequence[int], token_id: int) -> TokenLogprob:
    """The toy's logprob of an id of the prompt, which depends on every id before it."""
    return TokenLogprob(token_id, -float(sum(place * one for place, one in enumerate(before, 1)) % 97))


@dataclass
class ToySamples:
    """`ids` has the last one of each row."""

    sampled: list[SampledTokens]
    ids: list[int]

    def read(self) -> list[SampledTokens]:
        return self.sampled


@dataclass
class ToyModel:
    """`memory` is the KV cache: one (position, id) for each place of each block. `states` are recurrent."""

    block_size: int
    has_state: bool = False
    max_blocks: int = 1 << 30
    memory: dict[int, tuple[int, int]] = field(default_factory=dict)
    states: dict[int, list[int]] = field(default_factory=dict)
    num_tokens: int = 0
    largest_step: int = 0
    num_steps: int = 0
    num_overlapped: int = 0  # of them launched before the one before was read
    fail_above: int = 1 << 30  # a step of more tokens than this has no memory
    broken_seed: int | None = None  # whose logits are NaN
    on_launch: Callable[[int], None] = lambda _: None

    def launch(self, batch: Batch) -> Batch:
        assert batch.rows
        num_tokens = sum(len(row.token_ids) for row in batch.rows)
        if num_tokens > self.fail_above:
            raise MemoryError
        self.num_tokens += num_tokens
        self.largest_step = max(self.largest_step, num_tokens)
        self.num_steps += 1
        self.on_launch(num_tokens)
        written: set[int] = set()
        for row in batch.rows:
            for position, token_id in enumerate(row.token_ids, row.start):
                place = self._place(row, position)
                assert place not in written, "two rows write to one place"
                written.add(place)
                self.memory[place] = (position, token_id)
            if self.has_state:
                self._move_state(row)
        return batch

    def launch_after(self, batch: Batch, pending: "ToySamples", lines: Sequence[int]) -> Batch:
        self.num_overlapped += 1
        assert all(len(row.token_ids) == row.num_logits == 1 for row in batch.rows)
        return self.launch(Batch(tuple(
            replace(row, token_ids=(pending.ids[line],)) for row, line in zip(batch.rows, lines, strict=True)
        )))  # fmt: skip

    def sample(self, ticket: Batch, batch: Batch, masks: Masks | None) -> "ToySamples":
        assert [row.start for row in ticket.rows] == [row.start for row in batch.rows]
        # A row that was computed ahead holds the right ids only in the ticket, as on a device.
        rows = [replace(row, token_ids=was.token_ids) for row, was in zip(batch.rows, ticket.rows, strict=True)]
        num_sampled = sum(row.sampling is not None for row in rows)
        assert masks is None or len(masks) == num_sampled
        due = iter([None] * num_sampled if masks is None else masks)
        results = [
            replace(
                SampledTokens() if row.sampling is None else self._sample(row, next(due)),
                prompt_logprobs=self._scores(row),
            )
            for row in rows
            if row.has_result
        ]
        last = iter(results)
        ids = [next(last).token_ids[-1:] if row.has_result else () for row in batch.rows]
        return ToySamples(results, [one[0] if one else 0 for one in ids])

    def copy_state(self, source: int, target: int) -> None:
        self.states[target] = list(self.states[source])

    def copy_block(self, source: int, target: int) -> None:
        held = [self.memory.get(source * self.block_size + offset) for offset in range(self.block_size)]
        for place, content in enumerate(held, target * self.block_size):
            self.memory.pop(place, None)
            if content is not None:
                self.memory[place] = content

    def move_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        assert not {*sources} & {*targets}
        for source, target in zip(sources, targets, strict=True):
            self.copy_block(source, target)
            self.copy_block(self.max_blocks, source)  # memory behind it may be released

    def _place(self, row: Row, position: int) -> int:
        block = row.blocks[position // self.block_size]
        assert 0 <= block < self.max_blocks
        return block * self.block_size + position % self.block_size

    def _read(self, row: Row, length: int) -> list[int]:
        ids = []
        for position in range(length):
            found, token_id = self.memory[self._place(row, position)]
            assert found == position, "a block was read at the wrong position"
            ids.append(token_id)
        return ids

    def _move_state(self, row: Row) -> None:
        assert row.slot is not None
        state = [] if row.start == 0 else self.states[row.slot]
        assert len(state) == row.start, "the recurrent state has seen another number of tokens"
        self.states[row.slot] = [*state, *row.token_ids]
        end = row.start + len(row.token_ids)
        assert self._read(row, end) == self.states[row.slot], "state and blocks tell different stories"

    def _sample(self, row: Row, masks: list[tuple[int, ...]] | None) -> SampledTokens:
        sampling = row.sampling
        assert sampling is not None
        if sampling.seed == self.broken_seed:
            return SampledTokens(fault="the logits are not finite")
        end = row.start + len(row.token_ids)
        context = self._read(row, end)
        num_drafts = row.num_logits - 1
        drafts = context[end - num_drafts :]
        ids: list[int] = []
        for index in range(row.num_logits):
            base = tuple(range(1, VOCAB)) if masks is None else masks[index]
            allowed = [token_id for token_id in base if token_id not in sampling.banned_ids]
            ids.append(next_id(context[: end - num_drafts + index], sampling.seed, allowed))
            if index < num_drafts and ids[-1] != drafts[index]:
                break
        return SampledTokens(tuple(ids), self._logprobs(sampling, ids))

    def _scores(self, row: Row) -> tuple[TokenLogprob, ...]:
        if row.targets is None:
            return ()
        begin = row.start + row.targets.first + 1
        assert row.start < begin and begin + len(row.targets.ids) - 1 <= row.start + len(row.token_ids)
        context = self._read(row, row.start + len(row.token_ids))
        return tuple(score_of(context[: begin + i], token_id) for i, token_id in enumerate(row.targets.ids))

    def _logprobs(self, sampling: RowSampling, ids: list[int]) -> tuple[TokenLogprob, ...] | None:
        if sampling.params.num_logprobs is None:
            return None
        return tuple(TokenLogprob(token_id, -float(token_id)) for token_id in ids)


@dataclass(frozen=True)
class ToyAllowance:
    blocks: int
    admit: bool = True
    preempt: bool = False


@dataclass
class ToyGuard:
    """Allows what the test says."""

    allowed: ToyAllowance
    ooms: int = 0

    def allowance(self, used_blocks: int = 0) -> ToyAllowance:
        return self.allowed

    def report(self) -> MemoryReport:
        return MemoryReport(ooms=self.ooms)

    def out_of_memory(self) -> None:
        self.ooms += 1


def make_limits(**changes: int | float | bool) -> Limits:
    """Limits of a small engine."""
    values: dict[str, int | float | bool] = {
        "max_batch_tokens": 16,
        "max_running": 8,
        "max_queue": 1000,
        "max_model_len": 1000,
        "cache_tokens": 1000,
        "vocab_size": VOCAB,
        "copies_blocks": True,
    }
    return Limits(**{**values, **changes})  # type: ignore[arg-type]


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


class Bench:
    """A scheduler with a toy model under it, driven step by step; collects what is told to each request."""

    def __init__(
        self, num_blocks: int, block_size: int, slots: Slots | None = None, caching: bool = True, **limits: int | bool
    ) -> None:
        self.clock = Clock()
        self.blocks = Blocks(num_blocks, block_size, caching=caching)
        self.model = ToyModel(block_size, has_state=slots is not None, max_blocks=num_blocks)
        self.grammars = ToyGrammars()
        values = {"cache_tokens": num_blocks * block_size, **limits}
        self.scheduler = Scheduler(make_limits(**values), self.blocks, slots, self.clock)
        self.told: dict[str, list[Delta | Failed]] = {}
        self.may_overlap = True
        self._pipeline: Pipeline | None = None

    def add(self, request: Generate) -> bool:
        """Whether it was accepted; constraints are compiled at once."""
        sequence = self.scheduler.add(request)
        if sequence is not None:
            closing = closing_constraint(request)
            self.scheduler.begin(
                sequence,
                None if request.constraint is None else self.grammars.compile(request.constraint),
                None if closing is None else self.grammars.compile(closing),
            )
        self._collect()
        return sequence is not None

    @property
    def pipeline(self) -> Pipeline:
        """Made only now, because tests exchange the model and the grammars."""
        if self._pipeline is None:
            self._pipeline = Pipeline(self.scheduler, self.model, self.grammars)
        return self._pipeline

    def resize(self, num_blocks: int, *, preempt: bool) -> None:
        """Let the scheduler have this many blocks, as the loop does: not while a step is in flight."""
        while self.pipeline.in_flight:
            self.pipeline.finish_in_flight(lambda: False)
        self.pipeline.copy(self.scheduler.resize(num_blocks, preempt=preempt))
        self._collect()

    def step(self, *, admit: bool = True) -> bool:
        """One step; whether there was anything to compute."""
        did_something = True
        if self.pipeline.in_flight:
            self.pipeline.finish_in_flight(lambda: self.may_overlap)
        elif (step := self.scheduler.next_step(admit=admit)) is not None:
            self.scheduler.check()
            self._hold_to_what_is_budgeted(step)
            self.pipeline.compute(step, lambda: self.may_overlap)
        else:
            did_something = False
        self._collect()
        self.scheduler.check()
        return did_something

    def _hold_to_what_is_budgeted(self, step: Step) -> None:
        """Memory for activations, logits and sampling is set aside at start for a step of this size: none is larger."""
        limits = self.scheduler.limits
        lines = sum(row.num_logits for row in step.batch.rows)
        assert step.num_tokens <= limits.max_batch_tokens
        assert lines <= most_rows(limits.max_batch_tokens, limits.max_running, limits.draft_tokens)

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            if not self.step() and not self.scheduler.has_work:
                return
        raise AssertionError(f"still busy after {max_steps} steps")

    def ids(self, id: str) -> list[int]:
        """Everything written for this request."""
        return [token_id for mail in self.deltas(id) for token_id in mail.token_ids]

    def end(self, id: str) -> str | None:
        """How it ended: its finish, the kind of its failure, or None if it has not."""
        last = self.told.get(id, [None])[-1]
        return last.kind if isinstance(last, Failed) else last.finish if last is not None else None

    def cached(self, id: str) -> int | None:
        """Prompt tokens that came from the prefix cache."""
        return next((mail.cached for mail in self.deltas(id)), None)

    def deltas(self, id: str) -> Iterator[Delta]:
        return (mail for mail in self.told.get(id, []) if isinstance(mail, Delta))

    def _collect(self) -> None:
        for mail in self.scheduler.collect():
            before = self.told.setdefault(mail.id, [])
            assert not before or (isinstance(before[-1], Delta) and before[-1].finish is None), "told after its end"
            before.append(mail)


def ask(id: str, token_ids: list[int], max_tokens: int = 8, **fields: object) -> Generate:
    """A request whose reply stops at STOP; `sampling` fields and `Generate` fields are told apart by name."""
    names = set(Sampling.__struct_fields__)
    sampling = {name: value for name, value in fields.items() if name in names}
    others = {name: value for name, value in fields.items() if name not in names}
    others.setdefault("stop_ids", (STOP,))
    return Generate(id, token_ids, Sampling(max_tokens=max_tokens, **sampling), **others)  # type: ignore[arg-type]


def write_alone(request: Generate, seed: int) -> list[int]:
    """What the toy writes for this request, worked out without an engine. Knows no preamble."""
    sampling, context, written = request.sampling, list(request.token_ids), list[int]()
    pattern = None if request.constraint is None else request.constraint.source.split()
    while len(written) < sampling.max_tokens:
        allowed: Sequence[int] = tuple(range(1, VOCAB))
        if pattern is not None:
            sign = pattern[len(written)]
            allowed = WILD if sign == "?" else (int(sign),)
        if sampling.ignore_eos or len(written) < sampling.min_tokens:
            allowed = [token_id for token_id in allowed if token_id not in request.stop_ids]
        written.append(next_id([*context, *written], seed, allowed))
        if written[-1] in request.stop_ids and written[-1] in allowed:
            break
        if pattern is not None and len(written) == len(pattern):
            break
    return written
