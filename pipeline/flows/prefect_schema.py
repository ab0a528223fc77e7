"""Schema of the embedded server's database, which saves the migrations for a new one.

Prefect creates a new SQLite file by about sixty migrations, more than six seconds of CPU time for every new folder.
``prefect-VERSION.sql`` contains their result; for another version of Prefect there is no such file, and Prefect
migrates as usual. After an upgrade, run ``python -m pipeline.flows.prefect_schema``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import tempfile
from importlib import metadata
from pathlib import Path

from agit_core.errors import BadInput


def file() -> Path:
    """Path of the schema for the installed version of Prefect; it may not exist."""
    return Path(__file__).parent / f"prefect-{metadata.version('prefect')}.sql"


def create(database: Path) -> None:
    """Create an SQLite file with Prefect's tables, unless it exists or the schema of this version is unknown.

    The file appears atomically, even if two servers start in one folder at once.
    """
    if database.exists() or not file().is_file():
        return
    with tempfile.TemporaryDirectory(prefix=".prefect-", dir=database.parent) as scratch:
        made = Path(scratch) / database.name
        with contextlib.closing(sqlite3.connect(made)) as connection:
            connection.executescript(file().read_text())
            # stored in the file: otherwise the first connections would conflict when switching the mode
            connection.execute("PRAGMA journal_mode = WAL")
        made.chmod(0o600)
        # ignore: another server was faster, or the file system has no hard links, and Prefect migrates
        with contextlib.suppress(OSError):
            os.link(made, database)


def check(database: Path) -> None:
    """Check that a file, if it exists, is an SQLite database.

    Raises:
        BadInput: it is damaged.
    """
    if not database.exists():
        return
    try:
        with contextlib.closing(
            sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        ) as opened:
            opened.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:  # locked, for example
        return
    except sqlite3.DatabaseError as error:
        raise BadInput(
            f"{database} is damaged ({error}); remove it: the next run creates it again, without the list of earlier "
            "flow runs"
        ) from None


def migrated(database: Path) -> str:
    """Let Prefect migrate a new file and return its schema as SQL. Call it before ``import prefect``."""
    os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{database}"
    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())
    return dump(database)


def dump(database: Path) -> str:
    """Dump schema and contents of an SQLite file as SQL."""
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
