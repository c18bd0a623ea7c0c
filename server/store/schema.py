"""Tables of kept responses, and the migrations that lead to them from every earlier version."""

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
    insert,
    select,
)
from sqlalchemy.schema import CreateTable, DropTable, ExecutableDDLElement

from server.errors import CannotStart

METADATA = MetaData()
VERSION = Table("toolwire_schema", METADATA, Column("version", Integer, nullable=False))
# `body` is the response as JSON, `input` the array of the items of its request alone; `owner` is a digest of the key.
RESPONSES = Table(
    "toolwire_responses",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("previous_id", Text),
    Column("body", LargeBinary, nullable=False),
    Column("input", LargeBinary, nullable=False),
    Index("toolwire_responses_by_age", "created_s", "num_bytes"),
)
# Background responses. `lease_s` is until when the server that writes one holds it, null once it has ended; `events`
# are those of its stream then.
BACKGROUND = Table(
    "toolwire_background",
    METADATA,
    Column("response_id", Text, ForeignKey("toolwire_responses.id", ondelete="CASCADE"), primary_key=True),
    Column("lease_s", Float),
    Column("events", LargeBinary),
)
# Of version 1 alone: the responses that items of outputs belong to. Their ids tell it now.
OUTPUT_ITEMS = Table(
    "toolwire_output_items",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("response_id", Text, ForeignKey("toolwire_responses.id", ondelete="CASCADE"), nullable=False, index=True),
)
CONVERSATIONS = Table(
    "toolwire_conversations",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("used_s", Float, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Index("toolwire_conversations_by_age", "used_s", "num_bytes"),
)
ITEMS = Table(
    "toolwire_items",
    METADATA,
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column(
        "conversation_id", Text, ForeignKey("toolwire_conversations.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("id", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
TABLES_OF_VERSION_1 = (RESPONSES, OUTPUT_ITEMS, CONVERSATIONS, ITEMS)
# Statements that lead from version i + 1 to version i + 2.
MIGRATIONS: Sequence[Sequence[ExecutableDDLElement]] = ((CreateTable(BACKGROUND), DropTable(OUTPUT_ITEMS)),)
MIGRATION_LOCK = 0x746F6F6C  # of PostgreSQL: one server migrates, the others wait


def migrate(connection: Connection) -> None:
    """Lead the database to the newest version, within the caller's transaction. Raises CannotStart for a newer one."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
    VERSION.create(connection, checkfirst=True)
    newest = 1 + len(MIGRATIONS)
    version: int | None = connection.scalar(select(VERSION.c.version))
    if version is None:
        METADATA.create_all(connection, tables=TABLES_OF_VERSION_1)
        connection.execute(insert(VERSION).values(version=1))
        version = 1
    if version > newest:
        raise CannotStart(f"the response store has version {version}, made by a newer server; this one knows {newest}")
    for statements in MIGRATIONS[version - 1 :]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(VERSION.update().values(version=newest))
