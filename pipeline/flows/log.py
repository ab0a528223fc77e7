"""Progress of flow runs in a Prefect worker, written to the flow run's log instead of a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prefect import get_run_logger
from prefect.runtime import deployment, flow_run

from pipeline import logs, progress

LINE_SECONDS = 15.0


@contextlib.contextmanager
def in_worker() -> Iterator[None]:
    """Log the stages' progress to the flow run if it belongs to a deployment; no effect on the command line."""
    if deployment.id is None:
        yield
        return
    if logs.as_json():
        logs.set_up()
        logs.bind(flow_run=flow_run.name)
    logger = get_run_logger()
    with progress.shown_on(progress.Lines(logger.info, every=LINE_SECONDS)):
        yield
