"""The schema of the embedded server's database, so that a new one needs no migrations.

Prefect builds a new SQLite file by some sixty migrations, more than six seconds of processor time that every fresh
folder would pay. ``prefect-VERSION.sql`` holds what they lead to; with another version of Prefect there is no such
file, and Prefect migrates as usual. After an upgrade: ``python -m pipeline.flows.prefect_schema``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import tempfile
from importlib import metadata
from pathlib import Path


def file() -> Path:
    """Where the schema of the installed Prefect is, if it is part of the package."""
    return Path(__file__).parent / f"prefect-{metadata.version('prefect')}.sql"


def create(database: Path) -> None:
    """Create an SQLite file with Prefect's tables, unless there is one or the schema of this version is unknown.

    It appears whole or not at all, also when two servers start in one folder at the same time.
    """
    if database.exists() or not file().is_file():
        return
    with tempfile.TemporaryDirectory(prefix=".prefect-", dir=database.parent) as scratch:
        made = Path(scratch) / database.name
        with contextlib.closing(sqlite3.connect(made)) as connection:
            connection.executescript(file().read_text())
            # kept in the file; connections that all switch to it at first come into each other's way
            connection.execute("PRAGMA journal_mode = WAL")
        made.chmod(0o600)
        # another server was first, or the file system has no links: then Prefect migrates
        with contextlib.suppress(OSError):
            os.link(made, database)


def migrated(database: Path) -> str:
    """The schema, as SQL, of a new file that Prefect itself has migrated. Call it before ``import prefect``."""
    os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{database}"
    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())
    return dump(database)


def dump(database: Path) -> str:
    """Schema and content of an SQLite file as SQL."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return "\n".join(connection.iterdump()) + "\n"


def _write() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        text = migrated(Path(scratch) / "prefect.db")
    for old in file().parent.glob("prefect-*.sql"):
        old.unlink()
    file().write_text(text)


if __name__ == "__main__":
    _write()
