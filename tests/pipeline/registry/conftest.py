"""A real MLflow SQLite store, and registration of finished runs in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline.config import Config
from pipeline.records import Evaluation, Registration
from pipeline.registry import registration
from tests.pipeline.registry.finished_runs import Register, evaluation, make_run


@pytest.fixture
def bare_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A storage where nothing was ever written."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTEST_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.chdir(tmp_path)
    return configs.parse({"name": "h2z", "storage": str(tmp_path / "state")})


@pytest.fixture
def config(bare_config: Config, empty_database: Path) -> Config:
    Path(bare_config.storage).mkdir()
    shutil.copy(empty_database, Path(bare_config.storage) / "mlflow.db")
    return bare_config


@pytest.fixture
def register(config: Config) -> Register:
    def _register(seed: int, told: Evaluation | None = None, settings: Config = config) -> Registration:
        uri = make_run(settings.storage, f"h2z-run{seed}", seed)
        return registration.register(settings, uri, told or evaluation(), {"data_fingerprint": "abc"})

    return _register
