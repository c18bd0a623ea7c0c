"""Database of kept responses and conversations: SQLite or PostgreSQL, by SQLAlchemy. Blocking: called from threads."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    create_engine,
    delete,
    event,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import PoolProxiedConnection

from server.errors import CannotStart
from server.store.schema import BACKGROUND, CONVERSATIONS, ITEMS, RESPONSES, migrate

TIMEOUT_S = 3  # for a lock, a connection and a statement
DAY_S = 86_400.0
SWEEP_ROWS = 256  # deleted in one transaction
MAX_CHAIN = 10_000  # responses that follow one another
MAX_LOG_PAGES = 16_384  # 64 MiB of SQLite's log, if `checkpoint` does not keep it shorter
_COLUMNS = (RESPONSES.c.id, RESPONSES.c.body, RESPONSES.c.input, RESPONSES.c.previous_id)
_INSERT_RESPONSE = insert(RESPONSES)
_INSERT_IN_SQLITE = str(_INSERT_RESPONSE.compile(dialect=sqlite.dialect(paramstyle="named")))


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """One response: JSON of its body, and of the items that its request brought.

    `lease_s` is set while it is written in the background: the time (`time.time`) until which its server holds it.
    """

    id: str
    body: bytes
    input: bytes
    previous_id: str | None = None
    conversation_id: str | None = None
    lease_s: float | None = None


@dataclass(frozen=True, slots=True)
class KeptItem:
    """One item of a conversation, as JSON."""

    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class KeptConversation:
    """One conversation; `metadata` is JSON."""

    id: str
    created_s: float
    metadata: bytes


class Database:
    """Every method is one transaction. Raises SQLAlchemyError where the database fails.

    `owner` is whose the rows are; what belongs to another is as if it did not exist. Rows older than `max_age_s`, and
    the oldest beyond `max_bytes`, are removed by `sweep`.
    """

    def __init__(self, url: str, max_age_s: float, max_bytes: int) -> None:
        self._engine = _engine_of(url)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        # A writer that finds SQLite's file locked sleeps for up to 10 ms at a time.
        is_sqlite = self._engine.dialect.name == "sqlite"
        self._one_writer: AbstractContextManager[object] = threading.Lock() if is_sqlite else nullcontext()
        self._writer: PoolProxiedConnection | None = None  # guarded by `_one_writer`
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        try:
            with self._engine.begin() as connection:
                migrate(connection)
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Close every connection."""
        if self._writer is not None:
            self._writer.close()
        self._engine.dispose()

    def put_response(self, owner: str, kept: KeptResponse, items: Sequence[KeptItem] = ()) -> None:
        """Keep a new response; `items` are added to its conversation."""
        row = {
            "id": kept.id,
            "owner": owner,
            "created_s": time.time(),
            "num_bytes": len(kept.body) + len(kept.input),
            "previous_id": kept.previous_id,
            "body": kept.body,
            "input": kept.input,
        }
        if kept.conversation_id is None and kept.lease_s is None:
            self._insert_response(row)
            return
        with self._transaction() as connection:
            connection.execute(_INSERT_RESPONSE, row)
            if kept.lease_s is not None:
                connection.execute(insert(BACKGROUND).values(response_id=kept.id, lease_s=kept.lease_s))
            if kept.conversation_id is not None and items:
                _add_items(connection, kept.conversation_id, items)

    def end_response(
        self, owner: str, kept: KeptResponse, items: Sequence[KeptItem] = (), events: bytes = b"", now_s: float = 0.0
    ) -> bool:
        """End a background response: its body, the items of its conversation, the events of its stream.

        With `now_s` only one whose lease has passed by then. False: it has ended already, or is deleted.
        """
        expired = () if not now_s else (BACKGROUND.c.lease_s < now_s,)
        end = update(BACKGROUND).where(BACKGROUND.c.response_id == kept.id, BACKGROUND.c.lease_s.is_not(None), *expired)
        own = update(RESPONSES).where(RESPONSES.c.id == kept.id, RESPONSES.c.owner == owner)
        num_bytes = len(kept.body) + len(kept.input) + len(events)
        with self._transaction() as connection:
            if not connection.execute(end.values(lease_s=None, events=events)).rowcount:
                return False
            connection.execute(own.values(body=kept.body, num_bytes=num_bytes))
            if kept.conversation_id is not None:
                _add_items(connection, kept.conversation_id, items)
        return True

    def renew(self, response_ids: Sequence[str], lease_s: float) -> set[str]:
        """Hold background responses until `lease_s`. Returns those that have neither ended nor been deleted."""
        unended = BACKGROUND.c.response_id.in_(response_ids), BACKGROUND.c.lease_s.is_not(None)
        with self._transaction() as connection:
            connection.execute(update(BACKGROUND).where(*unended).values(lease_s=lease_s))
            return set(connection.scalars(select(BACKGROUND.c.response_id).where(*unended)))

    def events(self, owner: str, response_id: str) -> bytes | None:
        """The events of an ended background response; None where there is no such response."""
        query = select(BACKGROUND.c.events).join(RESPONSES, RESPONSES.c.id == BACKGROUND.c.response_id)
        with self._engine.connect() as connection:
            row = connection.execute(query.where(RESPONSES.c.id == response_id, *self._valid(owner))).first()
        return None if row is None else row.events or b""

    def response(self, owner: str, response_id: str) -> KeptResponse | None:
        """A response by its id."""
        both = RESPONSES.outerjoin(BACKGROUND, BACKGROUND.c.response_id == RESPONSES.c.id)
        query = select(*_COLUMNS, BACKGROUND.c.lease_s).select_from(both)
        with self._engine.connect() as connection:
            row = connection.execute(query.where(RESPONSES.c.id == response_id, *self._valid(owner))).first()
        if row is None:
            return None
        return KeptResponse(row.id, row.body, row.input, row.previous_id, lease_s=row.lease_s)

    def chain(self, owner: str, response_id: str) -> list[KeptResponse] | None:
        """A response and all before it, the oldest first; None where one of them is missing."""
        valid = self._valid(owner)
        last = select(*_COLUMNS, literal(0).label("depth")).where(RESPONSES.c.id == response_id, *valid)
        found = last.cte("found", recursive=True)
        before = select(*_COLUMNS, found.c.depth + 1).where(
            RESPONSES.c.id == found.c.previous_id, found.c.depth < MAX_CHAIN, *valid
        )
        found = found.union_all(before)
        query = select(found.c.id, found.c.body, found.c.input, found.c.previous_id).order_by(found.c.depth.desc())
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        chain = [KeptResponse(row.id, row.body, row.input, row.previous_id) for row in rows]
        return chain if chain and chain[0].previous_id is None else None

    def responses(self, owner: str, response_ids: Sequence[str]) -> list[KeptResponse]:
        """Those of these responses that there are."""
        query = select(*_COLUMNS).where(RESPONSES.c.id.in_(response_ids), *self._valid(owner))
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [KeptResponse(row.id, row.body, row.input, row.previous_id) for row in rows]

    def delete_response(self, owner: str, response_id: str) -> bool:
        """Whether there was one."""
        with self._transaction() as connection:
            gone = connection.execute(delete(RESPONSES).where(RESPONSES.c.id == response_id, *self._valid(owner)))
        return gone.rowcount > 0

    def put_conversation(self, owner: str, kept: KeptConversation, items: Sequence[KeptItem]) -> None:
        """Begin a conversation."""
        with self._transaction() as connection:
            connection.execute(
                insert(CONVERSATIONS).values(
                    id=kept.id,
                    owner=owner,
                    created_s=kept.created_s,
                    used_s=kept.created_s,
                    num_bytes=len(kept.metadata),
                    metadata=kept.metadata,
                )
            )
            _add_items(connection, kept.id, items)

    def conversation(self, owner: str, conversation_id: str) -> KeptConversation | None:
        """A conversation by its id, without its items."""
        columns = (CONVERSATIONS.c.id, CONVERSATIONS.c.created_s, CONVERSATIONS.c.metadata)
        query = select(*columns).where(*self._own_conversation(owner, conversation_id))
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else KeptConversation(row.id, row.created_s, row.metadata)

    def set_metadata(self, owner: str, conversation_id: str, metadata: bytes) -> bool:
        """Whether there is such a conversation."""
        own = self._own_conversation(owner, conversation_id)
        with self._transaction() as connection:
            changed = connection.execute(update(CONVERSATIONS).where(*own).values(metadata=metadata))
        return changed.rowcount > 0

    def delete_conversation(self, owner: str, conversation_id: str) -> bool:
        """Whether there was one; its items go with it."""
        own = self._own_conversation(owner, conversation_id)
        with self._transaction() as connection:
            gone = connection.execute(delete(CONVERSATIONS).where(*own))
        return gone.rowcount > 0

    def items(self, owner: str, conversation_id: str) -> list[KeptItem] | None:
        """The items in their order; None where there is no such conversation."""
        query = select(ITEMS.c.id, ITEMS.c.body).where(ITEMS.c.conversation_id == conversation_id)
        with self._engine.connect() as connection:
            own = select(CONVERSATIONS.c.id).where(*self._own_conversation(owner, conversation_id))
            if connection.execute(own).first() is None:
                return None
            rows = connection.execute(query.order_by(ITEMS.c.position)).all()
        return [KeptItem(row.id, row.body) for row in rows]

    def add_items(self, owner: str, conversation_id: str, items: Sequence[KeptItem]) -> bool:
        """Whether there is such a conversation."""
        with self._transaction() as connection:
            own = select(CONVERSATIONS.c.id).where(*self._own_conversation(owner, conversation_id))
            if connection.execute(own).first() is None:
                return False
            _add_items(connection, conversation_id, items)
        return True

    def delete_item(self, owner: str, conversation_id: str, item_id: str) -> bool:
        """Whether there was one."""
        own = select(CONVERSATIONS.c.id).where(*self._own_conversation(owner, conversation_id))
        named = ITEMS.c.conversation_id.in_(own), ITEMS.c.id == item_id
        with self._transaction() as connection:
            num_bytes = connection.scalar(select(func.sum(ITEMS.c.num_bytes)).where(*named))
            if num_bytes is None:
                return False
            connection.execute(delete(ITEMS).where(*named))
            left = CONVERSATIONS.c.num_bytes - int(num_bytes)
            connection.execute(
                update(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation_id).values(num_bytes=left)
            )
        return True

    def checkpoint(self) -> None:
        """Move what was committed from SQLite's log to its file, and begin a new log.

        Most of it is moved beside writers, what they add meanwhile while they wait: a log that is not moved whole
        goes on. The first write of a log waits for the disk, so none of theirs is the first.
        """
        if self._engine.dialect.name != "sqlite":
            return
        with self._autocommit.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
            with self._one_writer:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
                connection.exec_driver_sql("PRAGMA user_version = 1")  # any write

    def sweep(self) -> int:
        """Remove what is too old, and the oldest of what is too much, a part at a time. Returns the number of rows."""
        removed = 0
        oldest_s = time.time() - self._max_age_s
        for table, used in ((RESPONSES, RESPONSES.c.created_s), (CONVERSATIONS, CONVERSATIONS.c.used_s)):
            with self._transaction() as connection:
                removed += connection.execute(delete(table).where(used < oldest_s)).rowcount
        while self._num_bytes() > self._max_bytes:
            gone = self._remove_oldest()
            if not gone:
                break
            removed += gone
        return removed

    def _insert_response(self, row: Mapping[str, Any]) -> None:
        """Insert a response alone.

        A client waits for this at the end of its reply. Beside streams each further step of Python in this thread waits
        for theirs, so SQLite gets the statement past SQLAlchemy, which took a third of the time.
        """
        if self._engine.dialect.name != "sqlite":
            with self._autocommit.connect() as connection:
                connection.execute(_INSERT_RESPONSE, row)
            return
        with self._one_writer:
            try:
                self._sqlite_writer().execute(_INSERT_IN_SQLITE, row)
            except sqlite3.Error as error:
                raise OperationalError(_INSERT_IN_SQLITE, None, error) from error

    def _sqlite_writer(self) -> Any:
        """A connection of the driver that stays open, and commits each statement."""
        if self._writer is None:
            self._writer = self._engine.raw_connection()
            self._writer.detach()
            connection: Any = self._writer.dbapi_connection
            connection.isolation_level = None
        return self._writer.dbapi_connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._one_writer, self._engine.begin() as connection:
            yield connection

    def _num_bytes(self) -> int:
        """Bytes of all that is kept."""
        with self._engine.connect() as connection:
            sums = [connection.scalar(select(func.sum(table.c.num_bytes))) for table in (RESPONSES, CONVERSATIONS)]
        return sum(int(one or 0) for one in sums)

    def _remove_oldest(self) -> int:
        """Remove the oldest rows of both tables, no more than what is too much. Returns their number."""
        excess = self._num_bytes() - self._max_bytes
        ages = [
            select(literal(name).label("kind"), table.c.id, age.label("age"), table.c.num_bytes)
            for name, table, age in (
                ("response", RESPONSES, RESPONSES.c.created_s),
                ("conversation", CONVERSATIONS, CONVERSATIONS.c.used_s),
            )
        ]
        both = ages[0].union_all(ages[1]).subquery()
        query = select(both.c.kind, both.c.id, both.c.num_bytes).order_by(both.c.age).limit(SWEEP_ROWS)
        with self._transaction() as connection:
            gone: dict[str, list[str]] = {"response": [], "conversation": []}
            for kind, row_id, num_bytes in connection.execute(query).all():
                if excess <= 0:
                    break
                gone[kind].append(row_id)
                excess -= num_bytes
            connection.execute(delete(RESPONSES).where(RESPONSES.c.id.in_(gone["response"])))
            connection.execute(delete(CONVERSATIONS).where(CONVERSATIONS.c.id.in_(gone["conversation"])))
        return sum(map(len, gone.values()))

    def _valid(self, owner: str) -> tuple[ColumnElement[bool], ...]:
        return RESPONSES.c.owner == owner, RESPONSES.c.created_s >= time.time() - self._max_age_s

    def _own_conversation(self, owner: str, conversation_id: str) -> tuple[ColumnElement[bool], ...]:
        return (
            CONVERSATIONS.c.id == conversation_id,
            CONVERSATIONS.c.owner == owner,
            CONVERSATIONS.c.used_s >= time.time() - self._max_age_s,
        )


def _add_items(connection: Connection, conversation_id: str, items: Sequence[KeptItem]) -> None:
    num_bytes = sum(len(item.body) for item in items)
    connection.execute(
        update(CONVERSATIONS)
        .where(CONVERSATIONS.c.id == conversation_id)
        .values(used_s=time.time(), num_bytes=CONVERSATIONS.c.num_bytes + num_bytes)
    )
    rows = [
        {"conversation_id": conversation_id, "id": item.id, "num_bytes": len(item.body), "body": item.body}
        for item in items
    ]
    if rows:
        connection.execute(insert(ITEMS), rows)


def _engine_of(text: str) -> Engine:
    """The engine of a URL. Raises CannotStart for one that is neither SQLite's nor PostgreSQL's."""
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise CannotStart("--response-store is no URL of a database") from error  # it may hold a password
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    if url.get_backend_name() == "postgresql":
        options = f"-c statement_timeout={TIMEOUT_S}s -c lock_timeout={TIMEOUT_S}s"
        arguments = {"connect_timeout": TIMEOUT_S, "options": options, "tcp_user_timeout": TIMEOUT_S * 1000}
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args=arguments,
            pool_pre_ping=True,
            pool_timeout=TIMEOUT_S,
        )
    raise CannotStart(f"--response-store takes sqlite:/// and postgresql:// URLs, not {url.get_backend_name()!r}")


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": TIMEOUT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(connection: object, _: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        # A commit outlives the process at once; a power cut may cost the last ones, never the file.
        pragmas = ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON")
        for pragma in (*pragmas, f"wal_autocheckpoint = {MAX_LOG_PAGES}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
