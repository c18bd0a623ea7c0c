"""Interfaces of the engine to model, grammars, memory and socket, so that scheduling stays pure Python."""

from collections.abc import Sequence
from typing import Any, Protocol

from server.messages import Constraint, FromEngine, MemoryReport, ToEngine
from server.model.batch import Batch, SampledTokens


class Matcher(Protocol):
    """State of one sequence's constraint."""

    @property
    def mask_s(self) -> float:
        """Expected seconds of its next mask, and of advancing over one id."""

    def copy(self) -> "Matcher":
        """A matcher in the same state, which advances on its own."""

    def forced(self) -> list[int]:
        """The ids that must come next, with no alternative, in the canonical tokenization; often empty."""

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these ids, in order, may come next. Does not change the state."""

    def advance(self, token_ids: Sequence[int]) -> bool:
        """Accept ids that were written; False if one is not allowed (the state is unchanged then).

        Raises ConstraintFailed if the grammar has become too complex, now or in an earlier call.
        """

    def is_over(self) -> bool:
        """Nothing but a stop id can follow."""


class Grammars(Protocol):
    """Compiles constraints and computes masks."""

    def compile(self, constraint: Constraint) -> Matcher:
        """Blocking, called in a worker thread, bounded in time and memory; raises ConstraintFailed."""

    def masks(self, matchers: Sequence[tuple[Any, Sequence[int]] | None], extra: Sequence[int | None]) -> Any:
        """Bit masks for a batch. Rows here are those with logits, in their order in the batch; None is a free one.

        A row is a matcher that `compile` gave, and drafts: it gets one mask, from the matcher's state on, before
        each draft and one after the last. `extra[i]` is one more id that row i allows (a phase's opening token).
        The result is opaque here and understood by `Model.sample`; None if no row is constrained.
        """


class PendingSamples(Protocol):
    """Sampled ids, possibly still being computed."""

    def read(self) -> list[SampledTokens]:
        """One SampledTokens for each row with a RowSampling or targets, in row order; waits. Raises MemoryError."""


class Model(Protocol):
    """Forward pass and sampling."""

    def launch(self, batch: Batch) -> Any:
        """Start computing; returns a ticket. Raises MemoryError when the device has no memory left."""

    def launch_after(self, batch: Batch, pending: Any, lines: Sequence[int]) -> Any:
        """Same as `launch` for rows of one token each: the ids of these rows of logits of unread samples.

        In place of a fault any id may be used. Not called unless `Limits.overlap`. Raises MemoryError.
        """

    def sample(self, ticket: Any, batch: Batch, masks: Any) -> PendingSamples:
        """Start sampling for each row that has a RowSampling. Raises MemoryError as `launch` does.

        The batch is the one launched, but the `sampling` of its rows may have changed since, or be None.
        """

    def copy_state(self, source: int, target: int) -> None:
        """Copy recurrent state between slots (snapshots); not called if the model has none."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's keys and values; not called unless `Limits.copies_blocks`."""

    def move_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy keys and values of blocks to as many others, none of which is among the sources; needs no memory."""


class Allowance(Protocol):
    """Current limits set by the memory guard."""

    @property
    def blocks(self) -> int:
        """KV blocks that may be in use or cached: those with the lowest ids. May be fewer than exist, or than are used.

        Cached blocks are dropped first; blocks of sequences take their places. Sequences that hold more keep them
        unless `preempt` is set.
        """

    @property
    def admit(self) -> bool:
        """Whether new sequences may start."""

    @property
    def preempt(self) -> bool:
        """Whether the newest sequences are to be preempted until the others hold no more than `blocks`."""


class Guard(Protocol):
    """Memory guard."""

    def allowance(self, used_blocks: int = 0) -> Allowance:
        """Cheap, called before every step with the number of blocks that sequences hold.

        Memory behind blocks that are not allowed is released with `Pool`, not here.
        """

    def report(self) -> MemoryReport:
        """State for the Pulse."""

    def out_of_memory(self) -> None:
        """A step ran out of memory: release what can be released, and allow fewer blocks for a while."""


class Pool(Protocol):
    """Memory behind the blocks."""

    def release(self, first_block: int) -> None:
        """Release the memory of all blocks from this one on to the device; their content is lost."""

    def restore(self, num_blocks: int) -> int:
        """Allocate memory for blocks up to this one; returns how many blocks there are now."""


class Mailbox(Protocol):
    """The engine's end of the socket."""

    def receive(self, timeout_s: float) -> list[ToEngine]:
        """Return all pending messages in order; wait up to `timeout_s` for the first one or a `wake`."""

    def send(self, mail: list[FromEngine]) -> None:
        """One frame; never blocks."""

    def wake(self) -> None:
        """End a waiting `receive` early; may be called from any thread."""
