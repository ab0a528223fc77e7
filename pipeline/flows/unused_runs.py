"""Flow runs in the database of the embedded Prefect server that ended long ago, removed by Prefect's own clean-up.

A Prefect server of a team removes its own (``PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED``).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from pipeline.flows import prefect_schema
from pipeline.flows.embedded import DATABASE, HOME

_LEAST_SECONDS = 3600.0
"""Prefect's own minimum age."""
_ENDED = """
SELECT count(*), max(strftime('%s', end_time)) FROM flow_run
WHERE parent_task_run_id IS NULL AND end_time < ?
AND state_type IN ('COMPLETED', 'CANCELLED', 'FAILED', 'CRASHED')
"""


class Ended(NamedTuple):
    """Flow runs that ended before a time; ``newest``: Unix time at which the last of them ended."""

    database: Path
    number: int
    newest: float


def find(older_than_days: float) -> Ended | None:
    """Count them; None where there are none.

    Raises:
        BadInput: the database is damaged.
    """
    database = HOME.absolute() / DATABASE
    if not database.is_file():
        return None
    prefect_schema.check(database)
    until = datetime.fromtimestamp(time.time() - _age(older_than_days), UTC)
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        number, newest = connection.execute(_ENDED, (until.strftime("%Y-%m-%d %H:%M:%S"),)).fetchone()
    return Ended(database, number, float(newest)) if number else None


def remove(older_than_days: float) -> None:
    """Remove them with their logs, task runs and artifacts, and events of the same age."""
    database = HOME.absolute() / DATABASE
    age = timedelta(seconds=_age(older_than_days) + 1)
    from prefect import settings

    chosen = {
        settings.PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{database}",
        settings.PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD: age,
        settings.PREFECT_SERVER_EVENTS_RETENTION_PERIOD: age,
    }
    with settings.temporary_settings(chosen):
        asyncio.run(_vacuum())
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(database)) as shrunk,
    ):
        shrunk.execute("VACUUM")  # not while a run uses the file; it stays as large then


async def _vacuum() -> None:
    from prefect.server.database import provide_database_interface
    from prefect.server.services import db_vacuum

    database = provide_database_interface()
    for step in (
        db_vacuum.vacuum_old_flow_runs,
        db_vacuum.vacuum_old_events,
        db_vacuum.vacuum_orphaned_logs,
        db_vacuum.vacuum_orphaned_artifacts,
        db_vacuum.vacuum_stale_artifact_collections,
    ):
        await step(db=database)
    await (await database.engine()).dispose()


def _age(days: float) -> float:
    return max(days * 86400, _LEAST_SECONDS)
