"""A training as TensorBoard event files in the run's folder: ``tensorboard --logdir STORAGE/runs`` shows all runs."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from pipeline import storage
from pipeline.live.sink import State, numbers
from pipeline.records import Tree

FOLDER = "tensorboard"
_UPLOAD_SECONDS = 30.0


class TensorBoardSink:
    """One event file per process that waits for the run, written anew from the run's rows.

    In object storage, which cannot append, the file is uploaded now and then.
    """

    name = "TensorBoard"

    def __init__(self, run_uri: str) -> None:
        self._uri = storage.join(run_uri, FOLDER)
        self._uploaded = 0.0

    def open(self) -> set[int]:
        for earlier in storage.list_(self._uri):
            storage.remove(earlier)
        self._scratch = (
            tempfile.TemporaryDirectory(prefix="agit-events-") if storage.is_remote(self._uri) else None
        )
        self._folder = Path(self._scratch.name) if self._scratch else storage.local_path(self._uri)
        self._writer = EventFileWriter(str(self._folder))
        return set()

    def rows(self, rows: Sequence[Tree]) -> None:
        for row in rows:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers(row)]
            self._add(int(row["step"]), values, float(row.get("time") or time.time()))
        self._flush(now=False)

    def pictures(self, step: int, sheets: Mapping[str, bytes]) -> None:
        from PIL import Image

        values = []
        for direction, sheet in sheets.items():
            width, height = Image.open(io.BytesIO(sheet)).size
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=sheet)
            values.append(Summary.Value(tag=f"samples/{direction}", image=image))
        self._add(step, values, time.time())
        self._flush(now=False)

    def close(self, state: State) -> None:
        self._flush(now=True)
        self._writer.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _add(self, step: int, values: Sequence[Summary.Value], seconds: float) -> None:
        self._writer.add_event(Event(wall_time=seconds, step=step, summary=Summary(value=values)))

    def _flush(self, now: bool) -> None:
        self._writer.flush()
        if self._scratch is not None and (now or time.monotonic() - self._uploaded > _UPLOAD_SECONDS):
            for path in self._folder.iterdir():
                storage.upload_file(path, storage.join(self._uri, path.name))
            self._uploaded = time.monotonic()
