"""Registered models: promotion, rollback, and what a URI stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from agit_core import model_folder
from agit_core.errors import BadInput, RunFailed
from pipeline.config import Config
from pipeline.launch import specs
from pipeline.registry import models, tracking
from tests.pipeline.registry.finished_runs import Register, against, evaluation


def test_the_gate_does_not_overrule_people(config: Config, register: Register) -> None:
    register(seed=1)
    noise = against(evaluation(kid=0.04), 1, 0.05, "noise")
    register(seed=2, told=noise)
    models.promote(config, 2, "looks better")
    models.rollback(config, "it is not")
    register(seed=2, told=against(evaluation(kid=0.03), 1, 0.05))
    assert models.champion(config)["version"] == 1  # type: ignore[index]
    assert [e["action"] for e in models.history(config)["events"]] == ["gate", "gate", "promote", "rollback"]


def test_a_promotion_that_failed_is_nothing_to_roll_back_to(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(seed=1)
    register(seed=2, told=against(evaluation(kid=0.04), 1, 0.05))
    register(seed=3, told=against(evaluation(kid=0.06), 2, 0.04, "worse"))

    def away(*_: Any) -> None:
        raise RunFailed("the registry does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_alias", away)
        with pytest.raises(RunFailed, match="does not answer"):
            models.promote(config, 3, "looks good")
    assert models.rollback(config, "v2 is bad")["champion"] == 1


def test_promotion_refusal_and_rollback_with_their_audit(config: Config, register: Register) -> None:
    register(seed=1)
    register(seed=2, told=against(evaluation(kid=0.049), 1, 0.05, "noise"))
    third = register(seed=3, told=against(evaluation(kid=0.02), 1, 0.05))
    assert third.aliases == ["challenger", "champion"]

    found = models.champion(config)
    assert found is not None
    assert (found["version"], found["uri"]) == (3, third.source)
    with pytest.raises(BadInput, match="is already the champion"):
        models.promote(config, 3, "again")
    with pytest.raises(BadInput, match="needs a reason"):
        models.promote(config, 2, " ")
    models.promote(config, 2, "looks better to the customer")
    assert models.resolve("models:/h2z@champion", config).endswith("h2z-run2")
    assert models.rollback(config, "the customer was wrong")["version"] == 3
    assert models.rollback(config, "and so were we")["version"] == 1
    with pytest.raises(BadInput, match="no previous champion"):
        models.rollback(config, "further")

    told = models.history(config)
    assert [event["action"] for event in told["events"]] == ["gate"] * 3 + ["promote", "rollback", "rollback"]
    assert [event["champion"] for event in told["events"]] == [1, 1, 3, 2, 3, 1]
    assert told["events"][3]["reason"] == "looks better to the customer"
    assert all(event["by"] and event["time"] for event in told["events"])
    assert told["events"][1]["decision"]["reasons"]
    assert [row["version"] for row in told["versions"]] == [3, 2, 1]
    assert told["versions"][2]["aliases"] == ["champion"]
    assert told["versions"][0]["metrics"]["kid_mean"] == 0.02


def test_resolving_model_uris(config: Config, register: Register) -> None:
    source = register(seed=1).source
    assert models.resolve("models:/h2z@challenger", config) == source
    assert models.resolve("models:/h2z/1", config) == source
    assert models.resolve("some/folder", config) == "some/folder"
    for uri, reason in {
        "models:/h2z": "names no version",
        "models:/h2z/7": "has no version 7",
        "models:/h2z@prod": "has no alias 'prod'; its aliases are challenger, champion",
        "models:/horse@champion": "no model 'horse' is registered",
    }.items():
        with pytest.raises(BadInput, match=reason):
            models.resolve(uri, config)


def test_the_entry_point_resolves_without_a_configuration(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = register(seed=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri(config))
    assert model_folder.read("models:/h2z@champion").digest == model_folder.read(told.source).digest


def test_without_a_registry_nothing_is_created(bare_config: Config) -> None:
    assert models.champion(bare_config) is None
    assert models.history(bare_config) == {"name": "h2z", "versions": [], "events": []}
    with pytest.raises(BadInput, match="no model 'h2z' is registered"):
        models.promote(bare_config, 1, "why not")
    assert not Path(bare_config.storage).exists()


def test_a_job_is_told_the_folder_of_the_weights_it_starts_from(
    config: Config, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have no registry; and the one to ask is the configuration's, wherever the command is called."""
    told = register(seed=1)
    start = config.train.model_copy(update={"start_from": "models:/h2z@champion"})
    config = config.model_copy(update={"train": start})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    spec = specs.spec_of(config, "data/x", "h2z-run2")
    assert spec.config["train"]["start_from"] == told.source
    lost = config.train.model_copy(update={"start_from": "models:/h2z/7"})
    with pytest.raises(BadInput, match="7"):
        specs.spec_of(config.model_copy(update={"train": lost}), "data/x", "h2z-run2")
