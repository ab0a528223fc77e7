"""Artifacts of flow runs in the Prefect UI: progress, score table, sample pictures, link to the report.

A failure to write an artifact is logged once and never fails a run.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import time
from collections.abc import Iterator
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from pipeline import progress, records, storage
from pipeline.config import Config
from pipeline.metrics import table
from pipeline.progress import Status
from pipeline.records import Evaluation, Run
from pipeline.retrain import Decision

UPDATE_SECONDS = 10.0
_SAMPLE_WIDTH = 1024


@contextlib.contextmanager
def progress_of(stage: str) -> Iterator[None]:
    """Update a progress artifact within the block; 100 % when the block succeeds."""
    shown = _Progress(stage)
    with progress.listening(shown):
        yield
    shown.end()


class _Progress:
    """A listener with one progress artifact."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: Any = None
        self._last = 0.0
        self._line = ""
        self._off = False

    def __call__(self, stage: str, status: Status) -> None:
        self._line = status.line()
        if status.total and time.monotonic() - self._last >= UPDATE_SECONDS:
            self._show(min(100.0, 100.0 * (status.done or 0) / status.total))

    def end(self) -> None:
        """Show completion, unless the stage reported no progress because its work was already done."""
        if self._line:
            self._show(100.0)

    def _show(self, percent: float) -> None:
        if self._off:
            return
        self._last = time.monotonic()
        self._off = True  # stays off when the next lines fail
        with _best_effort(f"progress of {self._stage}"):
            if self._artifact is None:
                self._artifact = create_progress_artifact(
                    progress=percent, key=f"agit-{self._stage}-progress", description=self._line
                )
            else:
                update_progress_artifact(artifact_id=self._artifact, progress=percent, description=self._line)
            self._off = False


def decision(config: Config, decided: Decision) -> None:
    """Why a scheduled run trained or not, and which images were added, removed, changed or moved."""
    with _best_effort("decision"):
        lines = [f"# {config.name}: {'trained' if decided.train else 'not trained'}", "", decided.reason, ""]
        for kind, changed in (decided.changes.plain() if decided.changes else {}).items():
            if changed["count"]:
                more = changed["count"] - len(changed["names"])
                names = [*changed["names"], *([f"and {more} more"] if more else [])]
                lines += [f"## {changed['count']} {kind}", "", *(f"- {name}" for name in names), ""]
        create_markdown_artifact(key=_name("retrain", config.name), markdown="\n".join(lines))


def scores(run: Run, evaluation: Evaluation) -> None:
    """The score table with the identity baseline, and the scores of the run's checkpoints."""
    with _best_effort("score table"):
        page = table.markdown(
            f"Scores of {run.run_id}", evaluation.metrics, evaluation.counts, evaluation.inception
        )
        curve = {step: one.metrics for step, one in records.read_scores(run.uri).items()}
        chosen = run.result.validation
        page += table.validation_markdown(curve, chosen.best_step if chosen else None)
        create_markdown_artifact(key=_key("scores", run), markdown=page)


def report_link(run: Run, uri: str) -> None:
    with _best_effort("report link"):
        link = uri if "://" in uri else f"file://{storage.local_path(uri)}"
        create_link_artifact(key=_key("report", run), link=link, link_text=f"Report of {run.run_id}")


def search(summary: dict[str, Any]) -> None:
    """The trials of a search as a table, and the link to its report."""
    name, metric, uri = summary["search_id"], summary["metric"], summary["report"]
    with _best_effort("table of trials"):
        rows = [
            f"| {t['trial']} | {t['state']} | {t['step']} | {'' if t[metric] is None else f'{t[metric]:.4g}'} | "
            + ", ".join(f"`{key}` {value}" for key, value in t["values"].items())
            for t in summary["trials"]
        ]
        head = [
            f"# Trials of {name}",
            "",
            f"| trial | state | step | {metric} | values |",
            "|--|--|--|--|--|",
        ]
        create_markdown_artifact(key=_name("trials", name), markdown="\n".join([*head, *rows]))
    with _best_effort("report link"):
        link = uri if "://" in uri else f"file://{storage.local_path(uri)}"
        create_link_artifact(key=_name("report", name), link=link, link_text=f"Report of {name}")


def samples(run: Run) -> None:
    """The newest sample strips as one picture, small enough to live in Prefect's database."""
    with _best_effort("sample pictures"):
        picture = _newest_samples(run.uri)
        if picture is not None:
            encoded = base64.b64encode(picture).decode()
            create_image_artifact(
                key=_key("samples", run),
                image_url=f"data:image/jpeg;base64,{encoded}",
                description="real, attention, translated, reconstructed",
            )


def _newest_samples(run_uri: str, strips: int = 4) -> bytes | None:
    from PIL import Image

    chosen = records.newest_samples(run_uri, strips // 2)
    images = [Image.open(io.BytesIO(storage.read_bytes(uri))).convert("RGB") for uri in chosen]
    if not images:
        return None
    sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)))
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    if sheet.width > _SAMPLE_WIDTH:
        sheet.thumbnail((_SAMPLE_WIDTH, 4 * _SAMPLE_WIDTH))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=85)
    return out.getvalue()


def _key(kind: str, run: Run) -> str:
    return _name(kind, run.run_id)


def _name(kind: str, of: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", f"agit-{kind}-{of}".lower())


@contextlib.contextmanager
def _best_effort(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        get_run_logger().warning("artifact '%s' could not be written: %s", what, " ".join(str(error).split()))
