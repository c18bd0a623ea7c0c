"""The database of kept responses, on SQLite and on a real PostgreSQL."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import DDL, create_engine, text
from sqlalchemy.exc import OperationalError

from server.errors import CannotStart
from server.store import schema
from server.store.database import DAY_S, Database, KeptConversation, KeptItem, KeptResponse
from tests.store.full_disk import set_page_limit
from tests.store.postgres import is_installed, running_postgres

Open = Callable[..., Database]


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    if not is_installed():
        pytest.skip("PostgreSQL (Debian's package `postgresql`) is not installed")
    with running_postgres() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'kept.sqlite'}"
    url: str = request.getfixturevalue("postgres_url")
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


@pytest.fixture
def open_database(url: str) -> Iterator[Open]:
    """Opens the database, again where wanted."""
    opened: list[Database] = []

    def open_it(max_age_s: float = DAY_S, max_bytes: int = 1 << 20) -> Database:
        opened.append(Database(url, max_age_s, max_bytes))
        return opened[-1]

    yield open_it
    for database in opened:
        database.close()


def kept(name: str, previous: str | None = None, size: int = 2, conversation: str | None = None) -> KeptResponse:
    return KeptResponse(name, b"{}".ljust(size), b"[]", previous, conversation)


def test_a_chain_comes_back_in_its_order_and_only_to_its_owner(open_database: Open) -> None:
    database = open_database()
    for name, previous in (("a", None), ("b", "a"), ("c", "b"), ("d", "b")):
        database.put_response("me", kept(name, previous))
    assert [one.id for one in database.chain("me", "d") or []] == ["a", "b", "d"]
    assert database.chain("you", "d") is None and database.response("you", "a") is None
    assert not database.delete_response("you", "a") and database.responses("you", ["a"]) == []
    assert [one.id for one in database.responses("me", ["a", "x"])] == ["a"]
    assert database.delete_response("me", "a") and database.chain("me", "d") is None
    assert not database.delete_response("me", "a") and database.responses("me", ["a"]) == []


def test_what_was_put_is_there_after_a_new_start(open_database: Open) -> None:
    open_database().put_response("me", kept("a"))
    again = open_database()
    assert again.response("me", "a") == KeptResponse("a", b"{}", b"[]")


def test_conversations_keep_the_order_of_their_items(open_database: Open) -> None:
    database = open_database()
    conversation = KeptConversation("conv", time.time(), b'{"a":"b"}')
    database.put_conversation("me", conversation, [KeptItem("i1", b"1"), KeptItem("i2", b"2")])
    database.put_response("me", kept("a", conversation="conv"), [KeptItem("i3", b"3")])
    assert [item.id for item in database.items("me", "conv") or []] == ["i1", "i2", "i3"]
    assert database.items("you", "conv") is None and not database.add_items("you", "conv", [KeptItem("x", b"x")])
    assert not database.delete_item("you", "conv", "i2") and database.delete_item("me", "conv", "i2")
    assert database.set_metadata("me", "conv", b"{}") and not database.set_metadata("you", "conv", b"{}")
    found = database.conversation("me", "conv")
    assert found is not None and found.metadata == b"{}"
    assert database.delete_conversation("me", "conv") and database.items("me", "conv") is None


def test_the_oldest_beyond_the_bound_in_bytes_are_removed(open_database: Open) -> None:
    database = open_database(max_bytes=100_000)
    database.put_conversation("me", KeptConversation("old", time.time(), b"{}"), [KeptItem("i", b"x" * 20_000)])
    for number in range(20):
        database.put_response("me", kept(f"r{number}", size=10_000))
    assert database.sweep() == 12  # the conversation, and the first 11 of 20 times 10 002 bytes
    assert database.conversation("me", "old") is None
    assert database.response("me", "r10") is None and database.response("me", "r11") is not None
    assert database.sweep() == 0


def test_a_deleted_item_counts_no_more(open_database: Open) -> None:
    """A conversation was removed for the bytes of items that were deleted."""
    database = open_database(max_bytes=100_000)
    items = [KeptItem(name, b"x" * 60_000) for name in "ab"]
    database.put_conversation("me", KeptConversation("conv", time.time(), b"{}"), items)
    assert not database.delete_item("you", "conv", "a") and database.delete_item("me", "conv", "a")
    assert not database.delete_item("me", "conv", "a")
    assert database.sweep() == 0 and [one.id for one in database.items("me", "conv") or ()] == ["b"]


def test_what_is_too_old_is_neither_found_nor_kept(open_database: Open) -> None:
    database = open_database(max_age_s=0.2)
    database.put_response("me", kept("a"))
    database.put_conversation("me", KeptConversation("conv", time.time(), b"{}"), [KeptItem("i", b"x")])
    assert database.response("me", "a") is not None
    time.sleep(0.3)
    assert database.response("me", "a") is None and database.items("me", "conv") is None
    assert database.sweep() == 2


def test_a_background_response_ends_once(open_database: Open) -> None:
    """By its server, by a client, or when the lease of its server has passed; the first one counts."""
    database, now_s = open_database(), time.time()
    database.put_conversation("me", KeptConversation("conv", now_s, b"{}"), [])
    for name in ("a", "b", "c"):
        database.put_response("me", replace(kept(name, conversation="conv"), lease_s=now_s + 60))
    found = database.response("me", "a")
    assert found is not None and found.lease_s == now_s + 60 and database.events("me", "a") == b""
    assert database.renew(["a", "b", "x"], now_s + 90) == {"a", "b"}
    ended = replace(kept("a", conversation="conv"), body=b'{"ended":1}')
    assert not database.end_response("me", ended, now_s=now_s)  # its lease has not passed
    assert database.end_response("me", ended, [KeptItem("i1", b"1")], b"events")
    assert not database.end_response("me", kept("a"), [KeptItem("i2", b"2")], b"others")
    found = database.response("me", "a")
    assert found is not None and found.lease_s is None and found.body == b'{"ended":1}'
    assert database.events("me", "a") == b"events" and database.events("you", "a") is None
    assert [item.id for item in database.items("me", "conv") or []] == ["i1"]
    assert database.end_response("me", kept("b"), now_s=now_s + 91) and database.renew(["a", "b", "c"], 1.0) == {"c"}
    assert database.delete_response("me", "c") and not database.end_response("me", kept("c"))
    assert database.events("me", "c") is None and database.response("me", "c") is None


def test_migrations_lead_from_every_version(open_database: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    open_database().put_response("me", kept("a"))
    later = DDL("ALTER TABLE toolwire_responses ADD COLUMN note TEXT")
    known = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", (*known, (later,)))
    assert open_database().response("me", "a") is not None
    assert open_database().response("me", "a") is not None  # once is enough
    monkeypatch.setattr(schema, "MIGRATIONS", known)
    with pytest.raises(CannotStart, match=f"version {2 + len(known)}"):
        open_database()


def test_urls_of_other_databases_are_refused() -> None:
    for url in ("mysql://host/db", "nonsense"):
        with pytest.raises(CannotStart, match="response-store"):
            Database(url, DAY_S, 1 << 20)


def test_no_response_begins_a_new_log(tmp_path: Path) -> None:
    """SQLite syncs the first write of a log, for up to a fifth of a second on a busy disk: a response waited for it."""
    database = Database(f"sqlite:///{tmp_path / 'kept.sqlite'}", DAY_S, 1 << 20)

    def head_of_log() -> bytes:
        return (tmp_path / "kept.sqlite-wal").read_bytes()[:32]  # with the number of the log

    database.put_response("me", kept("a", size=100_000))
    first = head_of_log()
    database.checkpoint()
    second = head_of_log()
    database.put_response("me", kept("b"))
    assert first != second == head_of_log()
    assert [one.id for one in database.responses("me", ["a", "b"])] == ["a", "b"]
    database.close()


def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'kept.sqlite'}", DAY_S, 1 << 20)
    set_page_limit(database, 20)
    with pytest.raises(OperationalError, match="full"):
        database.put_response("me", kept("a", size=1 << 20))
    database.put_response("me", kept("b"))
    database.close()
