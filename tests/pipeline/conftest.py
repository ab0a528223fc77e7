from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agit_core.scores import inception
from pipeline.registry import tracking
from tests.pipeline import features
from tests.threads import one_thread  # noqa: F401


@pytest.fixture(scope="module")
def small_inception() -> Iterator[None]:
    """Evaluations in this process use the small feature network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load", features.load)
        yield


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to create its tables: once is enough, every test gets a copy."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking.client(f"sqlite:///{file}").search_registered_models()
    return file
