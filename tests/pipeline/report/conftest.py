"""One report of a fabricated run, for the tests of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import storage
from pipeline.report import build
from tests.pipeline.fabricated_run import fabricate


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, run, data = fabricate(tmp_path_factory.mktemp("report"), small=False)
    uri = build.build(config, run, data)
    assert uri == storage.join(run, "report.html")
    return Path(uri)


@pytest.fixture(scope="module")
def html(built: Path) -> str:
    return built.read_text()
