from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agit_core.errors import BadInput
from pipeline import config as configs
from pipeline import storage
from pipeline.config import Config
from pipeline.registry import models, tracking, versions
from tests.pipeline.registry.finished_runs import Register, against, evaluation


def test_registries_that_share_a_storage_tell_their_own_stories(
    config: Config, register: Register, empty_database: Path
) -> None:
    """Without a server each machine has its own registry, and both begin with version 1."""
    shutil.copy(empty_database, "other.db")
    other = configs.parse(
        {**config.plain(), "register": {"tracking_uri": f"sqlite:///{Path('other.db').resolve()}"}}
    )
    register(seed=1)
    register(seed=2, settings=other)
    register(seed=3, told=against(evaluation(kid=0.01), 1, 0.05))
    models.promote(config, 1, "looks better")
    [only] = models.history(other)["events"]
    assert (only["action"], only["version"], only["champion"]) == ("gate", 1, 1)
    assert only["mlflow_run_id"] == versions.get(tracking.tracking_uri(other), "h2z", 1).run_id
    with pytest.raises(BadInput, match="no previous champion"):
        models.rollback(other, "it is bad")
    assert [e["champion"] for e in models.history(config)["events"]] == [1, 2, 1]
    assert models.rollback(config, "it is not")["champion"] == 2


def test_events_of_an_earlier_release_are_read(config: Config, register: Register) -> None:
    register(seed=1)
    register(seed=2, told=against(evaluation(kid=0.01), 1, 0.05))
    for uri in storage.list_(storage.join(config.storage, "models/h2z/audit")):
        event = storage.read_json(uri)
        del event["mlflow_run_id"]
        storage.write_json(uri, event)
    assert [e["champion"] for e in models.history(config)["events"]] == [1, 2]
    assert models.rollback(config, "it is bad")["champion"] == 1
