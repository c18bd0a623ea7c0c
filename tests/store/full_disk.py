"""A full disk, as far as SQLite can tell."""

from server.store.database import Database


def set_page_limit(database: Database, num_pages: int) -> None:
    """Let the file of the database hold this many pages; fewer than it has are as many as it has."""
    statement = f"PRAGMA max_page_count = {num_pages}"
    database._sqlite_writer().execute(statement)
    with database._engine.connect() as connection:
        connection.exec_driver_sql(statement)
        connection.commit()
