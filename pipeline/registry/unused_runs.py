"""Runs of a local MLflow database that no registered version needs, and their removal.

``mlflow gc`` would do more than it lists: it also purges every deleted experiment, including the runs of registered
versions in it. A server's runs are left to its administrator.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.registry import tracking

_PER_PAGE = 1000


def find(uri: str, registered: set[str], unused: Callable[[str], bool]) -> Iterator[tuple[Any, str]]:
    """Yield MLflow's runs without a version, each with the reason why nothing needs it.

    Args:
        registered: ids of the runs that versions refer to.
        unused: whether nothing needs the training run at this URI. Runs that name none are somebody else's; those
            are found only after their owner has deleted them.
    """
    file = tracking.database(uri)
    if file is None or not file.is_file():
        return
    with tracking.explained(uri):
        from mlflow.entities import ViewType

        connection = tracking.client(uri)
        experiments = [
            item.experiment_id for item in connection.search_experiments(ViewType.ALL, max_results=_PER_PAGE)
        ]
        token = None
        while True:
            page = connection.search_runs(
                experiments, run_view_type=ViewType.ALL, max_results=_PER_PAGE, page_token=token
            )
            for run in page:
                training = run.data.tags.get("agit.run_uri")
                if run.info.run_id in registered:
                    continue
                if run.info.lifecycle_stage == "deleted":
                    yield run, "deleted in MLflow, no registered version"
                elif training is not None and unused(training):
                    yield run, "no registered version"
            token = page.token
            if not token:
                return


def artifacts(run: Any) -> str:
    """Folder of a run's files in MLflow: ``.../RUN_ID/artifacts`` without its last part."""
    location = str(run.info.artifact_uri).removesuffix("/artifacts")
    return location if storage.name(location) == run.info.run_id else str(run.info.artifact_uri)


def remove(uri: str, run_ids: Iterable[str]) -> None:
    """Remove runs with their files for good; an interruption leaves those that it did not reach."""
    with tracking.explained(uri):
        connection = tracking.client(uri)
        store = connection._tracking_client.store
        for run_id in run_ids:
            run = connection.get_run(run_id)
            connection.delete_run(run_id)
            storage.remove(artifacts(run))
            store._hard_delete_run(run_id)
    shrink(tracking.database(uri))


def shrink(file: Path | None) -> None:
    """Return the free pages of an SQLite file to the disk, unless another process is using it."""
    if file is None or not file.is_file():
        return
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("VACUUM")
