from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agit_core import model_folder, networks
from agit_core.errors import BadInput
from pipeline import clean, storage, tasks
from pipeline import config as configs
from pipeline.config import Config
from pipeline.records import GateDecision, Registration, Result, Run, ScoredModel
from pipeline.registry import gate, models, registration, tracking, versions
from tests.pipeline.killed import write_and_die
from tests.pipeline.registry.finished_runs import METHOD, Register, against, evaluation, make_run
from tests.pipeline.s3 import S3Server


def test_registering_writes_a_model_folder_that_loads(config: Config, register: Register) -> None:
    told = register(seed=1)
    assert (told.name, told.version) == ("h2z", 1)
    assert told.aliases == ["challenger", "champion"]
    model = model_folder.read(told.source)
    assert model.name == "h2z"
    assert model.lineage["data_fingerprint"] == "abc"
    expected = networks.build(METHOD.networks, 1).state_dict()
    assert all((model.weights[key] == value).all() for key, value in expected.items())
    assert storage.read_json(storage.join(config.storage, "runs/h2z-run1/registration.json")) == told.plain()
    card = storage.read_text(storage.join(told.source, "README.md"))
    assert "| KID to the target × 100 | 5.00" in card
    assert "pipeline.serve.pyfunc" in storage.read_text(storage.join(told.source, "MLmodel"))


def test_a_model_folder_that_is_gone_is_written_again(
    config: Config, register: Register, tmp_path: Path
) -> None:
    first = register(seed=1)
    shutil.rmtree(first.source)
    assert register(seed=1) == first
    assert model_folder.read(models.resolve("models:/h2z/1", config)).name == "h2z"
    # in another storage, for a new version, which is found again
    shutil.rmtree(first.source)
    shutil.copytree(config.storage, tmp_path / "moved")
    elsewhere = configs.parse({**config.plain(), "storage": str(tmp_path / "moved")})
    second = register(seed=1, settings=elsewhere)
    assert (second.version, second.source) == (2, f"{tmp_path}/moved/models/h2z/h2z-run1")
    assert register(seed=1, settings=elsewhere).version == 2


def test_a_killed_registration_leaves_nothing_in_the_model(config: Config, register: Register) -> None:
    folder = Path(config.storage) / "models" / "h2z" / "h2z-run1"
    write_and_die(folder / "weights.safetensors")
    assert register(seed=1).source == str(folder)
    assert not list(folder.rglob("*.part"))


def test_the_same_run_keeps_its_version(config: Config, register: Register) -> None:
    first = register(seed=1)
    assert register(seed=1) == first
    assert len(models.history(config)["versions"]) == 1
    assert len(models.history(config)["events"]) == 1


def test_cleaning_removes_the_runs_that_no_version_came_from(config: Config, register: Register) -> None:
    kept = register(seed=1)
    make_run(config.storage, "h2z-run2", seed=2)
    clean.remove(config, clean.find(config, 0, now=time.time() + 7200))
    assert [path.name for path in Path(config.storage, "runs").iterdir()] == ["h2z-run1"]
    assert model_folder.read(kept.source).name == "h2z"


def test_a_version_that_was_not_promoted_is_decided_again_when_policy_or_evaluation_change(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(seed=1)
    noise = against(evaluation(kid=0.04), 1, 0.05, "noise")
    refused = register(seed=2, told=noise)
    assert refused.aliases == ["challenger"]
    assert register(seed=2, told=noise) == refused
    register(seed=3, told=against(evaluation(kid=0.06), 1, 0.05, "worse"))
    assert len(models.history(config)["events"]) == 3

    # other figures, still refused: the newest challenger stays the challenger
    again = register(seed=2, told=against(evaluation(kid=0.045), 1, 0.05, "noise"))
    assert (again.version, again.aliases, again.decision.promoted) == (2, [], False)
    assert "0.0450 against 0.0500" in again.decision.reasons[0]
    assert models.history(config)["versions"][1]["metrics"]["kid_mean"] == 0.045

    gate_policy = {"register": {"gate": {"beyond_noise": False}}}
    easier = configs.parse({**config.plain(), **gate_policy})
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.registry.audit.record", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            register(seed=2, told=noise, settings=easier)
    for settings in (easier, easier, config):  # once promoted, no other policy is asked
        assert register(seed=2, told=noise, settings=settings).aliases == ["champion"]
    events = models.history(config)["events"]
    assert [(e["version"], e["champion"]) for e in events] == [(1, 1), (2, 1), (3, 1), (2, 1), (2, 2)]
    assert [e["policy"]["beyond_noise"] for e in events] == [True] * 4 + [False]


def test_a_challenger_that_fails_under_a_stricter_policy_is_challenger_no_more(
    config: Config, register: Register
) -> None:
    register(seed=1)
    told = against(evaluation(kid=0.06), 1, 0.05, "worse")
    assert register(seed=2, told=told).aliases == ["challenger"]
    stricter = configs.parse({**config.plain(), "register": {"gate": {"maximum_coverage": 0.2}}})
    assert register(seed=2, told=told, settings=stricter).aliases == []


def test_the_champions_weights_trained_again_are_told_as_such_and_not_scored_again(
    config: Config, register: Register
) -> None:
    register(seed=1)
    champion = models.champion(config)
    assert champion is not None
    told = evaluation().but(model=ScoredModel(weights_sha256=champion["weights_sha256"]))
    twin = make_run(config.storage, "h2z-twin", 1)
    second = registration.register(config, twin, told)
    assert (second.version, second.aliases) == (2, ["challenger"])
    assert second.decision.reasons == ["it has the weights of the champion, version 1: nothing to promote"]
    assert registration.register(config, twin, told) == second
    run = Run("h2z-twin", twin, Result(steps=1, checkpoint=""))
    assert tasks._compared(config, run, told)
    assert not tasks._compared(config, run, evaluation().but(model=ScoredModel(weights_sha256="another")))


def test_an_interrupted_registration_is_finished_by_the_next_call(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at the worst moments: before the version exists, and between decision and aliases."""
    with monkeypatch.context() as patch:
        patch.setattr(registration, "_create", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            register(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.registry.audit.record", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            register(seed=1)
    assert models.champion(config) is None
    told = register(seed=1)
    assert told.version == 1
    assert told.aliases == ["challenger", "champion"]
    assert [e["action"] for e in models.history(config)["events"]] == ["gate"]


def test_a_decision_against_a_champion_that_is_gone_is_taken_again(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(seed=1)
    better = against(evaluation(kid=0.01), 1, 0.05)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.registry.audit.record", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            register(seed=2, told=better)
    register(seed=3, told=evaluation(kid=0.3))
    models.promote(config, 3, "looks better")
    told = register(seed=2, told=better)
    assert (told.version, told.decision.promoted) == (2, False)
    assert "not compared with the current champion, version 3" in told.decision.reasons[0]
    assert models.champion(config)["version"] == 3  # type: ignore[index]
    assert [(e["action"], e["version"]) for e in models.history(config)["events"]][-2:] == [
        ("promote", 3),
        ("gate", 2),
    ]


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_refused_model_is_registered_without_aliases(config: Config, register: Register) -> None:
    told = register(seed=1, told=evaluation(kid=0.3))
    assert told.aliases == []
    assert told.decision.promoted is False
    assert models.champion(config) is None
    second = register(seed=2)
    assert second.aliases == ["challenger", "champion"]


def test_a_champion_that_another_registration_makes_meanwhile_is_not_replaced_unmeasured(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(seed=1)
    decide, others = gate.decide, [evaluation(kid=0.01)]

    def while_another_registers(*judged: Any) -> GateDecision:
        told = decide(*judged)
        if others:  # between this one's decision and what comes of it
            register(seed=2, told=against(others.pop(), 1, 0.05))
        return told

    monkeypatch.setattr(gate, "decide", while_another_registers)
    later = register(seed=3, told=against(evaluation(kid=0.04), 1, 0.05))
    champion = models.champion(config)
    assert champion is not None
    assert champion["metrics"]["kid_mean"] == 0.01
    assert later.aliases == ["challenger"]
    assert "was not compared with the current champion" in later.decision.reasons[0]


def test_an_unfinished_run_is_not_registered(config: Config) -> None:
    with pytest.raises(BadInput, match="is not finished"):
        registration.register(config, storage.join(config.storage, "runs", "nothing"), evaluation())


def test_no_password_reaches_the_registry(config: Config, register: Register) -> None:
    tree = config.plain()
    tree["data"]["source"] = "https://user:hunter2@example.org/set.zip"
    told = register(seed=1, settings=configs.parse(tree))
    database = Path(config.storage) / "mlflow.db"
    assert b"hunter2" not in database.read_bytes()
    assert b"example.org/set.zip" in database.read_bytes()
    assert told.version == 1


def test_storage_in_s3_keeps_models_and_audit_there(config: Config, register: Register, s3: S3Server) -> None:
    remote = configs.parse({**config.plain(), "storage": f"{s3.uri}/prefix"})
    shutil.copytree(config.storage, ".agit")
    told = register(seed=1, settings=remote)
    assert told.source == f"{s3.uri}/prefix/models/h2z/h2z-run1"
    assert model_folder.read(models.resolve("models:/h2z@champion", remote)).name == "h2z"
    assert len(storage.list_(f"{s3.uri}/prefix/models/h2z/audit")) == 1
    assert Path(".agit/mlflow.db").is_file()


def test_two_that_register_the_same_weights_at_once_make_one_version(config: Config) -> None:
    uri = make_run(config.storage, "h2z-run1", 1)
    tracking.client(tracking.tracking_uri(config))
    start = threading.Barrier(2)

    def one(_: int) -> Registration:
        start.wait(60)
        return registration.register(config, uri, evaluation(), {"data_fingerprint": "abc"})

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one, range(2))
    assert first == second
    (version,) = versions.versions(tracking.tracking_uri(config), "h2z")
    assert (
        tracking.client(tracking.tracking_uri(config)).get_run(version.run_id).info.lifecycle_stage
        == "active"
    )
