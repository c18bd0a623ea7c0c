"""What the loop asks of the rooms with tensors in them, so that scheduling stays pure Python."""

from collections.abc import Sequence
from typing import Any, Protocol

from server.messages import Constraint, FromEngine, MemoryReport, ToEngine
from server.model.batch import Batch, Drawn


class Matcher(Protocol):
    """One sequence's constraint at its current place."""

    def forced(self) -> list[int]:
        """The ids that must come next, with no alternative, in the canonical tokenization; often empty."""

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these ids, in order, may come next. Does not move."""

    def advance(self, token_ids: Sequence[int]) -> bool:
        """Move over ids that were written; False if one is not allowed (nothing is moved then).

        Raises ConstraintFailed if the grammar has become too complex to go on, now or in an earlier call.
        """

    def is_over(self) -> bool:
        """Nothing but a stop id can follow."""


class Grammars(Protocol):
    """Compiles constraints and makes masks."""

    def compile(self, constraint: Constraint) -> Matcher:
        """Blocking, called in a worker thread, bounded in time and memory; raises ConstraintFailed."""

    def masks(self, matchers: Sequence[tuple[Any, Sequence[int]] | None], extra: Sequence[int | None]) -> Any:
        """Bit masks for a batch. Rows here are those with logits, in their order in the batch; None is a free one.

        A row is a matcher that `compile` gave, and drafts: it gets one mask, from the matcher's place on, before
        each draft and one after the last. `extra[i]` is one more id that row i allows (a preamble's opening token).
        The result is opaque here and understood by `Model.draw`; None if no row is constrained.
        """


class Drawing(Protocol):
    """Ids that are drawn, or will be soon."""

    def read(self) -> list[Drawn]:
        """One Drawn for each row that has a Draw, in row order; waits for them. Raises MemoryError."""


class Model(Protocol):
    """One forward pass and its draws."""

    def launch(self, batch: Batch) -> Any:
        """Start computing; returns a ticket. Raises MemoryError when the device has no memory left."""

    def launch_after(self, batch: Batch, drawing: Any, lines: Sequence[int]) -> Any:
        """As `launch`, for rows of one token each: the ids that stand in these lines of a drawing not read yet.

        Where there is a fault instead of an id, any other id will do. Never called where `Limits.overlap` is off.
        """

    def draw(self, ticket: Any, batch: Batch, masks: Any) -> Drawing:
        """Start drawing for each row that has a Draw. Raises MemoryError as `launch` does.

        The batch is the one launched, but its rows may be drawn otherwise than was known then, or not at all.
        """

    def copy_state(self, source: int, target: int) -> None:
        """Copy recurrent state between slots (snapshots); never called where the model has none."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's keys and values; never called where `Limits.copies_blocks` is off."""


class Allowance(Protocol):
    """What memory allows right now."""

    @property
    def blocks(self) -> int:
        """KV blocks that may be in use or cached: those with the lowest ids. May be fewer than exist, or than are used.

        Cached blocks go first. Where sequences hold more than this, they keep them unless `preempt` is set.
        """

    @property
    def admit(self) -> bool:
        """Whether new sequences may start."""

    @property
    def preempt(self) -> bool:
        """Whether the newest sequences must give their blocks back until none from `blocks` on is held."""


class Guard(Protocol):
    """Watches memory."""

    def allowance(self, used_blocks: int = 0) -> Allowance:
        """Cheap, called before every step with the number of blocks that sequences hold.

        The memory behind blocks that are not allowed is given back with `Pool`, not here.
        """

    def report(self) -> MemoryReport:
        """Everything it knows, for the Pulse."""

    def out_of_memory(self) -> None:
        """A step ran out of memory: release what can be released, and allow fewer blocks for a while."""


class Pool(Protocol):
    """The memory behind the blocks, as far as the loop is concerned."""

    def release(self, first_block: int) -> None:
        """Give the memory of all blocks from this one on back to the device; their content is lost."""

    def restore(self, num_blocks: int) -> int:
        """Take memory again so that blocks up to this one can be used; returns how many blocks there are now."""


class Mailbox(Protocol):
    """The engine's end of the socket."""

    def receive(self, timeout_s: float) -> list[ToEngine]:
        """Everything that has come, in order; waits at most this long for the first message or a `wake`."""

    def send(self, mail: list[FromEngine]) -> None:
        """One frame; never blocks."""

    def wake(self) -> None:
        """End a waiting `receive` early; may be called from any thread."""
