"""Pass a run's rows and sample pictures to the displays (MLflow, TensorBoard, wandb), each from its own thread."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agit_core.errors import BadInput
from pipeline import records, storage
from pipeline.config import Config
from pipeline.live.sink import Sink, State
from pipeline.records import Tree
from pipeline.redact import redact

log = logging.getLogger(__name__)

PAUSE_SECONDS = 2.0
"""Rows are collected for so long; a place that failed is tried again after ten times that."""
_LISTING_SECONDS = 15.0
_SCORES = "validation"
"""Part of a row that is added some time after the row."""
_CLOSING_SECONDS = {"FINISHED": 20.0, "FAILED": 20.0, "KILLED": 3.0}
"""How long the end of the training job waits for a place that does not answer."""


class Feed:
    """Keeps one sink up to date with a run's folder.

    Rows come from the job's progress as they are logged, and from the files of the metrics, which hold all of them:
    there it finds what it, or the sink, has missed.
    """

    def __init__(self, sink: Sink, run_uri: str) -> None:
        self._sink = sink
        self._run_uri = run_uri
        self._waiting: dict[int, Tree] = {}
        self._seen: set[int] | None = None
        self._scored: set[int] = set()
        self._files: list[str] = []
        self._rows: list[Tree] = []
        self._shown: set[int] = set()
        self._listed = float("-inf")
        self._warned = False
        self._ended: State | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"live-{sink.name}", daemon=True)
        self._thread.start()

    def note(self, rows: Sequence[Tree]) -> None:
        """Takes the newest rows; costs nothing."""
        with self._lock:
            self._waiting |= {int(row["step"]): row for row in rows}

    def close(self, state: State) -> None:
        """Sends what is left; gives up on a place that does not answer."""
        self._ended = state
        self._wake.set()
        self._thread.join(_CLOSING_SECONDS[state])

    def _work(self) -> None:
        pause = 0.0
        while True:
            self._wake.wait(pause)
            ended = self._ended
            try:
                self._deliver(everything=ended is not None)
                if ended is not None and self._seen is not None:
                    self._sink.close(ended)
                pause, self._warned = PAUSE_SECONDS, False
            except Exception as error:
                pause = 10 * PAUSE_SECONDS
                if not self._warned:
                    self._warned = True
                    reason = redact(" ".join(str(error).split()))[:300]
                    log.warning("%s cannot show the training yet: %s", self._sink.name, reason)
            if ended is not None:
                return

    def _deliver(self, everything: bool) -> None:
        with self._lock:
            waiting = dict(self._waiting)
        if not waiting and not everything:
            return  # nothing is opened for a training that has not begun
        listing = everything or self._warned or time.monotonic() - self._listed > _LISTING_SECONDS
        if listing:
            waiting |= {int(row["step"]): row for row in self._stored()}
        if self._seen is None:
            if not waiting:
                return  # it ended before its first row
            self._seen = self._sink.open()
        rows = list(self._new(waiting, self._seen))
        if rows:
            self._sink.rows(rows)
            self._seen |= {int(row["step"]) for row in rows}
            self._scored |= {int(row["step"]) for row in rows if _SCORES in row}
        with self._lock:
            self._waiting = {step: row for step, row in self._waiting.items() if step not in self._seen}
        if listing:
            for folder in storage.list_(storage.join(self._run_uri, records.SAMPLES)):
                self._show(folder)
            self._listed = time.monotonic()

    def _stored(self) -> list[Tree]:
        """The rows in the storage, read again only when there are other files than before."""
        folders = (storage.join(self._run_uri, name) for name in (records.METRICS, records.SCORES))
        files = [uri for folder in folders for uri in storage.list_(folder)]
        if files != self._files:
            self._rows, _ = records.metric_rows(self._run_uri)
            self._files = files
        return self._rows

    def _new(self, rows: Mapping[int, Tree], seen: set[int]) -> Iterator[Tree]:
        """Rows that the sink has not seen, and the scores that were added to those it has."""
        for step in sorted(rows):
            row = rows[step]
            if step not in seen:
                yield row
            elif _SCORES in row and step not in self._scored:
                yield {key: row[key] for key in ("step", "time", _SCORES) if key in row}

    def _show(self, folder: str) -> None:
        about = records.SAMPLE_STEP.peek(folder)
        if about is None or about.step is None or about.step in self._shown:
            return
        self._sink.pictures(about.step, _sheets(folder, about.strips))
        self._shown.add(about.step)


def _sheets(folder: str, strips: Sequence[str]) -> dict[str, bytes]:
    """``a2b`` and ``b2a``, each its strips below each other as a PNG."""
    from PIL import Image

    sheets = {}
    for direction in ("a2b", "b2a"):
        data = [
            storage.read_bytes(storage.join(folder, name)) for name in strips if name.startswith(direction)
        ]
        images = [Image.open(io.BytesIO(item)).convert("RGB") for item in data]
        if not images:
            continue
        sheet = Image.new(
            "RGB", (max(image.width for image in images), sum(image.height for image in images))
        )
        top = 0
        for image in images:
            sheet.paste(image, (0, top))
            top += image.height
        out = io.BytesIO()
        sheet.save(out, "PNG")
        sheets[direction] = out.getvalue()
    return sheets


@contextlib.contextmanager
def reporting(config: Config, run_id: str, run_uri: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Reports a training to ``train.report_to`` within the block; gives what is to be called with its progress.

    Raises:
        BadInput: a place whose package is not installed.
    """
    feeds = [Feed(_sink(name, config, run_id, run_uri), run_uri) for name in config.train.report_to]

    def note(progress: Mapping[str, Any]) -> None:
        for feed in feeds:
            feed.note(progress.get("rows") or [])

    state = "FAILED"
    try:
        yield note
        state = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        state = "KILLED"
        raise
    finally:
        for feed in feeds:
            feed.close(state)


def _sink(name: str, config: Config, run_id: str, run_uri: str) -> Sink:
    try:
        if name == "mlflow":
            from pipeline.live.to_mlflow import MlflowSink

            return MlflowSink(config, run_id, run_uri)
        if name == "tensorboard":
            from pipeline.live.to_tensorboard import TensorBoardSink

            return TensorBoardSink(run_uri)
        from pipeline.live.to_wandb import WandbSink

        return WandbSink(config, run_id, run_uri)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"train.report_to names {name}, which needs the package {error.name}; install it or leave {name} out"
        ) from None
