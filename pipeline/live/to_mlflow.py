"""The MLflow run of a training, from its first row on; registration completes the same run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from pipeline.config import Config
from pipeline.live.sink import State
from pipeline.records import Tree
from pipeline.registry import tracking


class MlflowSink:
    """Rows as metrics, settings as parameters, sample pictures as MLflow's image series."""

    name = "MLflow"

    def __init__(self, config: Config, run_id: str, run_uri: str) -> None:
        self._config = config
        self._run_id = run_id
        self._run_uri = run_uri
        self._uri = tracking.tracking_uri(config)

    def open(self) -> set[int]:
        self._run = tracking.begin_live(self._uri, self._config, self._run_id, self._run_uri)
        return tracking.logged_steps(self._uri, self._run.info.run_id)

    def rows(self, rows: Sequence[Tree]) -> None:
        tracking.log_rows(self._uri, self._run.info.run_id, rows)

    def pictures(self, step: int, sheets: Mapping[str, bytes]) -> None:
        from PIL import Image

        if step > int(
            self._run.data.tags.get(tracking.PICTURED, 0)
        ):  # not by an earlier call for this training
            images = {f"samples {d}": Image.open(io.BytesIO(sheet)) for d, sheet in sheets.items()}
            tracking.log_pictures(self._uri, self._run, step, images)

    def close(self, state: State) -> None:
        tracking.end_live(self._uri, self._run.info.run_id, state)
