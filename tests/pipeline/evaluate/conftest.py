"""One set of images and one evaluation for the tests of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agit_core import networks
from pipeline import config as configs
from pipeline.config import Config
from pipeline.data.prepare.stage import prepare
from pipeline.evaluate.scoring import evaluate
from pipeline.records import Evaluation
from tests.pipeline.evaluate.tiny_models import METHOD, settings_tree, write_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    return configs.parse(settings_tree(root))


@pytest.fixture(scope="module")
def data_uri(config: Config) -> str:
    return prepare(config).uri


@pytest.fixture(scope="module")
def run_uri(config: Config) -> str:
    return write_run(config, "tiny-first", networks.build(METHOD.networks, seed=1))


@pytest.fixture(scope="module")
def first(config: Config, run_uri: str, data_uri: str) -> tuple[Evaluation, list[dict[str, Any]]]:
    """The evaluation that most tests look at, and its progress events."""
    events: list[dict[str, Any]] = []
    return evaluate(config, run_uri, data_uri, lambda event: events.append(dict(event))), events
